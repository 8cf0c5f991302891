"""Alignments to start from: a cheap stand-in for the squared distance, as a function of the gauge alone.

Only matrices of size r are decomposed. For two points (M, C, W) and (U, B, V) and an element O, cores that
nearly commute and frames far apart, d² from (M O, OᵀC O, W O) to (U, B, V) is a constant minus

    tr(Oᵀ L) + 2 w_B tr(Oᵀ f(C) O f(B)),  L = pi (w_U MᵀU + w_V WᵀV),

f the chart of the core's metric: the logarithm for the affine-invariant one. For frames nearer than that each
principal angle has a weight of its own in L (`_Side`). In the eigenbases of both cores the second term is
2 Σⱼₖ pⱼ qₖ Oⱼₖ² with the charts p, q of their eigenvalues: there everything happens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds.low_rank.curvature import stiffness
from riemerge.manifolds.low_rank.factors import FixedRank

# Newton steps on the surrogate: for each of `candidates`; in `follow` for all starts, then for the best of
# either determinant, and again for these whenever the fixed point has moved.
_STEPS, _FIRST_STEPS, _MORE_STEPS = 10, 8, 3
# Least curvature in a plane: between orthogonal frames with equal cores the surrogate is flat.
_LEAST_CURVATURE = 0.5
# Share of its value by which the surrogate may fall and a step still counts as one that climbs: at a maximum
# round-off must not decide whether the last step, which is much longer than it, is taken.
_ROUND_OFF = 1e-12
# Cosine below which two directions are orthogonal to working precision: the square root of round-off.
_NEARLY_ORTHOGONAL = 1e-8
# Directions of the cores whose mutual sign is least certain, of which `candidates` tries both signs.
_UNCERTAIN = 3


class Spectrum(NamedTuple):
    """Points as the surrogate sees them, float64.

    Attributes:
        left: Frames U (..., m, r).
        right: Frames V (..., n, r).
        basis: Eigenvectors of the cores (..., r, r), by rising eigenvalues.
        charts: √w_B f of the eigenvalues (..., r), of mean zero: their mean is the same for every O.
        total: The manifold of the points.
    """

    left: Tensor
    right: Tensor
    basis: Tensor
    charts: Tensor
    total: FixedRank


def spectrum(total: FixedRank, points: Tensor) -> Spectrum:
    """Decompose points (..., m + r + n, r), once for all their surrogates."""
    left, core, right = (x.double() for x in total.split(points))
    values, basis = torch.linalg.eigh(core)
    charts = total.scales[1] ** 0.5 * total.core.chart(values)
    return Spectrum(left, right, basis, charts - charts.mean(dim=-1, keepdim=True), total)


def candidates(moving: Spectrum, fixed: Spectrum) -> Tensor:
    """Find elements (c, ..., r, r) that may bring points near to others, c about thirty, half of either
    determinant.

    Procrustes on both frames and on either, and the eigenbases of the cores matched in order with the signs
    that suit the frames; raw, and after an ascent with either L. Law: the elements move with the gauge.
    """
    pair, weights = _pair(moving, fixed), fixed.total.scales
    left, right = _sides(pair, fixed.total)
    near, far = left.weighted + right.weighted, torch.pi * (weights[0] * pair.left + weights[2] * pair.right)
    starts = _starts(torch.stack((near, pair.left, pair.right)), _UNCERTAIN)
    others = _starts(torch.stack((far, pair.left, pair.right)), 1)
    elements = (starts[:, :4], pair.climb(starts, near, _STEPS), pair.climb(others, far, _STEPS))
    return moving.basis @ torch.cat(elements, dim=1).flatten(0, 1) @ fixed.basis.mT


def follow(moving: Spectrum, fixed: Spectrum, elements: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the elements that bring points near to others by the surrogate alone.

    Args:
        moving: The points to be aligned.
        fixed: The points to align them to; the leading axes broadcast.
        elements: What an earlier call returned first, for nearly the same points, to climb from.

    Returns:
        The best of either component of O(r) (2, ..., r, r), and the better of the two (..., r, r).
    """
    pair = _pair(moving, fixed)
    left, right = _sides(pair, fixed.total)
    linear = left.weighted + right.weighted
    if elements is None:
        ends = pair.climb(_starts(linear.unsqueeze(0), 1), linear, _FIRST_STEPS)
        best = pair.values(ends, linear).argmax(dim=1, keepdim=True)
        turned = torch.take_along_dim(ends, best[..., None, None], dim=1).squeeze(1)
    else:
        turned = moving.basis.mT @ elements @ fixed.basis
    turned = pair.climb(turned, linear, _MORE_STEPS)
    # Over a half turn of near frames the trace falls short of d² so far that it takes the wrong component.
    scores = pair.values(turned, linear) - left.excess(turned) - right.excess(turned)
    elements = moving.basis @ turned @ fixed.basis.mT
    return elements, torch.where((scores[0] >= scores[1])[..., None, None], elements[0], elements[1])


