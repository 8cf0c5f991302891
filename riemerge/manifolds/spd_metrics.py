"""Positive definite matrices with the log-Euclidean, the Bures-Wasserstein and the Euclidean metric."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds.base import Logarithm
from riemerge.manifolds.spd_base import KernelMetric, function_of, in_eigenbasis


@final
class SpdLogEuclidean(KernelMetric):
    """K copies of SPD(r) with the metric of symmetric matrices, pulled back by the matrix logarithm: flat.

    The differential of the logarithm multiplies the entries of a vector, in an eigenbasis of B, by the
    divided differences (log lⱼ - log lₖ) / (lⱼ - lₖ) (Daleckii-Krein), here without a difference, so that
    repeated eigenvalues are no special case.

    Source: Arsigny, Fillard, Pennec, Ayache 2007.

    Args:
        r: Size of the matrices.
        options: See `riemerge.manifolds.base.Options`.
    """

    def kernel(self, values: Tensor) -> Tensor:
        """Return the squared divided differences of the logarithm."""
        return _log_differences(values).square()

    def chart(self, values: Tensor) -> Tensor:
        """Return the logarithm."""
        return values.log()

    def inverse_chart(self, values: Tensor) -> Tensor:
        """Return the exponential."""
        return values.exp()

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a geodesic: exp(log B + V), V = D log(B)[v]."""
        velocity = in_eigenbasis(point, tangent_vector.double(), _log_differences)
        reached = function_of(_log(point) + velocity, torch.exp)
        velocity = in_eigenbasis(reached, velocity, lambda values: 1 / _log_differences(values))
        return reached.to(point.dtype), velocity.to(point.dtype)

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Find the geodesic from a to b. Unique, for every pair of positive definite matrices."""
        flat = _log(point_b) - _log(point_a)
        tangent = in_eigenbasis(point_a, flat, lambda values: 1 / _log_differences(values)).to(point_a.dtype)
        return Logarithm(
            tangent, linalg.frobenius(flat, flat), self.feasible(point_a) & self.feasible(point_b)
        )

    def closed_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return exp(Σ wᵢ log Bᵢ), the Fréchet mean."""
        return self.extrinsic_mean(points, weights)

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Return D - D² exp(log B)[V, F]: the connection is flat in log B, and geodesics bend as exp does."""
        log = _log(point)
        first, second = (in_eigenbasis(point, x.double(), _log_differences) for x in (direction, field))
        # The corner of the exponential of [[S, V, 0], [0, S, F], [0, 0, S]] is half of it (Mathias 1996).
        zero = torch.zeros_like(log)
        rows = ((log, first, zero), (zero, log, second), (zero, zero, log))
        bent = torch.linalg.matrix_exp(torch.cat([torch.cat(row, dim=-1) for row in rows], dim=-2))
        corner = bent[..., : self.r, 2 * self.r :]
        return linalg.sym(derivative.double() - corner - corner.mT).to(point.dtype)


@final
class SpdBuresWasserstein(KernelMetric):
    """K copies of SPD(r) with the metric of optimal transport between centred Gaussians, tr(X b) / 2 with
    BX + XB = a.

    It is the quotient of the square matrices L by O(r), B = L Lᵀ: geodesics are (L + tD)(L + tD)ᵀ with
    LᵀD symmetric, which needs no inverse and no root. Incomplete: singular matrices are at the finite
    distance at which I + tX, D = X L, stops being positive definite; `geodesic` gives NaN from there on.

    Source: Takatsu 2011; Bhatia, Jain, Lim 2019; Malagò, Montrucchio, Pistone 2018.

    Args:
        r: Size of the matrices.
        options: See `riemerge.manifolds.base.Options`.
    """

    def kernel(self, values: Tensor) -> Tensor:
        """Return 1 / (2 (lⱼ + lₖ))."""
        return _lyapunov(values) / 2

    def chart(self, values: Tensor) -> Tensor:
        """Return the square root."""
        return values.sqrt()

    def inverse_chart(self, values: Tensor) -> Tensor:
        """Return the square."""
        return values.square()

    def bend(self, values: Tensor, other: Tensor) -> Tensor:
        """Return (lⱼ - lₖ)(cⱼ - cₖ) / (2 (√(lⱼ cⱼ) + √(lₖ cₖ))): exact."""
        root = (values * other).sqrt()
        turned = linalg.differences(values) * linalg.differences(other)
        return turned / (2 * (root.unsqueeze(-1) + root.unsqueeze(-2)))

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a geodesic: (I + X) B (I + X); NaN where it left the set on the way."""
        base, turn = point.double(), in_eigenbasis(point, tangent_vector.double(), _lyapunov)
        stretch = turn + linalg.eye_like(turn)
        inside = (torch.linalg.cholesky_ex(stretch).info == 0)[..., None, None]
        velocity = 2 * linalg.sym(turn @ base @ stretch)
        arrival = torch.where(inside, linalg.sym(stretch @ base @ stretch), torch.nan)
        return arrival.to(point.dtype), velocity.to(point.dtype)

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Find the geodesic from a = L Lᵀ to b = M Mᵀ: D = M O - L, O the rotation nearest to MᵀL. Unique."""
        (left, a), (right, b) = (torch.linalg.cholesky_ex(x.double()) for x in (point_a, point_b))
        rows, _, columns = torch.linalg.svd(right.mT @ left)
        move = right @ (rows @ columns) - left
        tangent = 2 * linalg.sym(move @ left.mT)
        return Logarithm(tangent.to(point_a.dtype), linalg.frobenius(move, move), (a == 0) & (b == 0))

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Return D - X B Y - Y B X, X and Y the solutions of BX + XB = a for direction and field."""
        first, second = (in_eigenbasis(point, x.double(), _lyapunov) for x in (direction, field))
        return linalg.sym(derivative.double() - 2 * first @ point.double() @ second).to(point.dtype)


