"""Inputs that cancel: what is left of their weighted sum, beside what rounding the stored factors adds.

Opposite updates have no mean direction, and nothing to bring to a norm. Stored in half precision they add up
not to zero but to the rounding of their factors, and a row that divides by that length would write noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from riemerge.updates.low_rank import LowRankUpdate, sum_updates

_SURE = 4.0
"""So many times the expected rounding count as nothing but rounding: sums of opposite updates in all storage
dtypes and gauges of condition up to 1000 have 0.6 to 0.9 of it."""

_ROUND_OFF = 1e-13  # of float64, relative to the terms of the sum


class Remainder(NamedTuple):
    """What is left of some updates.

    Attributes:
        norm: ‖Σ wᵢ dWᵢ‖.
        noise: The root mean square norm of what the rounding of the stored factors adds to that sum.
        size: Σ |wᵢ| ‖dWᵢ‖.
    """

    norm: float
    noise: float
    size: float

    @property
    def cancels(self) -> bool:
        """Whether nothing is left but rounding, of updates that are not all zero."""
        return self.size > 0.0 and self.norm <= max(_SURE * self.noise, _ROUND_OFF * self.size)


def remainder(
    updates: Sequence[LowRankUpdate],
    norms: Sequence[float],
    weights: Sequence[float],
    stored: Sequence[torch.dtype],
    *,
    directions: bool = False,
) -> Remainder:
    """Return what is left of the weighted sum of T updates of one module.

    Args:
        updates: In any common orthonormal bases, as factors in the gauge in which they were stored.
        norms: The T norms of the updates, which every caller has.
        weights: T of them.
        stored: T dtypes in which the factors were stored.
        directions: Whether dWᵢ/‖dWᵢ‖ are added in place of the dWᵢ; of two they count alike, since between
            opposite ones no arc is the shortest, whatever the weights.
    """
    shares = list(weights)
    if directions:
        if len(updates) == 2 and all(shares):
            shares = [1.0, 1.0]
        shares = [share / norm if norm > 0.0 else 0.0 for share, norm in zip(shares, norms, strict=True)]
    each = zip(updates, shares, stored, strict=True)
    return Remainder(
        sum_updates(updates, shares).norm(),
        math.hypot(*(share * update.rounding(dtype) for update, share, dtype in each)),
        math.fsum(abs(share) * norm for share, norm in zip(shares, norms, strict=True)),
    )
