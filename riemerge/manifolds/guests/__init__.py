"""Pymanopt's own manifolds as guests: guarded against their faults, and checked."""
