"""Progress: see `riemerge.progress`."""

from riemerge.progress import Listener, Progress

__all__ = ["Listener", "Progress"]
