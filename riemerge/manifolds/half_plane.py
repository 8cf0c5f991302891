"""The hyperbolic plane: Gaussians on a line."""

from __future__ import annotations

from typing import Unpack, final

import torch
from torch import Tensor

from riemerge.manifolds.base import GeodesicManifold, Logarithm, Options


@final
class HalfPlane(GeodesicManifold):
    """K products of upper half-planes: columns (u, s), s > 0, with the metric (du² + ds²) / s².

    Of curvature -1: geodesics and means are unique. In u = θ / √2 the Fisher-Rao metric of Gaussians N(θ, s²)
    is twice this one, so Fisher-Rao distances are √2 times as long. Computed in float64.

    Source: Atkinson and Mitchell 1981; Costa, Santos, Strapasson 2015.

    Args:
        columns: Number of half-planes in a product; a point is (2, columns) [default: 1].
        options: See `riemerge.manifolds.base.Options`.
    """

    def __init__(self, columns: int = 1, **options: Unpack[Options]) -> None:
        super().__init__(f"Upper half-plane^{columns}", 2 * columns, (2, columns), **options)

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return (a_u b_u + a_s b_s) / s², summed over columns, per module."""
        height = point[..., 1:, :].double()
        return ((a.double() / height) * (b.double() / height)).sum(dim=(-2, -1))

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Return s² E."""
        return euclidean_gradient * point[..., 1:, :] * point[..., 1:, :]

    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Return v / s²."""
        return tangent_vector / point[..., 1:, :] / point[..., 1:, :]

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a half circle or a vertical line; the curve from i, with a shift and a scale."""
        x, v = point.double(), tangent_vector.double()
        (centre, height), (across, along) = x.split(1, dim=-2), (v / x[..., 1:, :]).split(1, dim=-2)
        length = torch.hypot(across, along)
        safe = torch.where(length > 0, length, 1.0)
        across, along, cosh, sinh = across / safe, along / safe, length.cosh(), length.sinh()
        # cosh d - y sinh d and its derivative; going up, where they cancel, in forms that do not.
        side = across.square() / (1 + along.abs())
        upward, decay = along > 0, (-length).exp()
        shrinking = torch.where(upward, decay + side * sinh, cosh - along * sinh)
        growth = torch.where(upward, decay - side * cosh, along * cosh - sinh)
        arrival = torch.cat((centre + height * across * sinh / shrinking, height / shrinking), dim=-2)
        rate = length * height / shrinking
        velocity = torch.cat((rate * (across / shrinking), rate * (growth / shrinking)), dim=-2)
        return arrival.to(point.dtype), velocity.to(point.dtype)

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Find the geodesic from a to b: unique. Valid where both are feasible and the numbers finite.

        An isometry takes a to i and b to p + iq; then sinh(d / 2) = |p + iq - i| / (2 √q), accurate for all
        distances.
        """
        x, p, q = _move(point_a, point_b)
        near, far = torch.hypot(p, q - 1), torch.hypot(p, q + 1)
        distance = 2 * torch.asinh(near / (2 * q.sqrt()))
        # The vector (2 p, p² + q² - 1) of length near · far, in quotients that do not overflow.
        near = torch.where(near > 0, near, 1.0)
        along = p / near * (p / far) + (q - 1) / near * ((q + 1) / far)
        direction = torch.cat((2 * (p / near) / far, along), dim=-2)
        tangent = x[..., 1:, :] * distance * direction
        squared = distance.square().sum(dim=(-2, -1))
        finite = torch.isfinite(tangent).all(dim=-1).all(dim=-1) & torch.isfinite(squared)
        valid = finite & self.feasible(point_a) & self.feasible(point_b)
        return Logarithm(tangent.to(point_a.dtype), squared, valid)

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Carry a vector from a to b by parallel transport: with b at p + iq seen from i, by the rotation
        of the square of (q + 1) - ip.
        """
        _, p, q = _move(point_a, point_b)
        turn = torch.complex(q + 1, -p)
        turn = turn / turn.abs()
        vector = torch.complex(*tangent_vector_a.double().split(1, dim=-2)) * turn * turn * q
        return torch.cat((vector.real, vector.imag), dim=-2).to(point_a.dtype)

    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether a point is finite with s > 0."""
        return (torch.isfinite(point) & (point[..., 1:, :] > 0)).all(dim=-1).all(dim=-1)

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return the average of u, weighted by w / s, and the geometric mean of s."""
        u, s = points.double().split(1, dim=-2)
        w = weights[..., None, None].double()
        centre = (w * u / s).sum(dim=0) / (w / s).sum(dim=0)
        return torch.cat((centre, (w * s.log()).sum(dim=0).exp()), dim=-2).to(points.dtype)

    def random_point(self) -> Tensor:
        """Draw u normal and s log-normal."""
        numbers = self.draw(self.k, *self.point_shape)
        return torch.cat((numbers[..., :1, :], numbers[..., 1:, :].exp()), dim=-2)


def _move(point_a: Tensor, point_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a in float64, and the coordinates p and q of b where a is moved to i, (..., 1, columns)."""
    x, y = torch.broadcast_tensors(point_a.double(), point_b.double())
    (centre, height), (u, s) = x.split(1, dim=-2), y.split(1, dim=-2)
    return x, (u - centre) / height, s / height
