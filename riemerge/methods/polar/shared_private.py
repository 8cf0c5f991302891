"""What updates share is averaged as rotations and positive parts, what each has to itself as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from riemerge.linalg import left_singular, weighted_mean
from riemerge.methods.geometries.geometry import Geometry, Solved, Steps
from riemerge.methods.method import Domain
from riemerge.methods.polar.positive import exact, polar_mean
from riemerge.methods.setting import Setting
from riemerge.methods.singular.singular_vectors import FLOOR, leading_each
from riemerge.updates.cores import Cores


@final
@dataclass(frozen=True)
class Spd(Geometry):
    """Rotations and positive parts of what all updates share, beside the average of what each has to itself.

    The mean is x̄ + (M(s) − s̄): the average, with that of the shared parts replaced by their geodesic mean.
    sₜ = F xₜ G is what update t has in directions that all share: F and G are functions of Σ wₜ Uₜ Uₜᵀ and
    Σ wₜ Vₜ Vₜᵀ, whose eigenvalues λ say how far a direction is in all column (row) spaces. Each becomes its
    share (λ − λ₀)/(1 − λ₀), 0 at the level λ₀ of subspaces that know nothing of each other and below, and 1
    for a common one. M is the mean of the cores sₜ by their polar decompositions (`polar_mean`), of the kind
    `core`. So directions that determine a mean have the geodesic one, the others the average, and nothing
    jumps in between.

    λ₀ = max wₜ · (1 + √(ρ/n))², ρ the sum of all ranks but the largest and n the module's width: the edge of
    the spectrum for independent subspaces of equal weights (Marchenko and Pastur), at most 1.

    Law: f(L x Rᵀ) = L f(x) Rᵀ and f(c x) = c f(x); copies give themselves; updates of mutually orthogonal
    rows or columns give their average, and so does one side that is not shared.

    Attributes:
        core: Mean of positive parts: `bures_wasserstein`, `affine_invariant` or `log_euclidean`; `average` of
            the cores themselves.

    Cost: one decomposition of each side, (p, p) and (q, q), and the solve in the shared directions.
    """

    core: str = "bures_wasserstein"

    @property
    def domain(self) -> Domain:
        """Cores: the frames are those of their decompositions."""
        return "cores"

    def mean(self, x: Cores, setting: Setting) -> Steps:
        """Place the positive parts: one problem, where anything is shared."""
        weights = setting.weights.to(x.norms)
        mean = x.combine(weights)
        left, right = shares(x, weights, setting.shape)
        cores = x.within(left, right)
        if not cores.numel():
            return exact(mean)
        core = yield from polar_mean(cores, weights, self.core)
        moved = core.value - weighted_mean(weights, cores)
        # The frames carry the shares once, on the way there.
        columns, rows = left / left.norm(dim=0), right / right.norm(dim=0)
        # Distances are those of twice as many parts.
        evidence = replace(core.evidence, distances=None)
        return Solved(mean + columns @ moved @ rows.mT, evidence)


def shares(x: Cores, weights: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the shared directions of both sides, (p, a) and (q, b): orthogonal, each as long as its share.

    Args:
        x: Updates (T, p, q).
        weights: (T,), of sum 1.
        shape: (m, n) of the module, whose widths say what is random.
    """
    x = x.narrow(leading_each(x.spread(x.svds.values), max(x.ranks)))
    m, n = shape
    return _share(x, x.svds.left, weights, m), _share(x, x.svds.right, weights, n)


def _share(x: Cores, frames: Tensor, weights: Tensor, width: int) -> Tensor:
    """Return the shared directions of one side, each as long as its share, from its frames (p, R)."""
    vectors, values = left_singular(frames * x.each(weights).sqrt())
    level = float(weights.max()) * (1.0 + math.sqrt((sum(x.ranks) - max(x.ranks)) / width)) ** 2
    room = max(1.0 - level, FLOOR)
    share = ((values.square() - (1.0 - room)) / room).clamp(0.0, 1.0)
    kept = share > FLOOR
    directions: Tensor = vectors[:, kept] * share[kept]
    return directions
