"""The plug-in of examples/my_lab with every verb stated: an oracle of those that are derived."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from riemerge.manifolds import GeodesicManifold, GroupAction, Logarithm, Reduction


@final
class TwoLayers(GeodesicManifold):
    """K networks (t1, t2), both nonzero, as points (K, 2, 1).

    In s = log|t1 t2| and u = log|t1 / t2| the metric is e^(2s) (ds² + du²) / 2: a plane in polar
    coordinates, with radius |t1 t2| / sqrt 2 and angle u (which may turn more than once around).
    """

    def __init__(self, *, k: int = 1, seed: int = 0) -> None:
        super().__init__("Two-layer scalar networks", 2, k=k, seed=seed)

    @property
    def point_shape(self) -> tuple[int, int]:
        return 2, 1

    def with_modules(self, k: int) -> Self:
        return type(self)(k=k, seed=self.seed)

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (point.flip(-2).square() * a * b).sum(dim=(-2, -1)).double()

    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        return vector

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        return euclidean_gradient / point.flip(-2).square()

    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        return tangent_vector * point.flip(-2).square()

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a straight line of the plane, seen from its start: radially by the first number, across
        by the second."""
        radius, rates = _radius(point), tangent_vector / point
        along, across = (
            radius * (rates[..., 0, 0] + rates[..., 1, 0]),
            radius * (rates[..., 0, 0] - rates[..., 1, 0]),
        )
        x, y = radius + along, across
        arrived, turned = torch.hypot(x, y), torch.atan2(y, x)
        growth, ratio = (arrived / radius).log(), turned
        factors = torch.stack(((growth + ratio) / 2, (growth - ratio) / 2), dim=-1).exp().unsqueeze(-1)
        arrival = point * factors
        radial = (along * x + across * y) / arrived**2
        turning = (across * x - along * y) / arrived**2
        rates = torch.stack(((radial + turning) / 2, (radial - turning) / 2), dim=-1).unsqueeze(-1)
        return arrival, arrival * rates

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Valid for equal signs and less than half a turn: other pairs have no geodesic between them."""
        ratio = point_b / point_a
        logs = ratio.abs().log()
        angle = (logs[..., 0, :] - logs[..., 1, :]).squeeze(-1)
        start, end = _radius(point_a), _radius(point_b)
        x, y = end * angle.cos() - start, end * angle.sin()
        rates = torch.stack(((x + y) / 2, (x - y) / 2), dim=-1).unsqueeze(-1) / start[..., None, None]
        valid = (ratio > 0).all(dim=-1).all(dim=-1) & (angle.abs() < torch.pi)
        return Logarithm(point_a * rates, x.square() + y.square(), valid)

    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        return self.exp(point, tangent_vector)

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Keep the relative rates, scaled to keep the length; isometric, not parallel."""
        scale = (_radius(point_a) / _radius(point_b))[..., None, None]
        return tangent_vector_a / point_a * point_b * scale

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Christoffel symbols of the metric above: Γ¹₁₂ = 1/t2, Γ²₁₂ = 1/t1, Γ¹₂₂ = -t1/t2²,
        Γ²₁₁ = -t2/t1²."""
        a, b = direction / point, field / point
        cross = a * b.flip(-2) + a.flip(-2) * b
        return derivative + point * (cross - (a * b).flip(-2))

    def feasible(self, point: Tensor) -> Tensor:
        return (torch.isfinite(point) & (point != 0)).all(dim=-1).all(dim=-1)

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Average the predictors, in the gauge of the first network."""
        predictors = (weights * points.prod(dim=-2).squeeze(-1)).sum(dim=0)
        return points[0] * (predictors / points[0].prod(dim=-2).squeeze(-1)).sqrt()[..., None, None]

    def reduce(self, points: Tensor) -> Reduction:
        return Reduction(self, points, lambda point: point)

    def random_point(self) -> Tensor:
        numbers = torch.randn(self.k, 2, 1, generator=self._generator, dtype=torch.float64)
        return numbers.exp() * torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


@final
class Scaling(GroupAction):
    """a in R*, acting by (t1, t2) . a = (a t1, t2 / a); elements and logarithmic rates are (..., 1, 1)."""

    dimension = 1

    def act(self, total: GeodesicManifold, point: Tensor, element: Tensor) -> Tensor:
        return point * torch.cat((element, 1 / element), dim=-2)

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        return first * second

    def exponential(self, algebra: Tensor) -> Tensor:
        return algebra.exp()

    def vertical(self, total: GeodesicManifold, point: Tensor, algebra: Tensor) -> Tensor:
        return point * torch.cat((algebra, -algebra), dim=-2)

    def momentum(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        rates = vector / point
        return point.prod(dim=-2, keepdim=True).square() * (rates[..., :1, :] - rates[..., 1:, :])

    def vertical_generator(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        rates = vector / point
        return (rates[..., :1, :] - rates[..., 1:, :]) / 2

    def align(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        """Match the ratio t1 / t2, and the sign of t1: the nearest representative (GeoMerge, eq. 14-17)."""
        ratio = (to / to.flip(-2))[..., :1, :] / (point / point.flip(-2))[..., :1, :]
        sign = (to * point)[..., :1, :].sign()
        return self.act(total, point, sign * ratio.abs().sqrt())

    def extrinsic_mean(self, total: GeodesicManifold, points: Tensor, weights: Tensor) -> Tensor:
        return total.extrinsic_mean(points, weights)

    def random_algebra(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(*leading, 1, 1, generator=generator, dtype=torch.float64)

    def random_element(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        sign = torch.randint(0, 2, (*leading, 1, 1), generator=generator) * 2 - 1
        return sign * self.random_algebra(leading, generator).exp()


def _radius(point: Tensor) -> Tensor:
    return point.prod(dim=-2).squeeze(-1).abs().double() / 2**0.5
