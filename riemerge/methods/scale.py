"""The scale that needs no data: the factor that brings a merge to the mean norm of what went in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from riemerge.errors import NumericalError
from riemerge.methods.stack import Merged

CANCELLED = 1e-4
"""The share of the inputs' norm from which on a merge is too short to be brought back to it. The mean of T
unrelated updates has 1/√T of it, cut to a rank some less: a thousand of them stay above 1e-2."""


class Norms(NamedTuple):
    """Norms in one module.

    Attributes:
        merged: ‖dW‖ of the merged update at scale 1.
        inputs: ‖dWᵢ‖ of the T inputs.
        weights: The T weights, of sum 1.
    """

    merged: float
    inputs: Sequence[float]
    weights: Sequence[float]

    @classmethod
    def of(cls, merged: Merged, weights: Sequence[float]) -> Norms:
        """Return the norms of a merged module."""
        return cls(merged.norm, [update.norm() for update in merged.inputs], weights)


def matched(modules: Iterable[Norms]) -> float:
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
        NumericalError: The inputs cancel: the merge has less than `CANCELLED` of their mean norm, and what is
            left of it may be round-off.

    Source: norm calibration as in MAGIC (arXiv 2512.19320) and NAN (arXiv 2505.16148), over all modules.
    """
    found = list(modules)
    merged = math.hypot(*(one.merged for one in found))
    by_input = zip(*(zip(one.inputs, one.weights, strict=True) for one in found), strict=True)
    mean = math.fsum(_share(column) for column in by_input)
    if mean == 0.0:
        return 1.0
    if merged <= CANCELLED * mean:
        raise NumericalError(
            f"scale: matched: the inputs cancel in all {len(found)} modules: the merged update has "
            f"{merged / mean:.1g} of their mean norm, and what is left may be round-off: give a number, such "
            "as --scale 1, or merge other inputs"
        )
    return mean / merged


def _share(modules: Sequence[tuple[float, float]]) -> float:
    """w̄ N of one input, of its norm and weight in each module."""
    whole = math.hypot(*(norm for norm, _ in modules))
    return math.fsum(weight * norm * (norm / whole) for norm, weight in modules) if whole > 0.0 else 0.0
