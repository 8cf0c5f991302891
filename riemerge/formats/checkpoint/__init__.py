"""Files: full checkpoints read a tensor at a time, checked against each other, and written in shards."""

from __future__ import annotations

from riemerge.formats.checkpoint.checkpoint import read_checkpoint
from riemerge.formats.checkpoint.checkpoint_writer import DenseWriter
from riemerge.formats.checkpoint.custom_code import code_notes
from riemerge.formats.checkpoint.patched import patch, read_patched
from riemerge.formats.checkpoint.view import Checkpoint

__all__ = ["Checkpoint", "DenseWriter", "code_notes", "patch", "read_checkpoint", "read_patched"]
