"""What is merged: updates dW of modules, as factors."""

from riemerge.updates.low_rank import JointSpan, LowRankUpdate, sum_updates
from riemerge.updates.truncation import nearest

__all__ = ["JointSpan", "LowRankUpdate", "nearest", "sum_updates"]
