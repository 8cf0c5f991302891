"""Files: PEFT LoRA folders read exactly, checked against each other, and written whole."""

from __future__ import annotations

from riemerge.formats.peft.adapter import Adapter, read_adapter
from riemerge.formats.peft.adapter_writer import RoundedUpdates, round_update, write_adapter
from riemerge.formats.peft.config import AdapterConfig

__all__ = [
    "Adapter",
    "AdapterConfig",
    "RoundedUpdates",
    "read_adapter",
    "round_update",
    "write_adapter",
]
