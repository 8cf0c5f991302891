"""Orthonormal frames with the canonical metric, the Euclidean one, and those between and beyond."""

from __future__ import annotations

from typing import Literal, Self, Unpack, final

import numpy as np
import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds.base import (
    GeodesicManifold,
    Logarithm,
    Options,
    Reduction,
    change_options,
    trivial_reduction,
)
from riemerge.manifolds.stiefel_log import (
    complete_rotation,
    forward_error,
    generator,
    metric_log,
    normal_factor,
    orthonormalize,
)

# Turns of the completion. Independent subspaces need 5 to 7, pairs near the cut locus about 40 (measured at
# St(96, 16)); beyond 100 the remaining ones creep.
_MAX_TURNS = 100


@final
class Stiefel(GeodesicManifold):
    """K copies of St(n, p), the n x p matrices with UᵀU = I, with the metric tr(aᵀ(I - (1 - β)UUᵀ)b).

    β = 1/2 is the canonical metric and β = 1 the Euclidean one. Geodesics are one-parameter rotations of the
    ambient space and, unless β = 1/2, of the columns; a point and a tangent vector live in the columns [U Q],
    so everything but a few products happens in matrices of size p + q, q = min(p, n - p).

    Source: Edelman, Arias, Smith 1998 (eq. 2.39-2.42); Hüper, Markina, Silva Leite 2021 (their α is 1/(2β) -
    1); logarithm: Zimmermann 2017, Zimmermann, Hüper 2022, with the entrywise Newton factors described at
    `stiefel_log.fibre_log` and `stiefel_log.metric_log`.

    Args:
        n: Rows.
        p: Columns, p <= n.
        beta: β, the metric's weight of turns of a frame within its span, positive, against one for motions
            out of it.
        retraction: `exp` (the geodesic), `qr` or `polar`.
        options: See `riemerge.manifolds.base.Options`. Small matrices are always computed in float64.
    """

    def __init__(
        self,
        n: int,
        p: int,
        *,
        beta: float = 0.5,
        retraction: Literal["exp", "qr", "polar"] = "exp",
        **options: Unpack[Options],
    ) -> None:
        if not 1 <= p <= n:
            raise ValueError(f"Stiefel: n is {n} and p is {p}; 1 <= p <= n is needed")
        if retraction not in ("exp", "qr", "polar"):
            raise ValueError(f"Stiefel: retraction is {retraction!r}; known are 'exp', 'qr' and 'polar'")
        if not 0 < beta < np.inf:
            raise ValueError(f"Stiefel: beta is {beta}; a positive number is needed")
        dimension = n * p - p * (p + 1) // 2
        super().__init__(f"Stiefel manifold St({n},{p})", dimension, (n, p), **options)
        self.n = n
        self.p = p
        self.beta = beta
        self._retraction = retraction

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return tr(aᵀ(I - (1 - β)UUᵀ)b) per module."""
        return linalg.frobenius(a, b) - (1 - self.beta) * linalg.frobenius(point.mT @ a, point.mT @ b)

    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Return Z - U sym(UᵀZ)."""
        return vector - point @ linalg.sym(point.mT @ vector)

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Return E - U ((1 - 1/(2β)) UᵀE + EᵀU/(2β)); for β = 1/2 see Edelman et al. 1998, eq. 2.53."""
        turned, share = euclidean_gradient.mT @ point, 1 / (2 * self.beta)
        return euclidean_gradient - point @ (share * turned + (1 - share) * turned.mT)

    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Return (I - (1 - β)UUᵀ) v."""
        return tangent_vector - (1 - self.beta) * (point @ (point.mT @ tangent_vector))

    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Move along a tangent vector by the retraction chosen at construction."""
        if self._retraction == "exp":
            return self.exp(point, tangent_vector)
        if self._retraction == "polar":
            return linalg.polar(point + tangent_vector)
        orthonormal, upper = torch.linalg.qr(linalg.widen(point + tangent_vector))
        signs = torch.diagonal(upper, dim1=-2, dim2=-1).sign()
        signed = orthonormal * torch.where(signs == 0, torch.ones_like(signs), signs).unsqueeze(-2)
        return signed.to(point.dtype)

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a geodesic: [U Q] exp([[2βA, -Rᵀ], [R, 0]]) [I; 0] exp((1 - 2β)A).

        Source: Edelman et al. 1998, eq. 2.42; Zimmermann, Hüper 2022, eq. 11.
        """
        span = _Span(point, tangent_vector)
        rotation, inner = self._turns(span)
        ends = rotation[..., : self.p], rotation @ torch.cat((span.upper, span.lower), dim=-2)
        rotated = torch.cat([end if inner is None else end @ inner for end in ends], dim=-1)
        arrival, velocity = span.lift(rotated).to(point.dtype).split(self.p, dim=-1)
        return arrival, velocity

    def arrive(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Return where `geodesic` arrives, for less than its velocity takes."""
        span = _Span(point, tangent_vector)
        rotation, inner = self._turns(span)
        end = rotation[..., : self.p]
        return span.lift(end if inner is None else end @ inner).to(point.dtype)

    def _turns(self, span: _Span) -> tuple[Tensor, Tensor | None]:
        """Return the rotations of the ambient space and, unless β = 1/2, of the columns along a geodesic."""
        share = 2 * self.beta
        rotation = linalg.exp_skew(generator(share * span.upper, span.lower))
        if share == 1:
            return rotation, None
        return rotation, linalg.exp_skew((1 - share) * linalg.skew(span.upper))

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Find a geodesic from a to b.

        In the basis [U Q] the end point is a frame, whose completion to a rotation is turned until the
        rotation's logarithm is the generator of a geodesic (`stiefel_log.fibre_log`). Unless β = 1/2, the
        columns are turned with it (`stiefel_log.metric_log`). A pair is valid where
        that was reached and exp(log) was computed and is b: U -> -U satisfies the former alone. Cost: for
        nearby points about 4 symmetric eigendecompositions of size 2p, for independent ones 7 to 10.
        """
        leading = np.broadcast_shapes(point_a.shape[:-2], point_b.shape[:-2])
        u, y = (x.expand(*leading, self.n, self.p).reshape(-1, self.n, self.p) for x in (point_a, point_b))
        span = _Span(u, y)
        target = orthonormalize(torch.cat((span.upper, span.lower), dim=-2))
        goal = 100 * torch.finfo(torch.float64).eps * self.p**0.5
        path = metric_log(target, complete_rotation(target), self.beta, goal, _MAX_TURNS)
        # Both are absolute errors of matrices with p columns of length one; quadratic convergence leaves them
        # at a few units of round-off, and angles within 1e-4 of pi amplify round-off by 1e4.
        tolerance = 1e4 * torch.finfo(torch.float64).eps * self.p**0.5
        valid = (path.residual <= tolerance) & (forward_error(target, path, self.beta) <= tolerance)
        valid = valid & (span.loss(path.lower) <= tolerance)
        tangent = span.lift(torch.cat((path.upper, path.lower), dim=-2)).to(point_a.dtype)
        turns = linalg.frobenius(path.upper, path.upper)
        squared = self.beta * turns + linalg.frobenius(path.lower, path.lower)
        return Logarithm(
            tangent.reshape(*leading, self.n, self.p), squared.reshape(leading), valid.reshape(leading)
        )

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Rotate the ambient space by the rotation that takes a to b and moves as little else as it can.

        Isometric (rotations are isometries of every β), equivariant under change of basis of the frames, and,
        for β = 1/2, tangent to the rotation of the geodesic at a; not the parallel transport, which differs
        by a torsion term.
        """
        span = _Span(point_a, point_b)
        target = orthonormalize(torch.cat((span.upper, span.lower), dim=-2))
        turned = torch.cat((target, complete_rotation(target)), dim=-1) - linalg.eye_like(target @ target.mT)
        # Stacks of vectors at one point lie side by side as columns: two products, whatever their number.
        vectors = linalg.widen(tangent_vector_a)
        over = vectors.ndim - span.upper.ndim
        if over > 0:
            vectors = vectors.flatten(0, over - 1).movedim(0, -2).flatten(-2)
        columns, turned = span.columns().to(vectors.dtype), turned.to(vectors.dtype)
        moved = columns @ (turned @ (columns.mT @ vectors))
        moved += vectors
        if over > 0:
            moved = moved.unflatten(-1, (-1, self.p)).movedim(-2, 0).reshape(tangent_vector_a.shape)
        return moved.to(tangent_vector_a.dtype)

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Add the Christoffel term of the metric: minus the acceleration of geodesics, polarised (for
        β = 1/2 Edelman et al. 1998, eq. 2.48).
        """
        a, b = point.mT @ direction, point.mT @ field
        share = 1 - self.beta
        normal = direction.mT @ field - 2 * share * (a.mT @ b)
        christoffel = share * (direction @ b.mT + field @ a.mT) + point @ linalg.sym(normal)
        return self.projection(point, derivative + christoffel)

    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether a frame is finite and orthonormal: to half the digits of its dtype, or to
        those of float32, where float64 points may come from.
        """
        gram = point.mT @ point
        error = (gram - linalg.eye_like(gram)).abs().amax(dim=-1).amax(dim=-1)
        return error <= max(torch.finfo(point.dtype).eps ** 0.5, 1e-5)  # false where it is NaN

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return the frame nearest to the weighted sum of frames."""
        return linalg.polar(linalg.scale_modules(weights, points).sum(dim=0))

    def reduce(self, points: Tensor) -> Reduction:
        """Reduce to the span of all frames: St(T p, p) in St(n, p) is totally geodesic (fixed by a
        reflection).

        Geodesics and means that start inside the span stay there, so nothing is lost for such starts.
        """
        count = points.shape[0] * self.p
        if count >= self.n:
            return trivial_reduction(self, points)
        basis = torch.linalg.qr(linalg.widen(torch.cat(tuple(points), dim=-1))).Q.to(points.dtype)
        small = self._resize(count, self.k)
        return Reduction(small, basis.mT @ points, lambda point: basis @ point)

    def random_point(self) -> Tensor:
        """Draw uniformly (the Haar measure)."""
        return linalg.polar(self.draw(self.k, self.n, self.p))

    def _resize(self, n: int, k: int) -> Self:
        options = change_options(self.options, k=k)
        return type(self)(n, self.p, beta=self.beta, retraction=self._retraction, **options)


@final
class _Span:
    """The columns [U Q] that a frame U and a vector X need: X = U M + Q N, Q orthonormal and orthogonal to U.

    Where there is room for p columns Q, N is the Cholesky factor of the normal part's Gram matrix and Q is
    never formed: Q b = (normal part) N⁻¹ b. Otherwise Q is all that is left of the space, by QR.

    Attributes:
        upper: M = UᵀX, (..., p, p), float64.
        lower: N, (..., q, p), float64, q = min(p, n - p).
    """

    def __init__(self, point: Tensor, vector: Tensor) -> None:
        point, vector = torch.broadcast_tensors(point.double(), vector.double())
        n, p = point.shape[-2:]
        self._point = point
        self.upper = point.mT @ vector
        self._normal = vector - point @ self.upper
        self._wide = n >= 2 * p
        if self._wide:
            self.lower, _ = normal_factor(self._normal.mT @ self._normal)
        else:
            complete, _ = torch.linalg.qr(point, mode="complete")
            self._rest = complete[..., p:]
            self.lower = self._rest.mT @ vector

    def lift(self, small: Tensor) -> Tensor:
        """Return [U Q] small, (..., n, any)."""
        p = self._point.shape[-1]
        upper, lower = small[..., :p, :], small[..., p:, :]
        if self._wide:
            inside = torch.linalg.solve_triangular(self.lower, lower, upper=True)
            return (self._normal @ inside).add_(self._point @ upper)
        return (self._rest @ lower).add_(self._point @ upper)

    def columns(self) -> Tensor:
        """Return [U Q], (..., n, p + q); columns of Q that the vector does not have are shorter than one."""
        if self._wide:
            rest = torch.linalg.solve_triangular(self.lower, self._normal, upper=True, left=False)
        else:
            rest = self._rest
        return torch.cat((self._point, rest), dim=-1)

    def loss(self, lower: Tensor) -> Tensor:
        """Return by how much ‖Q lower‖² is short of ‖lower‖² (...): components along columns of Q that the
        vector does not have; and the round-off of Q, which is all that Q is made of at an antipode.
        """
        if not self._wide:
            return torch.zeros_like(self.upper[..., 0, 0])
        inside = torch.linalg.solve_triangular(self.lower, lower, upper=True)
        reached = self._normal @ inside
        lost = linalg.frobenius(lower, lower) - linalg.frobenius(reached, reached)
        return lost.abs() + torch.finfo(lower.dtype).eps * linalg.frobenius(inside, inside).sqrt()
