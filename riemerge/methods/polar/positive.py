"""Means of positive semidefinite matrices, and of rectangular ones by their polar factors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from riemerge.frechet.status import Status
from riemerge.linalg import SVD, numerical_rank, thin_svd, weighted_mean
from riemerge.manifolds import SymmetricPositiveDefinite
from riemerge.manifolds.spd_base import function_of
from riemerge.methods.geometries.geometry import Placed, Solved, Steps
from riemerge.methods.polar.balanced import place_factors
from riemerge.methods.singular.singular_vectors import FLOOR
from riemerge.methods.stack import Evidence

# Of means inside of a formula: a few digits above what float64 can see.
_BY_STEPS: dict[str, Any] = {"tol": 1e-10, "cost_tol": 0.0, "max_passes": 500, "solver": "fixed_point"}
_BY_COST: dict[str, Any] = {"tol": 1e-10, "cost_tol": 1e-16, "max_passes": 500}
# The round-off of F hides such a gradient, of cores of condition 1e7 that are far apart.
_HIDDEN = 1e-6


def polar_mean(cores: Tensor, weights: Tensor, kind: str) -> Steps:
    """Say what to solve for the mean of matrices (T, p, q) by their polar decompositions xₜ = Qₜ Hₜ = Kₜ Qₜ.

    Q is the polar factor of Σ wₜ Qₜ: the mean rotation in the Frobenius distance. The positive part is the
    mean, of a kind, of all Hₜ and of all Kₜ carried to the same side, Qᵀ Kₜ Q, each of half of its weight;
    the answer is Q times that. So rotations are averaged as rotations, and do not shrink what they turn.

    Law: f(L x Rᵀ) = L f(x) Rᵀ for orthogonal L and R, and f(xᵀ) = f(x)ᵀ; copies give themselves, and f(c x) =
    c f(x). Where a matrix is singular to √eps, the kinds that have no mean there (all but
    `bures_wasserstein`) give way to that one, and the status is SINGULAR; so it is where rotations cancel,
    opposite ones for example: their mean is arbitrary there, and zero stands for it.

    Args:
        cores: T matrices (T, p, q).
        weights: T weights (T,), of sum 1.
        kind: Kind of the mean of positive parts (see `positive_mean`), or `average`: the weighted mean of the
            matrices, without any decomposition.

    Source: Moakher 2002, Means and averaging in the group of rotations (the rotation).
    """
    if kind == "average":
        return exact(weighted_mean(weights, cores))
    if cores.shape[1] < cores.shape[2]:
        turned = yield from polar_mean(cores.mT, weights, kind)
        return turned._replace(value=turned.value.mT)
    shares = weights.to(cores)
    svd = thin_svd(cores)
    sigma = torch.where(svd.values > FLOOR * svd.values.amax(), svd.values, 0.0)
    rotations = svd._replace(values=(sigma > 0.0).to(sigma)).matrix()
    mean = thin_svd(weighted_mean(shares, rotations))
    cosines = mean.values
    rotation = mean._replace(values=(cosines > FLOOR).to(cosines)).matrix()
    sides = (SVD(side, sigma, side).matrix() for side in (svd.right, rotation.mT @ svd.left))
    positive = yield from positive_mean(torch.cat([*sides]), torch.cat([shares, shares]) / 2.0, kind)
    answer = positive._replace(value=rotation @ positive.value)
    if lost := _count_cancelled(rotations, cosines):
        advice = (
            f"The rotations of the cores cancel in {lost} directions, and have no mean there: it is zero."
        )
        return singular(answer, f"{advice} Use core_mean average.")
    return answer


def _count_cancelled(rotations: Tensor, cosines: Tensor) -> int:
    """Count the directions of both sides that the partial isometries (T, p, q) have, but not their sum."""
    left = int(numerical_rank(cosines, FLOOR, 1.0))
    if left == len(cosines):
        return 0
    sides = torch.cat(list(rotations), dim=1), torch.cat(list(rotations), dim=0)
    ranks = [int(numerical_rank(torch.linalg.svdvals(side), FLOOR, 1.0)) for side in sides]
    return max(min(ranks) - left, 0)


def positive_mean(matrices: Tensor, weights: Tensor, kind: str) -> Steps:
    """Say what to solve for the Fréchet mean of symmetric positive semidefinite matrices (T, s, s).

    `bures_wasserstein`: tr A + tr B − 2 tr (A^½ B A^½)^½ is the squared distance; singular ones have a mean.
    `affine_invariant`: ‖log A^-½ B A^-½‖. `log_euclidean`: exp Σ wₜ log Aₜ, in closed form. The last two give
    way to the first where a matrix is singular to √eps.

    Law: f(R A Rᵀ) = R f(A) Rᵀ; copies give themselves; f(c A) = c f(A) for c > 0.

    Source: Agueh, Carlier 2011; Pennec, Fillard, Ayache 2006; Arsigny et al. 2007.
    """
    if not matrices.numel() or not matrices.any():
        return exact(matrices[0])
    values = torch.linalg.eigvalsh(matrices)
    lacking = bool((values[:, 0] <= FLOOR * values[:, -1]).any())
    if kind == "bures_wasserstein" or lacking:
        roots = function_of(matrices, lambda value: value.clamp(min=0.0).sqrt())
        start = function_of(weighted_mean(weights, matrices), lambda value: value.clamp(min=0.0).sqrt())
        root = yield place_factors(roots, start, weights, **_BY_STEPS)
        squared = root._replace(value=root.value @ root.value.mT)
        if kind == "bures_wasserstein":
            return squared
        advice = f"A core is singular and has no {kind} mean: that of Bures and Wasserstein stands there."
        return singular(squared, advice)
    space = SymmetricPositiveDefinite(matrices.shape[-1], device=matrices.device)
    mean = space.extrinsic_mean(matrices.unsqueeze(1), weights.unsqueeze(1)).squeeze(0)
    if kind == "log_euclidean":
        return exact(mean)
    solved = yield Placed(space, matrices, weights, mean, options=_BY_COST)
    found = solved.evidence
    if found.status is Status.STALLED and (found.gradient_norm or 0.0) <= _HIDDEN:
        found = replace(found, status=Status.FLAT, advice=Status.FLAT.advice)
    return solved._replace(evidence=found)


def exact(value: Tensor) -> Solved:
    """Return a mean in closed form."""
    return Solved(value, Evidence(Status.EXACT))


def singular(solved: Solved, advice: str) -> Solved:
    """Return a mean that stands for one that is not there."""
    return solved._replace(evidence=replace(solved.evidence, status=Status.SINGULAR, advice=advice))