class _Pair(NamedTuple):
    """Pairs of points in the eigenbases of their cores: MᵀU and WᵀV (..., r, r), and charts of eigenvalues
    (..., r).
    """

    left: Tensor
    right: Tensor
    moving: Tensor
    fixed: Tensor

    @property
    def coupling(self) -> Tensor:
        """Return the charts' products (..., r, r)."""
        return self.moving.unsqueeze(-1) * self.fixed.unsqueeze(-2)

    def values(self, element: Tensor, linear: Tensor) -> Tensor:
        """Return the surrogate of elements, without its constant."""
        return (element * (linear + 2 * self.coupling * element)).sum(dim=(-2, -1))

    def climb(self, element: Tensor, linear: Tensor, steps: int) -> Tensor:
        """Ascend the surrogate from elements (..., r, r), each within its component of O(r).

        Newton steps with the second derivative in each plane, all planes at once, by Cayley's map; a pair
        whose step does not climb stays, and steps a quarter as far.
        """
        coupling = 4 * self.coupling
        gaps = 4 * (self.fixed.unsqueeze(-1) - self.fixed.unsqueeze(-2))

        def look(element: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Return the parts of the surrogate, column by column (..., r), and the surrogate."""
            along = (element * linear).sum(dim=-2)
            core = (self.moving.unsqueeze(-2) @ element.square()).squeeze(-2)
            return along, core, (along + 2 * self.fixed * core).sum(dim=-1)

        along, core, value = look(element)
        damping = torch.ones_like(value)
        for _ in range(steps):
            slope = element.mT @ torch.addcmul(linear, coupling, element)
            curvature = torch.addcmul(
                along.unsqueeze(-1) + along.unsqueeze(-2), gaps, core.unsqueeze(-1) - core.unsqueeze(-2)
            )
            step = (slope - slope.mT).div_(curvature.abs_().clamp_min_(_LEAST_CURVATURE))
            trial = element @ linalg.cayley(step.mul_(damping[..., None, None]))
            reached = look(trial)
            better = reached[2] >= value - _ROUND_OFF * (1 + value.abs())
            element = torch.where(better[..., None, None], trial, element)
            along, core = (
                torch.where(better.unsqueeze(-1), new, old)
                for new, old in zip(reached, (along, core), strict=False)
            )
            value = torch.where(better, reached[2], value)
            damping = torch.where(better, (2 * damping).clamp_max(1), damping / 4)
        return element


def _pair(moving: Spectrum, fixed: Spectrum) -> _Pair:
    left, right = (
        moving.basis.mT @ (x.mT @ y) @ fixed.basis
        for x, y in ((moving.left, fixed.left), (moving.right, fixed.right))
    )
    return _Pair(left, right, moving.charts, fixed.charts)


class _Side(NamedTuple):
    """The frames of one side of pairs of points: MᵀU = P diag(cos t) Qᵀ, principal angles t.

    Near the nearest element P Qᵀ, the squared distance of the frames grows like the sum of weights times 1 -
    cos of the angles turned. The weights are twice the `stiffness`, times that of the factor: 2β for equal
    frames, and pi cos t for almost orthogonal ones.

    Attributes:
        rows: P, with columns near zero for directions that are orthogonal to working precision.
        columns: Q.
        weighted: P diag(weights) Qᵀ.
        shares: Weights times cos² t (..., r): how far the law of each direction is that of near frames.
    """

    rows: Tensor
    columns: Tensor
    weighted: Tensor
    shares: Tensor

    def excess(self, element: Tensor) -> Tensor:
        """Return what tr(Oᵀ weighted) leaves out of d²: in near frames an angle a costs a² / 2, not 1 -
        cos a.
        """
        cosine, vectors = torch.linalg.eigh(linalg.sym(self.rows.mT @ element @ self.columns))
        missing = cosine.clamp(-1, 1).arccos().square() / 2 - (1 - cosine)
        return (self.shares * (vectors.square() @ missing.unsqueeze(-1)).squeeze(-1)).sum(dim=-1)


def _sides(pair: _Pair, total: FixedRank) -> tuple[_Side, _Side]:
    left, _, right = total.scales
    return _side(pair.left, total.beta, left), _side(pair.right, total.beta, right)


def _side(overlap: Tensor, beta: float, weight: float) -> _Side:
    # Half the time of an SVD; it blurs directions that are nearly orthogonal, which all weigh pi cos t.
    squared, columns = torch.linalg.eigh(overlap.mT @ overlap)
    cosines = squared.clamp(_NEARLY_ORTHOGONAL**2, 1).sqrt()
    weights = 2 * weight * stiffness(cosines.arccos(), beta)
    rows = overlap @ (columns / cosines.unsqueeze(-2))
    return _Side(rows, columns, (rows * weights.unsqueeze(-2)) @ columns.mT, weights * cosines.square())


def _starts(targets: Tensor, uncertain: int) -> Tensor:
    """Return elements to climb from (2, c, ..., r, r), one component of O(r) after the other.

    Those nearest to targets (c', ..., r, r), and matched eigenbases, which are diagonal here, with signs that
    suit the first target.
    """
    rows, _, columns = torch.linalg.svd(targets)
    nearest = rows @ columns
    # The nearest of the other determinant turns the least certain direction round (Kabsch 1976).
    mirrored = nearest - 2 * rows[..., -1:] @ columns[..., -1:, :]
    agreement = torch.diagonal(targets[0], dim1=-2, dim2=-1)
    signs = torch.where(agreement < 0, -1.0, 1.0).to(agreement)
    least = torch.argsort(agreement.abs(), dim=-1, stable=True)[..., :uncertain]
    even: list[Tensor] = [signs]
    odd: list[Tensor] = []
    for index in least.unbind(dim=-1):
        flip = 1 - 2 * torch.nn.functional.one_hot(index, signs.shape[-1]).to(signs)
        even, odd = even + [x * flip for x in odd], odd + [x * flip for x in even]
    matched = (torch.diag_embed(torch.stack(x)) for x in (even, odd))
    return torch.cat((_halves(nearest, mirrored), _halves(*matched)), dim=1)


def _halves(ones: Tensor, others: Tensor) -> Tensor:
    """Put elements and others of the opposite determinant (c, ..., r, r) in order: (2, c, ..., r, r), +1
    first.
    """
    proper = (torch.linalg.det(ones) > 0)[..., None, None]
    return torch.stack((torch.where(proper, ones, others), torch.where(proper, others, ones)))
