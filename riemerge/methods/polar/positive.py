"""Means of positive semidefinite matrices, and of rectangular ones by their polar factors."""

from __future__ import annotations

import torch
from torch import Tensor

from riemerge.frechet.status import Status
from riemerge.linalg import SVD, numerical_rank, sym, thin_svd, weighted_mean
from riemerge.manifolds.spd_base import function_of
from riemerge.methods.setting import Answer
from riemerge.methods.singular.singular_vectors import FLOOR

# Of means inside of a formula: a few digits above what float64 can see.
_TOL = 1e-12
_PASSES = 500


def procrustes_mean(
    factors: Tensor, weights: Tensor, start: Tensor, *, tol: float, cost_tol: float, max_passes: int
) -> Answer:
    """Return the Fréchet mean of Z₁ … Z_T up to an orthogonal map of their columns, from a start.

    The distance is min ‖Z − Zₜ O‖ over O: that of Bures and Wasserstein between Z Zᵀ and Zₜ Zₜᵀ. Each pass
    turns all factors onto the iterate by the polar factors Oₜ of Zₜᵀ Z and takes their weighted average,
    which never raises F = 1/2 Σ wₜ d(Z, Zₜ)². An iterate may have more columns R than the factors: what is
    not there needs no completion, since Oₜ (r, R) has orthonormal rows then. Directions in which Zₜᵀ Z is
    zero to round-off add nothing.

    Law: invariant under Zₜ -> Zₜ O; it moves with isometries on the left. The gradient Z − Σ wₜ Zₜ Oₜ is at
    most `tol` of the iterate, or F fell by less than `cost_tol` of itself.

    Args:
        factors: T factors (T, N, r), with columns of zero where a factor has fewer.
        weights: T weights (T,), of sum 1.
        start: Point (N, R) where the iteration begins; a turn of its columns turns the answer alike.
        tol: Bound on the norm of the gradient, relative to the iterate.
        cost_tol: Bound on the decrease of F in a pass, relative to F.
        max_passes: Largest number of passes.

    Source: Álvarez-Esteban et al. 2016, A fixed-point approach to barycenters in Wasserstein space; Gower
        1975, Generalized Procrustes analysis.
    """
    shares = weights.to(factors)
    sizes = torch.linalg.matrix_norm(factors)
    whole = float((shares * sizes.square()).sum())
    point, before = start, torch.inf
    for passes in range(max_passes + 1):
        svd = thin_svd(factors.mT @ point)
        size = torch.linalg.matrix_norm(point)
        kept = (svd.values > FLOOR**2 * (sizes * size)[:, None]).to(factors)
        turned = torch.einsum("tnr,trk,tk,tck->tnc", factors, svd.left, kept, svd.right)
        moved = weighted_mean(shares, turned)
        cost = (whole + float(size) ** 2) / 2.0 - float((shares[:, None] * svd.values * kept).sum())
        close = float(torch.linalg.matrix_norm(point - moved)) <= tol * float(size)
        if close or before - cost <= cost_tol * abs(cost):
            return Answer(point, Status.CONVERGED, passes=passes)
        if passes < max_passes:
            point, before = moved, cost
    advice = f"F still falls after {max_passes} passes. Raise max_passes, or loosen cost_tol."
    return Answer(point, Status.BUDGET, advice, passes=max_passes)


