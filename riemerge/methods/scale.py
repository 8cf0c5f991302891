"""The scale that needs no data: the factor that brings a merge to the mean norm of what went in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from riemerge.errors import NumericalError
from riemerge.methods.cancelling import Remainder, remainder
from riemerge.methods.stack import Merged

_ROUND_OFF = 1e-13  # of a merge in float64, relative to its inputs


class Norms(NamedTuple):
    """Norms in one module.

    Attributes:
        merged: ‖dW‖ of the merged update at scale 1.
        inputs: ‖dWᵢ‖ of the T inputs.
        weights: The T weights, of sum 1.
        left: What is left of the inputs in their weighted sum; None where that is not known.
    """

    merged: float
    inputs: Sequence[float]
    weights: Sequence[float]
    left: Remainder | None = None

    @classmethod
    def of(cls, merged: Merged, weights: Sequence[float], stored: Sequence[torch.dtype]) -> Norms:
        """Return the norms of a merged module, of inputs that were stored in T dtypes."""
        norm, norms = merged.norms
        if merged.measured is not None:
            return cls(norm, norms, weights, merged.measured.left)
        if not merged.inputs:
            return cls(norm, norms, weights)
        return cls(norm, norms, weights, remainder(merged.inputs, norms, weights, stored))


def match_norms(modules: Iterable[Norms]) -> float:
    """Return the factor λ by which ‖λ dW‖ is the weighted mean of the inputs' ‖dWᵢ‖, all modules together.

    A mean of T unrelated updates is shorter than each of them, by √T for the plain average of equal norms:
    what they disagree in cancels. λ gives that length back, and leaves copies as they are.

    λ = Σᵢ w̄ᵢ Nᵢ / N with N² = Σₖ ‖dWₖ‖² and Nᵢ² = Σₖ ‖dWᵢₖ‖² over modules k. Where a weight differs between
    modules, w̄ᵢ = Σₖ wᵢₖ ‖dWᵢₖ‖² / Nᵢ², its mean by energy.

    Law: copies have λ = ‖input‖ / ‖merge‖; a function of norms, so of neither gauge nor order, bit for bit;
    of degree 1 in the inputs and −1 in the merge.

    Args:
        modules: The norms of each module.

    Raises:
        NumericalError: The inputs cancel: nothing is left of their weighted sum, or of the merge, but
            round-off.

    Source: norm calibration as in MAGIC (arXiv 2512.19320) and NAN (arXiv 2505.16148), over all modules.
    """
    found = list(modules)
    merged = math.hypot(*(one.merged for one in found))
    by_input = zip(*(zip(one.inputs, one.weights, strict=True) for one in found), strict=True)
    mean = math.fsum(_share(column) for column in by_input)
    if mean == 0.0:
        return 1.0
    left = [one.left for one in found if one.left is not None]
    together = Remainder(*(math.hypot(*column) for column in zip(*left, strict=True))) if left else None
    if merged <= _ROUND_OFF * mean or (together is not None and together.cancels):
        raise NumericalError(
            f"scale: matched: the inputs cancel in all {len(found)} modules: what is left of them is their "
            "rounding, which no factor turns into an update: give a number, such as --scale 1, or merge "
            "other inputs"
        )
    return mean / merged


def _share(modules: Sequence[tuple[float, float]]) -> float:
    """w̄ N of one input, of its norm and weight in each module."""
    whole = math.hypot(*(norm for norm, _ in modules))
    return math.fsum(weight * norm * (norm / whole) for norm, weight in modules if whole > 0.0)
