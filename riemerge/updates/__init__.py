"""What is merged: updates dW of modules, as factors or as dense tensors."""

from riemerge.updates.blocks import BlockMap, Blocks, DenseBlocks, DenseRows, blocks_of
from riemerge.updates.cores import Cores
from riemerge.updates.dense import Dense, DenseSpan
from riemerge.updates.low_rank import JointSpan, LowRankUpdate, sum_updates
from riemerge.updates.truncation import nearest
from riemerge.updates.update import Update

__all__ = [
    "BlockMap",
    "Blocks",
    "Cores",
    "Dense",
    "DenseBlocks",
    "DenseRows",
    "DenseSpan",
    "JointSpan",
    "LowRankUpdate",
    "Update",
    "blocks_of",
    "nearest",
    "sum_updates",
]
