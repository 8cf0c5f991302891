"""The version of riemerge, which records and reports state."""

__version__ = "0.1.0"
