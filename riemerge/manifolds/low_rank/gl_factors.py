"""Low-rank matrices G Hᵀ as pairs of factors, with the metric that GL(r) leaves as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds.base import GeodesicManifold, Logarithm, Options, Reduction
from riemerge.manifolds.mixing import Mixing

# Midpoint rules of 2, 4, ... steps that are extrapolated, on parts of a geodesic whose length is this share
# of a point's size: the end is off by 1e-12.
_RULES, _PART, _MAX_PARTS = 7, 0.2, 10
# Shots at a second point; the gap, as a share of its size, at which they end, and at which it counts as hit.
_MAX_SHOTS, _GOAL, _HIT = 40, 1e-12, 1e-10
_LEAST_DAMPING = 1e-3
# Relative square of the least singular value of a factor: below, its column space is not determined.
_LEAST_RANK = 1e-14


@final
class GLFactors(GeodesicManifold):
    """K copies of the pairs (G, H) of full rank r with the metric tr(HᵀH ξᵀξ) + tr(GᵀG ηᵀη) of vectors (ξ,
    η); a point is one tensor (K, m + n, r), G above H.

    A pair stands for the update dW = G Hᵀ, as all pairs (G A, H A⁻ᵀ) do, and A in GL(r) is an isometry. On
    these orbits the metric is ‖(I - P) dW Q‖² + ‖P dW (I - Q)‖² + ‖P dW Q‖² / 2 of a change of an update,
    with the projections P and Q onto its column and row space. So updates of full rank (m = n = r) are flat,
    and those of rank one a cone, dρ² + 2ρ²(du² + dv²) with ρ = ‖dW‖ / √2 and unit vectors u, v. Otherwise no
    closed form of the geodesics is known. They are integrated, in the span of a point and a velocity, by
    extrapolation of the midpoint rule (Gragg, Bulirsch, Stoer), to 1e-11 of a point's size.

    Incomplete: geodesics may end at a matrix of lower rank. Independent updates lie at the cut locus, at the
    tip of the cone: only updates with common directions have logarithms.

    Source: GeoMerge (arXiv 2604.27155), eq. 13 for matrices; da Silva et al. 2025.

    Args:
        m: Rows of the update.
        n: Columns of the update.
        r: Rank, r <= min(m, n).
        options: See `riemerge.manifolds.base.Options`.

    Cost: a geodesic takes 56 to 560 solves with matrices of size r, a logarithm 5 to 80 geodesics.
    """

    def __init__(self, m: int, n: int, r: int, **options: Unpack[Options]) -> None:
        if not 1 <= r <= min(m, n):
            raise ValueError(f"GLFactors: m, n, r are {m}, {n}, {r}; 1 <= r <= min(m, n) is needed")
        super().__init__(f"Pairs of factors of {m}x{n} matrices of rank {r}", None, (m + n, r), **options)
        self.m, self.n, self.r = m, n, r

    def split(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return G (..., m, r) and H (..., n, r) as views of a point or tangent vector."""
        left, right = point.split((self.m, self.n), dim=-2)
        return left, right

    def join(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the point or tangent vector (..., m + n, r) with factors G and H."""
        return torch.cat((left, right), dim=-2)

    def matrix(self, point: Tensor) -> Tensor:
        """Return dW = G Hᵀ (..., m, n), dense: for tests and small modules."""
        left, right = self.split(point)
        return left @ right.mT

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return tr(HᵀH ξᵀξ′) + tr(GᵀG ηᵀη′) per module."""
        return linalg.frobenius(self.riemannian_to_euclidean_gradient(point, a), b)

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Return (E_G (HᵀH)⁻¹, E_H (GᵀG)⁻¹)."""
        (g, h), (xi, eta) = self.split(point), self.split(euclidean_gradient)
        return self.join(_divide(xi, h.mT @ h), _divide(eta, g.mT @ g))

    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Return (ξ HᵀH, η GᵀG)."""
        (g, h), (xi, eta) = self.split(point), self.split(tangent_vector)
        return self.join(xi @ (h.mT @ h), eta @ (g.mT @ g))

    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether both factors are finite and of full rank, to condition 1e7."""
        screened = torch.nan_to_num(point.double(), nan=0.0, posinf=0.0, neginf=0.0)
        full = torch.isfinite(point).all(dim=-1).all(dim=-1)
        for factor in self.split(screened):
            gram = factor.mT @ factor
            least = _LEAST_RANK * torch.diagonal(gram, dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
            full = full & (torch.linalg.cholesky_ex(gram - least * linalg.eye_like(gram)).info == 0)
        return full

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a geodesic, by integration."""
        pair, velocity, lift = self._shrink(point, tangent_vector)
        arrival, velocity = (lift(x).to(point.dtype) for x in _flow(pair, velocity))
        return arrival, velocity

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Find a geodesic from a to b by shooting: at the update of b first, then at b; valid where it was
        followed to b.
        """
        known = torch.isfinite(point_b).all(dim=-1).all(dim=-1)
        point_b = torch.where(known[..., None, None], point_b, point_a)
        here, there, lift = self._shrink(point_a, point_b)
        start, _ = _shoot_at_update(here, there)
        velocity, valid = _shoot(here, there, lambda end: there - end, start)
        change = velocity @ here.flip(0).mT
        squared = linalg.frobenius(change, change).sum(dim=0)
        return Logarithm(lift(velocity).to(point_a.dtype), squared, valid & known)

    def align(self, point: Tensor, to: Tensor) -> Tensor:
        """Return the representative of an update on a horizontal geodesic from another one: the nearest
        within the cut locus. NaN where none was found.
        """
        here, there, lift = self._shrink(to, point)
        velocity, found = _shoot_at_update(here, there)
        end = torch.where(found[..., None, None], _flow(here, velocity)[0], torch.nan)
        return lift(end).to(point.dtype)

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Average the factors: near where the pairs are aligned."""
        return linalg.scale_modules(weights, points).sum(dim=0)

    def reduce(self, points: Tensor) -> Reduction:
        """Reduce both sides to the joint span of the factors, which is totally geodesic."""
        bases = self._span(tuple(points))
        m, n = (basis.shape[-1] for basis in bases)
        small = type(self)(m, n, self.r, **self.options)
        sides = (basis.mT @ side for basis, side in zip(bases, self.split(points), strict=True))
        return Reduction(small, small.join(*sides), lambda point: self._leave(bases, small.split(point)))

    def _span(self, points: Sequence[Tensor]) -> list[Tensor]:
        """Return orthonormal bases of the span of the left and of the right factors of points."""
        sides = zip(*map(self.split, points), strict=True)
        return [torch.linalg.qr(torch.cat(side, dim=-1)).Q for side in sides]

    def _leave(self, bases: Sequence[Tensor], sides: Sequence[Tensor]) -> Tensor:
        return self.join(*(basis @ side for basis, side in zip(bases, sides, strict=True)))

    def _shrink(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return two points, or a point and a vector, in bases of their span (2, ..., q, r) and in the gauge
        in which GᵀG and HᵀH of the first are equal and diagonal; and the way back.
        """
        pairs = torch.broadcast_tensors(first.double(), second.double())
        bases, size = self._span(pairs), min(2 * self.r, max(self.m, self.n))
        bases = [torch.nn.functional.pad(basis, (0, size - basis.shape[-1])) for basis in bases]
        small, other = (
            torch.stack([basis.mT @ side for basis, side in zip(bases, self.split(x), strict=True)])
            for x in pairs
        )
        upper = torch.linalg.qr(small).R
        left, values, right = linalg.thin_svd(upper[0] @ upper[1].mT)
        back = (torch.stack((left, right)) / values.sqrt().unsqueeze(-2)).mT @ upper
        turn = back.flip(0).mT
        return small @ turn, other @ turn, lambda sides: self._leave(bases, tuple(sides @ back))


def _solve(gram: Tensor, matrix: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve_ex(gram, matrix).result
    return solution


def _divide(matrix: Tensor, gram: Tensor) -> Tensor:
    """Return M S⁻¹ for a symmetric S."""
    return _solve(gram, matrix.mT).mT


def _lift(pair: Tensor, change: Tensor) -> Tensor:
    """Return the horizontal vector at a pair that stands for the tangential part of a change of G Hᵀ."""
    gram = pair.mT @ pair
    raised = _divide(torch.stack((change, change.mT)) @ pair.flip(0), gram.flip(0))
    return raised - pair @ _solve(gram, pair.mT @ raised) / 2


def _horizontal(pair: Tensor, vector: Tensor) -> Tensor:
    """Remove the vertical part (G L, -H Lᵀ), L = ((GᵀG)⁻¹ Gᵀξ - ηᵀH (HᵀH)⁻¹) / 2."""
    fit = _solve(pair.mT @ pair, pair.mT @ vector)
    turn = (fit[0] - fit[1].mT) / 2
    return vector - pair @ torch.stack((turn, -turn.mT))


def _flow(pair: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """Follow geodesics for unit time: G̈ = (G ḢᵀḢ - Ġ (ḢᵀH + HᵀḢ)) (HᵀH)⁻¹, and so for H."""
    r = pair.shape[-1]

    def slope(state: Tensor) -> Tensor:
        gram = state.mT @ state
        cross = gram[..., r:, :r]
        terms = torch.cat((gram[..., r:, r:], -cross - cross.mT), dim=-2)
        bend = state @ _divide(terms, gram[..., :r, :r]).flip(0)
        return torch.cat((state[..., r:], bend), dim=-1)

    state, other = torch.cat((pair, velocity), dim=-1), pair.flip(0)
    length, size = (torch.linalg.matrix_norm(x @ other.mT).amax(dim=0) for x in (velocity, pair))
    share = torch.nan_to_num(2 * length / size, nan=0.0).amax()
    parts = int((share / _PART).ceil().clamp(1, _MAX_PARTS))
    for _ in range(parts):
        column: list[Tensor] = []
        for rule in range(1, _RULES + 1):
            step = 1 / (2 * rule * parts)
            before, now = state, state + step * slope(state)
            for _ in range(2 * rule - 1):
                before, now = now, before + 2 * step * slope(now)
            row = [(before + now + step * slope(now)) / 2]
            # Neville: each column eliminates one more even power of the step.
            for k, older in enumerate(column, start=1):
                row.append(row[-1] + (row[-1] - older) / ((rule / (rule - k)) ** 2 - 1))
            column = row
        state = column[-1]
    return state[..., :r], state[..., r:]


def _shoot_at_update(here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Return horizontal velocities at pairs, and where their geodesics end on the orbits of others."""
    target = there[0] @ there[1].mT

    def gap(end: Tensor) -> Tensor:
        return _horizontal(here, _lift(end, target - end[0] @ end[1].mT))

    return _shoot(here, there, gap, torch.zeros_like(here))


def _shoot(
    here: Tensor, there: Tensor, gap: Callable[[Tensor], Tensor], velocity: Tensor
) -> tuple[Tensor, Tensor]:
    """Return velocities at pairs for which the gap at the end vanishes, and where it does.

    The gap at the end, as a vector at the start, is the next change of the velocity: this converges linearly,
    the slower the farther, and is mixed.
    """
    size = torch.linalg.matrix_norm(there).amax(dim=0)
    pairs = torch.arange(size.numel(), device=here.device)
    mixing, damping = Mixing(len(pairs), here.numel() // len(pairs), here), torch.ones_like(size)
    miss = gap(_flow(here, velocity)[0])
    for _ in range(_MAX_SHOTS):
        length = torch.linalg.matrix_norm(miss).amax(dim=0)
        if bool(((length <= _GOAL * size) | (damping < _LEAST_DAMPING)).all()):
            break
        step = mixing.combine(pairs, miss.movedim(0, -3).flatten(0, -4)) * damping.reshape(-1, 1, 1, 1)
        trial = velocity + step.reshape(*size.shape, *step.shape[1:]).movedim(-3, 0)
        left = gap(_flow(here, trial)[0])
        better = torch.linalg.matrix_norm(left).amax(dim=0) < length
        mixing.note(pairs, step, better.reshape(-1))
        damping = torch.where(better, (2 * damping).clamp_max(1), damping / 4)
        keep = better[..., None, None]
        velocity, miss = torch.where(keep, trial, velocity), torch.where(keep, left, miss)
    return velocity, torch.linalg.matrix_norm(miss).amax(dim=0) <= _HIT * size
