"""Mean subspaces of both sides, and a mean of the cores of the updates in them."""

from __future__ import annotations

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.frechet.status import Status
from riemerge.linalg import polar
from riemerge.methods.polar.positive import polar_mean
from riemerge.methods.setting import Answer, Setting
from riemerge.methods.singular.singular_vectors import leading, numerical_rank

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

    Shapes: x (T, p, q) in bases of the joint span, to (p, q).

    Raises:
        NumericalError: The dimension cuts between equal eigenvalues, so that the mean subspace is arbitrary
            (of orthogonal ones any choice is as good); or `grassmann` of several ranks.

    Source: Edelman, Arias, Smith 1998 (distances and logarithm); Karcher 1977. *Cost:* T + 2 SVDs (p, q), and
        for `grassmann` 2 T SVDs (p, r) a pass.
    """
    weights = setting.weights.to(x)
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    ranks = [numerical_rank(one, float(one[0])) for one in sigma]
    asked = setting.values.get("rank")
    size = sum(ranks) if isinstance(asked, str) else max(ranks) if asked is None else asked
    if not size:
        return Answer(torch.einsum("t,tpq->pq", weights, x), Status.EXACT)
    means = [
        chordal([frame[:, :rank] for frame, rank in zip(frames, ranks, strict=True)], weights, size)
        for frames in (u, vh.mT)
    ]
    if setting.values["frames"] == "grassmann":
        if set(ranks) != {size}:
            raise NumericalError(
                f"the updates have numerical ranks {ranks} and the mean {size}: subspaces have a geodesic "
                "mean of their own dimension only: use frames chordal"
            )
        found = [
            grassmann(frames[:, :, :size], weights, mean)
            for frames, mean in zip((u, vh.mT), means, strict=True)
        ]
        if not all(one.ok for one in found):
            advice = "The mean subspace is not found: the subspaces are too far apart. Use frames chordal."
            return Answer(torch.einsum("t,tpq->pq", weights, x), Status.BUDGET, advice, passes=_PASSES)
        means = [one.value for one in found]
    left, right = means
    core = polar_mean((left.mT @ x) @ right, weights, setting.values["core_mean"])
    return core._replace(value=left @ core.value @ right.mT)


def chordal(frames: list[Tensor], weights: Tensor, size: int) -> Tensor:
    """Return the leading eigenvectors (p, size) of Σ wₜ Uₜ Uₜᵀ, from the singular vectors of all √wₜ Uₜ.

    Raises:
        NumericalError: The eigenvalues on both sides of the cut are equal.
    """
    together = torch.cat([root * one for root, one in zip(weights.sqrt(), frames, strict=True)], dim=1)
    directions, lengths, _ = torch.linalg.svd(together, full_matrices=False)
    mean: Tensor = directions[:, : leading(lengths, size, float(lengths[0]))]
    return mean


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
        u, tangents, vh = torch.linalg.svd(normal, full_matrices=False)
        logs = (u * tangents.atan()[:, None]) @ vh
        gradient = torch.einsum("t,tpr->pr", weights, logs)
        if float(torch.linalg.matrix_norm(gradient)) <= _TOL:
            return Answer(point, Status.CONVERGED, passes=passes)
        u, angles, vh = torch.linalg.svd(gradient, full_matrices=False)
        point = polar(((point @ vh.mT) * angles.cos() + u * angles.sin()) @ vh)
    return Answer(point, Status.BUDGET, passes=_PASSES)
