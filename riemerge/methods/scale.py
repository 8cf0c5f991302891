"""The scale that needs no data: the factor that brings a merge to the mean norm of what went in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from riemerge.errors import NumericalError


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
        NumericalError: The merged update is zero in all modules, and the inputs are not.

    Source: norm calibration as in MAGIC (arXiv 2512.19320) and NAN (arXiv 2505.16148), over all modules.
    """
    found = list(modules)
    merged = math.hypot(*(one.merged for one in found))
    by_input = zip(*(zip(one.inputs, one.weights, strict=True) for one in found), strict=True)
    mean = math.fsum(_share(column) for column in by_input)
    if mean == 0.0:
        return 1.0
    if merged == 0.0:
        raise NumericalError(
            "scale: matched: the merged update is zero, and no factor brings it to the norm of the inputs: "
            "give a number, such as --scale 1"
        )
    return mean / merged


def _share(modules: Sequence[tuple[float, float]]) -> float:
    """w̄ N of one input, of its norm and weight in each module."""
    whole = math.hypot(*(norm for norm, _ in modules))
    return math.fsum(weight * norm * (norm / whole) for norm, weight in modules) if whole > 0.0 else 0.0
