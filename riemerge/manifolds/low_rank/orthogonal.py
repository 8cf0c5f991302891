"""The gauge of a low-rank update: (U, B, V) and (U O, OᵀB O, V O) are the same matrix."""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from torch import Tensor

from riemerge import linalg
from riemerge.errors import RecipeError
from riemerge.manifolds.base import GeodesicManifold
from riemerge.manifolds.low_rank import surrogate
from riemerge.manifolds.low_rank.curvature import group_curvature
from riemerge.manifolds.low_rank.factors import FixedRank
from riemerge.manifolds.mixing import Mixing
from riemerge.manifolds.quotient import GroupAction

# Steps of the extrinsic mean; it is a start, and settles in a few.
_MEAN_SWEEPS = 4
# Condition of the spectra in the sum that the extrinsic mean starts from.
_CONDITION = 4.0
# Candidates, the nearest of all, that are refined by the true distance.
_REFINED = 8
# Refinement of a pair ends when the gauge part of its log is below this share of the log's length. d² errs
# by the square: the loose value ranks candidates, the tight one leaves logs horizontal.
_LOOSE, _TIGHT = 3e-2, 1e-10
_MAX_REFINEMENTS = 200


@final
class Orthogonal(GroupAction):
    """O(r) acting on FixedRank: (U, B, V) . O = (U O, OᵀB O, V O).

    Args:
        r: Size of the group's matrices: the rank.
    """

    reducible = True

    def __init__(self, r: int) -> None:
        if r < 1:
            raise ValueError(f"Orthogonal: r is {r}; at least 1 is needed")
        self.r = self.columns = r
        self.shape = r, r
        self.dimension = r * (r - 1) // 2

    def require(self, total: GeodesicManifold) -> None:
        """Raise where the total space is no `FixedRank` of this rank."""
        if not isinstance(total, FixedRank):
            raise RecipeError(
                f"Orthogonal acts on FixedRank, and {total} is of class {type(total).__name__}: give it a "
                "FixedRank, or write a GroupAction that acts on yours"
            )
        GroupAction.require(self, total)

    def formulation(self, total: GeodesicManifold) -> str:
        """Return the joint formulation, in which alignments are variables."""
        return "joint"

    def act(self, total: GeodesicManifold, point: Tensor, element: Tensor) -> Tensor:
        """Move a point along its orbit."""
        total = _fixed_rank(total)
        u, b, v = total.split(point)
        element = element.to(point.dtype)
        return total.join(u @ element, linalg.sym(element.mT @ b @ element), v @ element)

    def exponential(self, algebra: Tensor) -> Tensor:
        """Return the rotation exp of a skew matrix."""
        return linalg.exp_skew(algebra)

    def vertical(self, total: GeodesicManifold, point: Tensor, algebra: Tensor) -> Tensor:
        """Return (U W, B W - W B, V W) for a skew W."""
        total = _fixed_rank(total)
        u, b, v = total.split(point)
        algebra = algebra.to(point.dtype)
        return total.join(u @ algebra, linalg.sym(b @ algebra - algebra @ b), v @ algebra)

    def momentum(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        """Return β (w_U Uᵀa + w_V Vᵀc) + w_B K(d) for a vector (a, d, c), skew, K of the core's metric:
        d B⁻¹ - B⁻¹ d for the affine-invariant one.
        """
        _, basis, small = _fixed_rank(total).momentum(point, vector)
        return linalg.skew(basis @ small @ basis.mT)

    def vertical_generator(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        """Divide the momentum by `FixedRank.orbit_metric` in B's eigenbasis: the gauge equation.

        For the canonical and affine-invariant ones it is GeoMerge's (sec. 2.2), B⁻¹ W B + B W B⁻¹ - W =
        momentum. Divisors are at least β (w_U + w_V), so it is well posed everywhere.
        """
        return self._gauge(_fixed_rank(total), point, vector)[0]

    def project(self, matrix: Tensor) -> Tensor:
        """Return the skew part."""
        return linalg.skew(matrix)

    def random_element(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw orthogonal matrices of both determinants."""
        return linalg.polar(torch.randn(*leading, self.r, self.r, generator=generator, dtype=torch.float64))

    def extrinsic_mean(self, total: GeodesicManifold, points: Tensor, weights: Tensor) -> Tensor:
        """Average by generalised Procrustes: the mean of `aligned_mean`."""
        return self.aligned_mean(total, points, weights)[0]

    def aligned_mean(self, total: GeodesicManifold, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Average orbits by generalised Procrustes: align all to a reference, average in the total space,
        repeat.

        The first reference is the truncated SVD of the weighted sum of the updates, so the order of the
        points does not matter. Alignments are those of the surrogate, so only matrices of size r are
        decomposed; they are searched for once, and then follow the reference in both components of O(r). A
        single point is its own mean, to the bit.

        Args:
            total: The FixedRank manifold of the points.
            points: (T, K, m + r + n, r).
            weights: (T, K), of sum one in each module.

        Returns:
            The mean (K, m + r + n, r), and the elements (T, K, r, r), float64, that align the points to it.
        """
        total = _fixed_rank(total)
        if points.shape[0] == 1:
            identity = linalg.eye_like(points[..., : self.r, :]).double()
            return points[0].clone(), identity.expand(*points.shape[:2], -1, -1)
        data, reference = surrogate.spectrum(total, points), _truncated_sum(total, points, weights)
        both = None
        for _ in range(_MEAN_SWEEPS):
            both, element = surrogate.follow(data, surrogate.spectrum(total, reference), both)
            reference = total.extrinsic_mean(self.act(total, points, element), weights)
        return reference, surrogate.follow(data, surrogate.spectrum(total, reference), both)[1]

    def align(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        """Return the nearest representative found by `nearest`."""
        return self.act(total, point, self.nearest(total, point, to))

    def realign(
        self, total: GeodesicManifold, point: Tensor, to: Tensor, tolerance: Tensor | None = None
    ) -> Tensor:
        """Return the representative of a nearly aligned point's orbit at the minimum of the distance that the
        point is near to; the one of `align` where the descent from it finds none.

        Cost: two or three logarithms, where `align` takes about a hundred.

        Args:
            total: The FixedRank manifold of both points.
            point: (..., m + r + n, r), broadcast against `to`.
            to: Points to come near to, (..., m + r + n, r).
            tolerance: Refine until the vertical part of each log is this share of (1 + its length), (...)
                [default: round-off].
        """
        total = _fixed_rank(total)
        leading, moving, fixed = _pairs(total, point, to)
        goal: Tensor | float = _TIGHT
        if tolerance is not None:
            goal = tolerance.expand(leading).reshape(-1).clamp_min(_TIGHT)
        start = linalg.eye_like(fixed[:, : self.r]).double().expand(1, fixed.shape[0], -1, -1)
        element, _, settled = self._refine(total, moving, fixed, start, goal)
        element, lost = element[0], torch.nonzero(~settled[0]).squeeze(-1)
        if lost.numel():
            element[lost] = self.nearest(total, moving[lost], fixed[lost])
        return self.act(total, point, element.reshape(*leading, self.r, self.r))

    def guess(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        """Find orthogonal matrices that bring points near to others, by the surrogate alone: cheap."""
        total = _fixed_rank(total)
        return surrogate.follow(surrogate.spectrum(total, point), surrogate.spectrum(total, to))[1]

    def diagonalize_core(self, total: GeodesicManifold, point: Tensor) -> Tensor:
        """Return the representative whose core is diagonal, with falling entries."""
        _, basis = torch.linalg.eigh(_fixed_rank(total).split(point)[1].double())
        return self.act(total, point, basis.flip(-1))

    def nearest(
        self, total: GeodesicManifold, point: Tensor, to: Tensor, *, tolerance: float = _TIGHT
    ) -> Tensor:
        """Find the orthogonal matrices (..., r, r) that bring points nearest to others, in the true
        distance.

        The function is smooth with many minima (about 2^r sign patterns), so the nearest few of about thirty
        candidates of the surrogate, of either determinant, are refined in the true distance, by safeguarded
        Newton steps with a diagonal model. The result depends only on the two arguments, never on earlier
        calls, and is no certificate of a global minimum.

        Args:
            total: The FixedRank manifold of both points.
            point: (..., m + r + n, r), broadcast against `to`.
            to: Points to come near to, (..., m + r + n, r).
            tolerance: Refine until the vertical part of the log is this share of (1 + its length).
        """
        total = _fixed_rank(total)
        leading, moving, fixed = _pairs(total, point, to)
        candidates = surrogate.candidates(*(surrogate.spectrum(total, x) for x in (moving, fixed)))
        logs = total.logarithm(fixed, self.act(total, moving, candidates))
        squared = torch.where(logs.valid, logs.squared, torch.inf)
        nearest = torch.argsort(squared, dim=0, stable=True)[:_REFINED, :, None, None]
        chosen = torch.take_along_dim(candidates, nearest, dim=0)
        chosen, squared, _ = self._refine(total, moving, fixed, chosen, _LOOSE)
        best = torch.argmin(squared, dim=0)
        picked = chosen[best, torch.arange(best.shape[0], device=best.device)]
        polished, _, _ = self._refine(total, moving, fixed, picked.unsqueeze(0), tolerance)
        return polished.reshape(*leading, self.r, self.r)

    def _refine(
        self, total: FixedRank, moving: Tensor, fixed: Tensor, element: Tensor, tolerance: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Descend d² over the group from elements (c, P, r, r); return elements, squared distances (c, P),
        and where the tolerance was reached.
        """
        count = element.shape[0]
        element = element.reshape(-1, self.r, self.r).clone()
        moving, fixed = (x.expand(count, *x.shape).reshape(-1, *x.shape[-2:]) for x in (moving, fixed))
        logs = total.logarithm(fixed, self.act(total, moving, element))
        squared = torch.where(logs.valid, logs.squared, torch.inf)
        gauge, length = self._gauge(total, fixed, logs.tangent)
        damping, mixing = torch.ones_like(squared), Mixing(len(squared), self.r**2, gauge)
        for _ in range(_MAX_REFINEMENTS):
            busy = (length > tolerance * (1 + squared.sqrt())) & (damping > 1e-3) & torch.isfinite(squared)
            active = torch.nonzero(busy).squeeze(-1)
            if active.numel() == 0:
                break
            targets, turning = fixed[active], moving[active]
            step = _curvature_step(total, targets, self.act(total, turning, element[active]), gauge[active])
            step = damping[active][:, None, None] * mixing.combine(active, step)
            trial = element[active] @ linalg.exp_skew(step)
            logs = total.logarithm(targets, self.act(total, turning, trial))
            value = torch.where(logs.valid, logs.squared, torch.inf)
            turned, left = self._gauge(total, targets, logs.tangent)
            # Round-off in d² (eps cond(B)) hides decreases near the minimum; there the gradient decides.
            visible = (value - squared[active]).abs() > 1e-9 * (1 + squared[active])
            better = torch.where(visible, value < squared[active], left < length[active])
            damping[active] = torch.where(better, (1.5 * damping[active]).clamp_max(1), damping[active] / 4)
            mixing.note(active, step, better)
            keep = active[better]
            element[keep], squared[keep] = trial[better], value[better]
            gauge[keep], length[keep] = turned[better], left[better]
        settled = (length <= tolerance * (1 + squared.sqrt())) & torch.isfinite(squared)
        shape = count, -1
        return element.reshape(*shape, self.r, self.r), squared.reshape(shape), settled.reshape(shape)

    def _gauge(self, total: FixedRank, point: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gauge part of tangent vectors, and the length of what it stands for."""
        values, basis, small = total.momentum(point, tangent)
        solved = small / total.orbit_metric(values)
        length = (solved * small).sum(dim=(-2, -1)).clamp_min(0).sqrt()
        return linalg.skew(basis @ solved @ basis.mT), length


def _pairs(total: FixedRank, point: Tensor, to: Tensor) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """Return the leading axes of points and those to come near to, and both as pairs (P, ..., r)."""
    leading = np.broadcast_shapes(point.shape[:-2], to.shape[:-2])
    moving, fixed = (x.expand(*leading, *total.point_shape).flatten(0, -3) for x in (point, to))
    return leading, moving, fixed


def _fixed_rank(total: GeodesicManifold) -> FixedRank:
    if not isinstance(total, FixedRank):
        raise TypeError(f"Orthogonal acts on FixedRank, not on {type(total).__name__}")
    return total


def _truncated_sum(total: FixedRank, points: Tensor, weights: Tensor) -> Tensor:
    """Return the best rank-r approximation of Σ wᵢ Uᵢ Bᵢᵖ Vᵢᵀ as a point; its spectrum is floored
    to stay positive.

    A power p below one draws the spectrum together, so that the noise in the largest directions does not
    drown the smallest: to a condition of `_CONDITION` at most.
    """
    u, b, v = (x.double() for x in total.split(points))
    values, basis = torch.linalg.eigh(b)
    logs = values.clamp_min(torch.finfo(values.dtype).tiny).log()
    condition = (logs[..., -1] - logs[..., 0]).amax(dim=0)
    power = (math.log(_CONDITION) / condition.clamp_min(1e-300)).clamp_max(1)[..., None]
    b = (basis * (power * logs).exp().unsqueeze(-2)) @ basis.mT
    left = torch.cat(tuple(linalg.scale_modules(weights, u @ b)), dim=-1)
    right = torch.cat(tuple(v), dim=-1)
    (q_left, r_left), (q_right, r_right) = torch.linalg.qr(left), torch.linalg.qr(right)
    rows, values, columns = torch.linalg.svd(r_left @ r_right.mT)
    r = total.r
    # The updates may cancel in the sum, wholly or in part, and a core must be positive.
    size = linalg.scale_modules(weights, b).abs().amax(dim=(0, -2, -1)).unsqueeze(-1)
    kept = torch.maximum(values[..., :r], 1e-3 * torch.maximum(values[..., :1], 1e-3 * size))
    core = torch.diag_embed(kept ** (1 / power))
    return total.join(q_left @ rows[..., :r], core, q_right @ columns[..., :r, :].mT).to(points.dtype)


def _curvature_step(total: FixedRank, fixed: Tensor, moving: Tensor, gauge: Tensor) -> Tensor:
    """Turn the gauge part of a log, which assumes coinciding points, into a Newton step over the group."""
    u, b, v = (x.double() for x in total.split(fixed))
    m, c, w = (x.double() for x in total.split(moving))
    values, basis = torch.linalg.eigh(b)
    left, right = (basis.mT @ (x.mT @ y) @ basis for x, y in ((u, m), (v, w)))
    core = torch.diagonal(basis.mT @ c @ basis, dim1=-2, dim2=-1)
    small = basis.mT @ gauge @ basis
    step = small * total.orbit_metric(values) / group_curvature(total, values, left, right, core)
    return -linalg.skew(basis @ step @ basis.mT)
