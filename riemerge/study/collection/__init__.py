"""Collections of adapters: all pairs compared, and what follows from that (`riemerge map`)."""

from riemerge.study.collection.mapping import map_adapters

__all__ = ["map_adapters"]
