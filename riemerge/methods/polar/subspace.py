"""Mean subspaces of both sides, and a mean of the cores of the updates in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.frechet.status import Status
from riemerge.linalg import numerical_rank, polar, thin_svd, weighted_mean
from riemerge.methods.geometries.geometry import Geometry
from riemerge.methods.polar.positive import polar_mean
from riemerge.methods.setting import Answer, Setting
from riemerge.methods.singular.singular_vectors import FLOOR, leading, mean_rank, narrow_each

# In radians: of far subspaces the iteration gains a digit in a hundred passes.
_TOL = 1e-6
_PASSES = 1000


def subspace(x: Tensor, setting: Setting) -> Answer:
    """Return L M(Lᵀ xₜ R) Rᵀ: the mean of the cores in the mean column space L and the mean row space R.

    Both have the dimension that `rank` says, or the largest numerical rank of the updates. With `frames`
    `chordal` they are the mean in the distance ‖L Lᵀ − Uₜ Uₜᵀ‖: the leading eigenvectors of Σ wₜ Uₜ Uₜᵀ. With
    `grassmann` they are the Fréchet mean in the geodesic distance, the root of the sum of squared principal
    angles, which needs one rank, and is unique where all subspaces lie within a quarter turn's half. The mean
    M of the cores is their average, or one of `polar_mean`, as `core_mean` says.

    Law: f(L x Rᵀ) = L f(x) Rᵀ and f(c x) = c f(x); copies give themselves.

    Args:
        x: Updates (T, p, q), in bases of the joint span, in float64.
        setting: Weights and the values `rank`, `frames` and `core_mean`.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: The dimension cuts between equal eigenvalues, so that the mean subspace is arbitrary
            (of orthogonal ones any choice is as good); or `grassmann` of several ranks.

    Source: Edelman, Arias, Smith 1998 (distances and logarithm); Karcher 1977.

    Cost: T + 2 SVDs (p, q), and for `grassmann` 2 T SVDs (p, r) a pass.
    """
    weights = setting.weights.to(x)
    svd = thin_svd(x)
    sides = (svd.left, svd.right)
    ranks = numerical_rank(svd.values, FLOOR).tolist()
    size = mean_rank(setting, ranks)
    if not size:
        return Answer(weighted_mean(weights, x), Status.EXACT)
    left, right = (chordal(narrow_each(frames, ranks), weights, size) for frames in sides)
    if setting.values["frames"] == "grassmann":
        if set(ranks) != {size}:
            raise NumericalError(
                f"the updates have numerical ranks {ranks} and the mean {size}: subspaces have a geodesic "
                "mean of their own dimension only: use frames chordal"
            )
        columns, rows = (
            grassmann(frames[:, :, :size], weights, start)
            for frames, start in zip(sides, (left, right), strict=True)
        )
        if not (columns.ok and rows.ok):
            advice = "The mean subspace is not found: the subspaces are too far apart. Use frames chordal."
            return Answer(weighted_mean(weights, x), Status.BUDGET, advice, passes=_PASSES)
        left, right = columns.value, rows.value
    core = polar_mean((left.mT @ x) @ right, weights, setting.values["core_mean"])
    return core._replace(value=left @ core.value @ right.mT)


def chordal(frames: Sequence[Tensor], weights: Tensor, size: int) -> Tensor:
    """Return the leading eigenvectors (p, size) of Σ wₜ Uₜ Uₜᵀ, from the singular vectors of all √wₜ Uₜ.

    Args:
        frames: T frames Uₜ (p, rₜ).
        weights: T weights (T,).
        size: Dimension of the mean subspace.

    Raises:
        NumericalError: The eigenvalues on both sides of the cut are equal.
    """
    roots = zip(weights.sqrt(), frames, strict=True)
    together = thin_svd(torch.cat([root * frame for root, frame in roots], dim=1))
    return together.left[:, : leading(together.values, size, float(together.values[0]))]


def grassmann(frames: Tensor, weights: Tensor, start: Tensor) -> Answer:
    """Return a frame (p, r) of the Fréchet mean of subspaces (T, p, r) in the geodesic distance.

    Law: the gradient Σ wₜ log(Uₜ) is at most 1e-6 radians at the mean.

    Source: Edelman, Arias, Smith 1998; Absil, Mahony, Sepulchre 2004 (logarithm).
    """
    point = start
    for passes in range(_PASSES + 1):
        cosines = point.mT @ frames
        # The tangent of the angles; one of a quarter turn has no logarithm, and stays finite.
        normal = torch.linalg.lstsq(cosines.mT, (frames - point @ cosines).mT).solution.mT
        tangents = thin_svd(normal)
        gradient = weighted_mean(weights, tangents._replace(values=tangents.values.atan()).matrix())
        if float(torch.linalg.matrix_norm(gradient)) <= _TOL:
            return Answer(point, Status.CONVERGED, passes=passes)
        step = thin_svd(gradient)
        turned = (point @ step.right) * step.values.cos() + step.left * step.values.sin()
        point = polar(turned @ step.right.mT)
    return Answer(point, Status.BUDGET, passes=_PASSES)


@final
@dataclass(frozen=True)
class Grassmann(Geometry):
    """Column and row spaces, and cores in their means."""

    frames: str = "chordal"
    core: str = "average"

    def closed_mean(self, x: Tensor, setting: Setting) -> Answer:
        """Return the mean under the square loss."""
        return subspace(x, setting)
