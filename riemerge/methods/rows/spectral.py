"""Placeholder."""

ROWS = ()