@final
class SpdEuclidean(KernelMetric):
    """K copies of SPD(r) with the metric tr(ab) of symmetric matrices, of which they are an open convex part.

    Incomplete: geodesics are straight lines, and end where `feasible` says that they left the set.

    Args:
        r: Size of the matrices.
        options: See `riemerge.manifolds.base.Options`.
    """

    def kernel(self, values: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones_like(linalg.differences(values))

    def chart(self, values: Tensor) -> Tensor:
        """Return the eigenvalues."""
        return values

    def inverse_chart(self, values: Tensor) -> Tensor:
        """Return the eigenvalues."""
        return values

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a straight line."""
        return point + tangent_vector, tangent_vector

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Return b - a."""
        tangent = point_b - point_a
        squared = linalg.frobenius(tangent, tangent)
        return Logarithm(tangent, squared, torch.isfinite(squared))

    def closed_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return Σ wᵢ Bᵢ, the Fréchet mean."""
        return self.extrinsic_mean(points, weights)

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Return the entrywise derivative."""
        return linalg.sym(derivative)


def _log(point: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float64).tiny
    return function_of(point.double(), lambda values: values.clamp_min(tiny).log())


def _log_differences(values: Tensor) -> Tensor:
    """Return (log lⱼ - log lₖ) / (lⱼ - lₖ) = h / (sinh h √(lⱼ lₖ)), h half the numerator."""
    logs = values.clamp_min(torch.finfo(values.dtype).tiny).log()
    half = linalg.differences(logs).abs() / 2
    ratio = torch.where(half > 0, half / torch.sinh(half), 1.0)
    root = (logs / 2).exp()
    return ratio / (root.unsqueeze(-1) * root.unsqueeze(-2))


def _lyapunov(values: Tensor) -> Tensor:
    """Return 1 / (lⱼ + lₖ): the solution of BX + XB = a."""
    return 1 / (values.unsqueeze(-1) + values.unsqueeze(-2))
