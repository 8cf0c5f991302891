"""Matrices of unit norm."""

from __future__ import annotations

from typing import Unpack, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds.base import Logarithm, Options, Reduction, trivial_reduction
from riemerge.manifolds.euclidean import FrobeniusManifold

# Norm of the sum of two points below which they are antipodes: the direction of their geodesic errs by
# round-off over it.
_ANTIPODE = 1e-6


@final
class Sphere(FrobeniusManifold):
    """K copies of the unit sphere of matrices (rows, columns), ‖X‖ = 1, with the metric tr(aᵀb).

    Angles are computed from chords, 2 atan2(‖a - b‖, ‖a + b‖), so they are accurate for nearly equal points.
    Computed in float64.

    Args:
        rows: Rows of a matrix.
        columns: Columns of a matrix.
        options: See `riemerge.manifolds.base.Options`.
    """

    def __init__(self, rows: int, columns: int, **options: Unpack[Options]) -> None:
        name = f"Sphere of {rows}x{columns} matrices"
        super().__init__(name, rows * columns - 1, (rows, columns), **options)

    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Return v - ⟨x, v⟩ x."""
        return vector - linalg.scale_modules(linalg.frobenius(point, vector), point)

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a great circle: cos(t) x + sin(t) v / t with t = ‖v‖, of unit norm again."""
        x, v = point.double(), tangent_vector.double()
        angle = self.norms(x, v)
        # torch.sinc is sin(pi x) / (pi x)
        cosine, sine = angle.cos(), torch.sinc(angle / torch.pi)
        arrival = linalg.scale_modules(cosine, x) + linalg.scale_modules(sine, v)
        velocity = linalg.scale_modules(cosine, v) - linalg.scale_modules(angle.square() * sine, x)
        return _normalize(arrival).to(point.dtype), velocity.to(point.dtype)

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Find the great circle from a to b. Valid for all pairs but antipodes."""
        a, b = torch.broadcast_tensors(point_a.double(), point_b.double())
        chord, sum_ = b - a, a + b
        apart, together = self.norms(a, chord), self.norms(a, sum_)
        angle = 2 * torch.atan2(apart, together)
        # The chord's tangent part has length sin(angle): without ⟨a, b⟩, which is flat at one.
        direction = self.projection(a, chord)
        sine = self.norms(a, direction)
        factor = torch.where(sine > 0, angle / torch.where(sine > 0, sine, 1.0), 1.0)
        tangent = linalg.scale_modules(factor, direction)
        error = self.norms(a, self.exp(a, tangent) - b)
        return Logarithm(
            tangent.to(point_a.dtype), angle.square(), (together > _ANTIPODE) & (error < _ANTIPODE)
        )

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Carry a vector from a to b by parallel transport: v - ⟨b, v⟩ (a + b) / (1 + ⟨a, b⟩)."""
        a, b, v = (x.double() for x in (point_a, point_b, tangent_vector_a))
        share = 2 * linalg.frobenius(b, v) / linalg.frobenius(a + b, a + b)
        return (v - linalg.scale_modules(share, a + b)).to(point_a.dtype)

    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether a matrix has norm one: to half the digits of its dtype, or to those of
        float32, where float64 points may come from.
        """
        error = (self.norms(point, point) - 1).abs()
        return error <= max(torch.finfo(point.dtype).eps ** 0.5, 1e-5)  # false where it is NaN

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return the direction of the weighted average; the first point, where the average vanishes."""
        mean = linalg.scale_modules(weights, points.double()).sum(dim=0)
        vanishes = self.norms(mean, mean) < _ANTIPODE
        return _normalize(torch.where(vanishes[..., None, None], points[0], mean)).to(points.dtype)

    def reduce(self, points: Tensor) -> Reduction:
        """Reduce to the coordinates (K, T, 1) of all points in their span, which is totally geodesic:
        exactly, by QR.
        """
        count, (rows, columns) = points.shape[0], self.point_shape
        if count >= rows * columns:
            return trivial_reduction(self, points)
        stack = points.double().flatten(-2).movedim(0, -1)
        basis, coordinates = torch.linalg.qr(stack)
        small = type(self)(count, 1, **self.options)

        def lift(point: Tensor) -> Tensor:
            return (basis.to(point.dtype) @ point).squeeze(-1).unflatten(-1, (rows, columns))

        return Reduction(small, coordinates.movedim(-1, 0).unsqueeze(-1).to(points.dtype), lift)

    def random_point(self) -> Tensor:
        """Draw uniformly."""
        return _normalize(self.draw(self.k, *self.point_shape))


def _normalize(matrix: Tensor) -> Tensor:
    return linalg.scale_modules(linalg.frobenius(matrix, matrix).rsqrt(), matrix)
