"""The command line."""

from riemerge.cli.commands import main

__all__ = ["main"]
