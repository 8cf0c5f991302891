"""Files: PEFT LoRA folders read exactly, checked against each other, and written whole."""

from __future__ import annotations

from riemerge.adapters.collection import check_collection, differing_facts
from riemerge.adapters.config import AdapterConfig
from riemerge.adapters.reader import Adapter, read_adapter
from riemerge.adapters.writer import RoundedUpdates, round_update, write_adapter

__all__ = [
    "Adapter",
    "AdapterConfig",
    "RoundedUpdates",
    "check_collection",
    "differing_facts",
    "read_adapter",
    "round_update",
    "write_adapter",
]
