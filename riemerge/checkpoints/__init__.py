"""Files: full checkpoints read a tensor at a time, checked against each other, and written in shards."""

from __future__ import annotations

from riemerge.checkpoints.code import code_notes
from riemerge.checkpoints.collection import check_checkpoints
from riemerge.checkpoints.reader import Checkpoint, read_checkpoint
from riemerge.checkpoints.writer import DenseWriter

__all__ = ["Checkpoint", "DenseWriter", "check_checkpoints", "code_notes", "read_checkpoint"]
