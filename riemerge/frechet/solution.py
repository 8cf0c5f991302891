"""What a solve returns: the point, and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from riemerge.frechet.status import Status

COUNTED = ("passes", "logarithms", "exponentials", "alignments", "gradients", "hessian_products")
"""What a solve counts."""


@final
@dataclass(frozen=True)
class TracePoint:
    """One accepted iterate.

    Attributes:
        passes: Passes over all logarithms so far.
        seconds: Since the solve began.
        cost: F per module (K,).
        gradient_norm: Per module (K,), in the metric of the search manifold.
        active: How many modules are still being solved.
    """

    passes: int
    seconds: float
    cost: NDArray[np.float64]
    gradient_norm: NDArray[np.float64]
    active: int


@final
@dataclass(frozen=True)
class Solution:
    """A Fréchet mean with its certificate, recomputed at the final point and given module by module.

    Attributes:
        point: The mean, on the manifold that was asked for: (K, ...) on ours.
        status: How each module ended (K,).
        cost: F = Σ wᵢ ρ(dᵢ) (K,), by default 1/2 Σ wᵢ dᵢ².
        gradient_norm: Length of F's gradient in the metric (K,), alignments included; of its shortest
            subgradient at data where the loss has a kink.
        horizontality: Largest component of any logarithm along its orbit (K,), as a length: zero where all
            data are aligned to the mean, as they must be at a minimum. Zero on manifolds without a symmetry.
        forward_error: Largest distance between exp(log) and a data point (K,): zero to round-off, however the
            logarithms were found. NaN for another than the geodesic distance, which needs no logarithms.
        distances: The manifold's own distance from the mean to each point given, (T, K), whatever the
            distance and the loss; NaN for points of weight zero in the module, where the cost is not finite,
            and where the manifold has no distance.
        passes: Passes over all logarithms, those of Hessian-vector products and of candidate starts included;
            logarithms inside an alignment (at the start, and in the nested form) and the certificate's are
            not counted. A loss that is relative to the median counts the passes that found it, too.
        counts: What the solve took, each number of single modules and single data: `passes`, `logarithms`,
            `exponentials` (or retractions: points that were moved to), `alignments`, `gradients`,
            `hessian_products`. Those of the certificate are not counted.
        caveat: What the loss says against taking the point for the one mean; empty where F is smooth and
            convex on flat data.
        seconds: Wall time of the solve.
        trace: The accepted iterates.
    """

    point: Any
    status: tuple[Status, ...]
    cost: NDArray[np.float64]
    gradient_norm: NDArray[np.float64]
    horizontality: NDArray[np.float64]
    forward_error: NDArray[np.float64]
    distances: NDArray[np.float64]
    passes: int
    seconds: float
    trace: tuple[TracePoint, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    caveat: str = ""

    @property
    def ok(self) -> bool:
        """Whether every module answers what was asked."""
        return all(status.ok for status in self.status)
