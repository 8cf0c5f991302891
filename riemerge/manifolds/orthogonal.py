"""The gauge of a low-rank update: (U, B, V) and (U O, O'B O, V O) are the same matrix."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from riemerge.manifolds import linalg
from riemerge.manifolds.base import GeodesicManifold, scaled
from riemerge.manifolds.fixed_rank import FixedRank
from riemerge.manifolds.quotient import GroupAction
from riemerge.manifolds.spd import spectral

# Sweeps of the surrogate alignment from each start; it converges linearly and is only a start itself.
_SWEEPS = 5
# Sweeps of the extrinsic mean; it is a start, and settles in a few.
_MEAN_SWEEPS = 4
# Candidates, half of either determinant, that are refined by the true distance.
_REFINED = 4
# Refinement of a pair ends when the gauge part of its log is below this share of the log's length. d^2 errs
# by the square: the loose value ranks candidates, the tight one leaves logs horizontal.
_LOOSE, _TIGHT = 3e-2, 1e-10
_MAX_REFINEMENTS = 200
# Least second derivative assumed over the group: between orthogonal frames with equal cores d^2 is flat.
_LEAST_CURVATURE = 0.1


@final
class Orthogonal(GroupAction):
    """O(r) acting on FixedRank: (U, B, V) . O = (U O, O'B O, V O).

    Args:
        r: Size of the group's matrices: the rank.
    """

    def __init__(self, r: int) -> None:
        if r < 1:
            raise ValueError(f"Orthogonal: r is {r}; at least 1 is needed")
        self.r = r
        self.dimension = r * (r - 1) // 2

    def act(self, total: GeodesicManifold, point: Tensor, element: Tensor) -> Tensor:
        """Moves a point along its orbit."""
        total = _fixed_rank(total)
        u, b, v = total.split(point)
        element = element.to(point.dtype)
        return total.join(u @ element, linalg.sym(element.mT @ b @ element), v @ element)

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns first @ second."""
        return first @ second

    def exponential(self, algebra: Tensor) -> Tensor:
        """Returns the rotation exp of a skew matrix."""
        return linalg.exp_skew(algebra)

    def vertical(self, total: GeodesicManifold, point: Tensor, algebra: Tensor) -> Tensor:
        """Returns (U W, B W - W B, V W) for a skew W."""
        total = _fixed_rank(total)
        u, b, v = total.split(point)
        algebra = algebra.to(point.dtype)
        return total.join(u @ algebra, linalg.sym(b @ algebra - algebra @ b), v @ algebra)

    def momentum(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        """Returns (U'a + V'c)/2 - (B^-1 d - d B^-1) for a vector (a, d, c), skew."""
        _, basis, small = self._momentum(_fixed_rank(total), point, vector)
        return linalg.skew(basis @ small @ basis.mT)

    def gauge_part(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        """Solves B^-1 W B + B W B^-1 - W = momentum for skew W, in B's eigenbasis.

        The equation is GeoMerge's (sec. 2.2) for the canonical metric; its divisors are at least one, so it
        is well posed everywhere.
        """
        return self._gauge(_fixed_rank(total), point, vector)[0]

    def _momentum(self, total: FixedRank, point: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns B's eigenvalues and eigenvectors and the momentum in that basis."""
        u, b, v = total.split(point)
        a, d, c = total.split(vector)
        values, basis = torch.linalg.eigh(b.double())
        quotient = (basis.mT @ d.double() @ basis) / values.unsqueeze(-1)
        frames = basis.mT @ linalg.skew((u.mT @ a + v.mT @ c).double()) @ basis / 2
        return values, basis, frames - (quotient - quotient.mT)

    def random_algebra(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draws skew matrices."""
        return linalg.skew(torch.randn(*leading, self.r, self.r, generator=generator, dtype=torch.float64))

    def random_element(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draws orthogonal matrices of both determinants."""
        return linalg.polar(torch.randn(*leading, self.r, self.r, generator=generator, dtype=torch.float64))

    def extrinsic_mean(self, total: GeodesicManifold, points: Tensor, weights: Tensor) -> Tensor:
        """Averages by generalised Procrustes: align all to a reference, average in the total space, repeat.

        The first reference is the truncated SVD of the weighted sum of the updates, so the order of the
        points does not matter; alignments are those of the surrogate, so only matrices of size r are
        decomposed.
        """
        total = _fixed_rank(total)
        reference = _truncated_sum(total, points, weights)
        for _ in range(_MEAN_SWEEPS):
            element = self.guess(total, points, reference)
            reference = total.extrinsic_mean(self.act(total, points, element), weights)
        return reference

    def align(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        """Returns the nearest representative found by `nearest`."""
        return self.act(total, point, self.nearest(total, point, to))

    def guess(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        """Finds orthogonal matrices that bring points near to others, by the surrogate alone: cheap."""
        total = _fixed_rank(total)
        candidates = _candidates(total, point, to)
        return _best(candidates, _surrogate(total, point, to, candidates), 1)[0]

    def diagonalised(self, total: GeodesicManifold, point: Tensor) -> Tensor:
        """Returns the representative whose core is diagonal, with falling entries."""
        _, basis = torch.linalg.eigh(_fixed_rank(total).split(point)[1].double())
        return self.act(total, point, basis.flip(-1))

    def nearest(
        self, total: GeodesicManifold, point: Tensor, to: Tensor, *, tolerance: float = _TIGHT
    ) -> Tensor:
        """Finds the orthogonal matrices (..., r, r) that bring points nearest to others, in the true
        distance.

        The function is smooth with many minima (about 2^r sign patterns), so: sixteen candidates (Procrustes
        on both frames, on either, and matched eigenbases; each with both determinants, raw and after a
        surrogate ascent), of which the surrogate's two best of either determinant are refined in the true
        distance, by safeguarded Newton steps with a diagonal model. The result depends only on the two
        arguments, never on earlier calls, and is no certificate of a global minimum.

        Args:
            total: The FixedRank manifold of both points.
            point: (..., m + r + n, r), broadcast against `to`.
            to: Likewise.
            tolerance: Refine until the vertical part of the log is this share of (1 + its length).
        """
        total = _fixed_rank(total)
        leading = torch.broadcast_shapes(point.shape[:-2], to.shape[:-2])
        rows = total.m + total.r + total.n
        flat = (x.expand(*leading, rows, self.r).reshape(-1, rows, self.r) for x in (point, to))
        moving, fixed = flat
        candidates = _candidates(total, moving, fixed)
        scores = _surrogate(total, moving, fixed, candidates)
        positive = torch.linalg.det(candidates) > 0
        chosen = torch.cat(
            [
                _best(candidates, torch.where(side, scores, -torch.inf), _REFINED // 2)
                for side in (positive, ~positive)
            ]
        )
        chosen, squared = self._refine(total, moving, fixed, chosen, _LOOSE)
        best = torch.argmin(squared, dim=0)
        picked = chosen[best, torch.arange(best.shape[0], device=best.device)]
        polished, _ = self._refine(total, moving, fixed, picked.unsqueeze(0), tolerance)
        return polished.reshape(*leading, self.r, self.r)

    def _refine(
        self, total: FixedRank, moving: Tensor, fixed: Tensor, element: Tensor, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """Descends d^2 over the group from elements (c, P, r, r); returns elements and squared distances (c,
        P).
        """
        count = element.shape[0]
        element = element.reshape(-1, self.r, self.r).clone()
        moving, fixed = (x.expand(count, *x.shape).reshape(-1, *x.shape[-2:]) for x in (moving, fixed))
        found = total.logarithm(fixed, self.act(total, moving, element))
        squared = torch.where(found.valid, found.squared, torch.inf)
        gauge, length = self._gauge(total, fixed, found.tangent)
        damping = torch.ones_like(squared)
        for _ in range(_MAX_REFINEMENTS):
            busy = (length > tolerance * (1 + squared.sqrt())) & (damping > 1e-3) & torch.isfinite(squared)
            active = torch.nonzero(busy).squeeze(-1)
            if active.numel() == 0:
                break
            at, turning = fixed[active], moving[active]
            step = _curvature_step(total, at, self.act(total, turning, element[active]), gauge[active])
            trial = element[active] @ linalg.exp_skew(damping[active][:, None, None] * step)
            found = total.logarithm(at, self.act(total, turning, trial))
            value = torch.where(found.valid, found.squared, torch.inf)
            turned, left = self._gauge(total, at, found.tangent)
            # Round-off in d^2 (eps cond(B)) hides decreases near the minimum; there the gradient decides.
            visible = (value - squared[active]).abs() > 1e-9 * (1 + squared[active])
            better = torch.where(visible, value < squared[active], left < length[active])
            damping[active] = torch.where(better, (1.5 * damping[active]).clamp_max(1), damping[active] / 4)
            keep = active[better]
            element[keep], squared[keep] = trial[better], value[better]
            gauge[keep], length[keep] = turned[better], left[better]
        return element.reshape(count, -1, self.r, self.r), squared.reshape(count, -1)

    def _gauge(self, total: FixedRank, point: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gauge part of tangent vectors, and the length of what it stands for."""
        values, basis, small = self._momentum(total, point, tangent)
        solved = small / orbit_metric(values)
        length = (solved * small).sum(dim=(-2, -1)).clamp_min(0).sqrt()
        return linalg.skew(basis @ solved @ basis.mT), length


def _fixed_rank(total: GeodesicManifold) -> FixedRank:
    if not isinstance(total, FixedRank):
        raise TypeError(f"Orthogonal acts on FixedRank, not on {type(total).__name__}")
    return total


def orbit_metric(values: Tensor) -> Tensor:
    """Returns l_j/l_k + l_k/l_j - 1: the squared length of the vertical vector of each plane (j, k),
    halved.
    """
    ratio = values.unsqueeze(-1) / values.unsqueeze(-2)
    return ratio + ratio.mT - 1


def _candidates(total: FixedRank, moving: Tensor, fixed: Tensor) -> Tensor:
    """Returns 16 orthogonal matrices for each pair of points, (16, ..., r, r)."""
    left, right, c, b = _overlaps(total, moving, fixed)
    both = left + right
    c_basis, b_basis = torch.linalg.eigh(c).eigenvectors, torch.linalg.eigh(b).eigenvectors
    agreement = torch.diagonal(c_basis.mT @ both @ b_basis, dim1=-2, dim2=-1)
    signs = torch.where(agreement < 0, -1.0, 1.0).to(agreement)
    weakest = torch.nn.functional.one_hot(agreement.abs().argmin(dim=-1), total.r).to(signs)
    plus = torch.ones_like(agreement[..., 0])
    raw = torch.stack(
        [linalg.procrustes(x, sign) for x in (both, left, right) for sign in (plus, -plus)]
        + [(c_basis * x.unsqueeze(-2)) @ b_basis.mT for x in (signs, signs * (1 - 2 * weakest))]
    )
    # The surrogate of `_surrogate`, with logarithms shifted to be positive, is a convex function of O to be
    # maximised, so each sweep of Procrustes on its linearisation climbs.
    determinant = torch.linalg.det(raw).sign()
    p, q = spectral(c, _shifted_log), spectral(b, _shifted_log)
    climbed = raw
    for _ in range(_SWEEPS):
        climbed = linalg.procrustes(torch.pi * both + 4 * p @ climbed @ q, determinant)
    return torch.cat((raw, climbed))


def _surrogate(total: FixedRank, moving: Tensor, fixed: Tensor, element: Tensor) -> Tensor:
    """Returns pi tr(O'(M'U + W'V)) + 2 tr(O' log C O log B): const - d^2 for frames far apart and commuting
    cores.
    """
    left, right, c, b = _overlaps(total, moving, fixed)
    cores = element.mT @ spectral(c, torch.log) @ element
    return torch.pi * linalg.frobenius(element, left + right) + 2 * linalg.frobenius(
        cores, spectral(b, torch.log)
    )


def _best(candidates: Tensor, scores: Tensor, count: int) -> Tensor:
    """Takes the highest scored of candidates (c, ..., r, r), pair by pair: (count, ..., r, r)."""
    order = torch.argsort(scores, dim=0, descending=True, stable=True)[:count]
    return torch.gather(candidates, 0, order[..., None, None].expand(*order.shape, *candidates.shape[-2:]))


def _overlaps(total: FixedRank, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns M'U, W'V and the cores C, B of points (M, C, W) and (U, B, V), of equal leading axes."""
    (m, c, w), (u, b, v) = ([x.double() for x in total.split(point)] for point in (moving, fixed))
    left, right, c, b = torch.broadcast_tensors(m.mT @ u, w.mT @ v, c, b)
    return left, right, c, b


def _truncated_sum(total: FixedRank, points: Tensor, weights: Tensor) -> Tensor:
    """Returns the best rank-r approximation of sum_i w_i dW_i as a point; its spectrum is floored to stay
    positive.
    """
    u, b, v = (x.double() for x in total.split(points))
    left = torch.cat(tuple(scaled(weights, u @ b)), dim=-1)
    right = torch.cat(tuple(v), dim=-1)
    (q_left, r_left), (q_right, r_right) = torch.linalg.qr(left), torch.linalg.qr(right)
    rows, values, columns = torch.linalg.svd(r_left @ r_right.mT)
    r = total.r
    # The updates may cancel in the sum, wholly or in part, and a core must be positive.
    size = scaled(weights, b).abs().amax(dim=(0, -2, -1)).unsqueeze(-1)
    kept = torch.maximum(values[..., :r], 1e-3 * torch.maximum(values[..., :1], 1e-3 * size))
    point = total.join(q_left @ rows[..., :r], torch.diag_embed(kept), q_right @ columns[..., :r, :].mT)
    return point.to(points.dtype)


def _shifted_log(values: Tensor) -> Tensor:
    logs = values.log()
    return logs - logs.amin(dim=-1, keepdim=True)


def _curvature_step(total: FixedRank, fixed: Tensor, moving: Tensor, gauge: Tensor) -> Tensor:
    """Turns the gauge part of a log into a Newton step over the group.

    In B's eigenbasis d^2 has the diagonal second derivative 2 h_jk, h_jk = c_U + c_V + 4 (b / sinh b) sinh(g
    / 2) sinh(l / 2): l and g are the log ratios of the two cores' diagonals, b = (g - l) / 2, and c = x / (1
    + x), x = t cot t, is one half for aligned frames and zero for orthogonal ones. The gauge part assumes h
    of coinciding points.
    """
    u, b, v = (x.double() for x in total.split(fixed))
    m, c, w = (x.double() for x in total.split(moving))
    values, basis = torch.linalg.eigh(b)
    stiefel = _frame_curvature(basis.mT @ (u.mT @ m) @ basis) + _frame_curvature(
        basis.mT @ (v.mT @ w) @ basis
    )
    core = torch.diagonal(basis.mT @ c @ basis, dim1=-2, dim2=-1)
    ratio, other = _log_ratio(values), _log_ratio(core)
    half = (other - ratio).abs() / 2
    bent = torch.where(half > 1e-6, half / torch.sinh(half.clamp_min(1e-6)), torch.ones_like(half))
    curvature = stiefel + (4 * bent * torch.sinh(other / 2) * torch.sinh(ratio / 2)).clamp_min(0)
    small = basis.mT @ gauge @ basis
    step = small * orbit_metric(values) / curvature.clamp_min(_LEAST_CURVATURE)
    return -linalg.skew(basis @ step @ basis.mT)


def _frame_curvature(product: Tensor) -> Tensor:
    angle = torch.diagonal(product, dim1=-2, dim2=-1).clamp(0, 1).arccos()
    x = torch.where(angle > 1e-6, angle / torch.tan(angle.clamp_min(1e-6)), torch.ones_like(angle))
    c = x / (1 + x)
    return (c.unsqueeze(-1) + c.unsqueeze(-2)) / 2


def _log_ratio(values: Tensor) -> Tensor:
    logs = values.log()
    return logs.unsqueeze(-1) - logs.unsqueeze(-2)
