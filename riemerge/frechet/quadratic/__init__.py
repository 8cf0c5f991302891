"""Quadratic costs on matrices of one rank: the cost, and its descent."""
