"""Solvers of our own, Pymanopt's as guests, and what watches any solver module by module."""
