"""Factors (U, B, V) of low-rank matrices, the orthogonal group that acts on them, and their alignment."""