def polar_mean(cores: Tensor, weights: Tensor, kind: str) -> Answer:
    """Return the mean of matrices (T, p, q) by their polar decompositions xₜ = Qₜ Hₜ = Kₜ Qₜ.

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
        return Answer(weighted_mean(weights, cores), Status.EXACT)
    if cores.shape[1] < cores.shape[2]:
        turned = polar_mean(cores.mT, weights, kind)
        return turned._replace(value=turned.value.mT)
    shares = weights.to(cores)
    svd = thin_svd(cores)
    sigma = torch.where(svd.values > FLOOR * svd.values.amax(), svd.values, 0.0)
    rotations = svd._replace(values=(sigma > 0.0).to(sigma)).matrix()
    mean = thin_svd(weighted_mean(shares, rotations))
    cosines = mean.values
    rotation = mean._replace(values=(cosines > FLOOR).to(cosines)).matrix()
    sides = (SVD(side, sigma, side).matrix() for side in (svd.right, rotation.mT @ svd.left))
    positive = positive_mean(torch.cat([*sides]), torch.cat([shares, shares]) / 2.0, kind)
    answer = positive._replace(value=rotation @ positive.value)
    if lost := _count_cancelled(rotations, cosines):
        advice = (
            f"The rotations of the cores cancel in {lost} directions, and have no mean there: it is zero."
        )
        return answer._replace(status=Status.SINGULAR, advice=f"{advice} Use core_mean average.")
    return answer


def _count_cancelled(rotations: Tensor, cosines: Tensor) -> int:
    """Count the directions of both sides that the partial isometries (T, p, q) have, but not their sum."""
    left = int(numerical_rank(cosines, FLOOR, 1.0))
    if left == len(cosines):
        return 0
    sides = torch.cat(list(rotations), dim=1), torch.cat(list(rotations), dim=0)
    ranks = [int(numerical_rank(torch.linalg.svdvals(side), FLOOR, 1.0)) for side in sides]
    return max(min(ranks) - left, 0)


def positive_mean(matrices: Tensor, weights: Tensor, kind: str) -> Answer:
    """Return the Fréchet mean of symmetric positive semidefinite matrices (T, s, s).

    `bures_wasserstein`: tr A + tr B − 2 tr (A^½ B A^½)^½ is the squared distance; singular ones have a mean.
    `affine_invariant`: ‖log A^-½ B A^-½‖, by the iteration of Bini and Iannazzo. `log_euclidean`:
    exp Σ wₜ log Aₜ, in closed form. The last two give way to the first where a matrix is singular to √eps.

    Law: f(R A Rᵀ) = R f(A) Rᵀ; copies give themselves; f(c A) = c f(A) for c > 0.

    Source: Agueh, Carlier 2011; Bini, Iannazzo 2013, Computing the Karcher mean of symmetric positive
        definite matrices; Arsigny et al. 2007.
    """
    if not matrices.numel() or not matrices.any():
        return Answer(matrices[0], Status.EXACT)
    values = torch.linalg.eigvalsh(matrices)
    singular = bool((values[:, 0] <= FLOOR * values[:, -1]).any())
    if kind == "bures_wasserstein" or singular:
        roots = function_of(matrices, lambda value: value.clamp(min=0.0).sqrt())
        start = function_of(weighted_mean(weights, matrices), lambda value: value.clamp(min=0.0).sqrt())
        root = procrustes_mean(roots, weights, start, tol=_TOL, cost_tol=_TOL, max_passes=_PASSES)
        squared = root._replace(value=root.value @ root.value.mT)
        if kind == "bures_wasserstein":
            return squared
        advice = f"A core is singular and has no {kind} mean: that of Bures and Wasserstein stands there."
        return squared._replace(status=Status.SINGULAR, advice=advice)
    mean = function_of(weighted_mean(weights, function_of(matrices, torch.log)), torch.exp)
    if kind == "log_euclidean":
        return Answer(mean, Status.EXACT)
    return _solve_affine_invariant(matrices, weights, mean)


def _solve_affine_invariant(matrices: Tensor, weights: Tensor, point: Tensor) -> Answer:
    """Return the affine-invariant mean from a start, by steps that the spread of the eigenvalues allows."""
    for passes in range(_PASSES + 1):
        factor = torch.linalg.cholesky(point)
        white = torch.linalg.solve_triangular(factor, matrices, upper=False)
        white = sym(torch.linalg.solve_triangular(factor.mT, white, upper=True, left=False))
        gradient = weighted_mean(weights, function_of(white, torch.log))
        if float(torch.linalg.matrix_norm(gradient)) <= 1e-11:
            return Answer(point, Status.CONVERGED, passes=passes)
        values = torch.linalg.eigvalsh(white)
        spread = (values[:, -1] / values[:, 0]).log().clamp(min=1e-8) / 2.0
        # Half of (c + 1)/(c − 1) · log c, c the condition.
        bound = float((weights * spread / spread.tanh()).sum())
        point = sym(factor @ function_of(2.0 / (1.0 + bound) * gradient, torch.exp) @ factor.mT)
    advice = f"The affine-invariant mean of the cores is not found after {_PASSES} passes."
    return Answer(point, Status.BUDGET, advice, passes=_PASSES)
