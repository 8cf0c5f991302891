"""The Fréchet problem as a value: which points, on which manifold, near in what sense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal, final

import numpy as np
from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

from riemerge.frechet.distance import DistanceLike
from riemerge.frechet.formulation import Point
from riemerge.frechet.loss import LossLike


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """A weighted Fréchet mean: the minimiser of F(x) = Σ wᵢ ρ(d(x, yᵢ)), one problem for each module.

    Law: F is a function of the points' orbits alone. Nothing is computed and nothing is checked here: see
    `frechet_mean`.

    Attributes:
        manifold: One of ours (points are tensors (K, ...)), or any of Pymanopt's with `log` and `dist`, or
            any manifold at all with a `distance`.
        points: T points.
        weights: T numbers, or (T, K) for weights per module; equal by default. Finite, not negative, not all
            zero; divided by their sum. A point whose weight is zero everywhere is left out.
        loss: ρ, an object of `riemerge.losses`, its name, or a function of distances that torch can follow.
        distance: A distance other than the geodesic one: an object of `riemerge.distances`, its name, or a
            squared distance of one's own, a function of two points that torch (on ours) or autograd (on
            Pymanopt's) can follow. It is minimised without logarithms, and on a quotient it must be a
            function of orbits.
        form: `joint` (alignments are variables, where the symmetry has that form and the loss is convex) or
            `nested` (aligned inside the cost). On a manifold without a symmetry there is only one form and
            this is ignored.
        gradient: `analytic`, or `autograd`: the same through torch.
        reduce: Whether to solve in the joint span of the data, exactly, where the manifold offers it.
    """

    manifold: Manifold
    points: Sequence[Point]
    weights: Sequence[float] | np.ndarray | Tensor | None = None
    _: KW_ONLY
    loss: LossLike = "square"
    distance: DistanceLike | None = None
    form: Literal["joint", "nested"] = "joint"
    gradient: Literal["analytic", "autograd"] = "analytic"
    reduce: bool = True
