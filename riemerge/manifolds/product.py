"""Several manifolds as one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self, Unpack, final

import torch
from torch import Tensor

from riemerge.manifolds.base import GeodesicManifold, Logarithm, Options, Reduction


class FactoredManifold(GeodesicManifold):
    """A product M₁ × M₂ × … with the metric Σ cⱼ gⱼ, whose points lie in one tensor. Abstract: a subclass
    states `split` and `join`.

    Args:
        name: Name of the manifold in messages.
        factors: The manifolds Mⱼ, all with the same K.
        scales: Positive numbers cⱼ, so that squared distances are Σ cⱼ dⱼ² [default: all one].
        point_shape: Rows and columns of one module's point.
        options: See `riemerge.manifolds.base.Options`.
    """

    def __init__(
        self,
        name: str,
        factors: Sequence[GeodesicManifold],
        scales: Sequence[float] | None,
        point_shape: tuple[int, int],
        **options: Unpack[Options],
    ) -> None:
        self.factors = tuple(factors)
        self.scales = tuple(scales or (1.0,) * len(self.factors))
        if len(self.scales) != len(factors) or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"{name}: scales are {scales}; expected {len(factors)} positive numbers")
        dimension = sum(factor.dim // factor.k for factor in self.factors)
        super().__init__(name, dimension, point_shape, **options)

    @abstractmethod
    def split(self, point: Tensor) -> tuple[Tensor, ...]:
        """Return the points, or tangent vectors, of the factors, as views."""

    @abstractmethod
    def join(self, *parts: Tensor) -> Tensor:
        """Return the point or tangent vector with these parts."""

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return Σ cⱼ gⱼ per module."""
        return self._sum(self._each("inner_products", point, a, b))

    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Project factor by factor."""
        return self.join(*self._each("projection", point, vector))

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Raise factor by factor."""
        raised = self._each("euclidean_to_riemannian_gradient", point, euclidean_gradient)
        return self.join(*(x / scale for x, scale in zip(raised, self.scales, strict=True)))

    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Lower factor by factor."""
        lowered = self._each("riemannian_to_euclidean_gradient", point, tangent_vector)
        return self.join(*(x * scale for x, scale in zip(lowered, self.scales, strict=True)))

    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Move factor by factor."""
        return self.join(*self._each("retraction", point, tangent_vector))

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Carry a vector from a to b factor by factor."""
        return self.join(*self._each("transport", point_a, point_b, tangent_vector_a))

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Differentiate factor by factor."""
        return self.join(*self._each("covariant_derivative", point, direction, field, derivative))

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a geodesic. Derived: factor by factor."""
        arrival, velocity = zip(*self._each("geodesic", point, tangent_vector), strict=True)
        return self.join(*arrival), self.join(*velocity)

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Find a geodesic from a to b, factor by factor; valid where all were found."""
        tangents, squared, valid = zip(*self._each("logarithm", point_a, point_b), strict=True)
        tangent = self.join(*(x.expand(*squared[0].shape, -1, -1) for x in tangents))
        return Logarithm(tangent, self._sum(squared), torch.stack(valid).all(dim=0))

    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether all parts are points of their factors."""
        return torch.stack(self._each("feasible", point)).all(dim=0)

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Average factor by factor."""
        return self.join(*self._each("extrinsic_mean", points, shared=(weights,)))

    def closed_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return the mean factor by factor, where each has a closed form."""
        return self.join(*self._each("closed_mean", points, shared=(weights,)))

    def random_point(self) -> Tensor:
        """Draw the parts independently."""
        return self.join(*(factor.random_point() for factor in self.factors))

    def _sum(self, numbers: Sequence[Tensor]) -> Tensor:
        return torch.stack([x * scale for x, scale in zip(numbers, self.scales, strict=True)]).sum(dim=0)

    def _each(self, verb: str, *tensors: Tensor, shared: tuple[Any, ...] = ()) -> list[Any]:
        """Apply one verb to each factor and its part of every tensor."""
        parts = zip(*(self.split(x) for x in tensors), strict=True)
        return [getattr(factor, verb)(*x, *shared) for factor, x in zip(self.factors, parts, strict=True)]


@final
class Product(FactoredManifold):
    """The product of manifolds, of which a point is one tensor.

    The points of the factors lie below each other where all have the same number of columns, (Σ rows,
    columns); otherwise flattened below each other, (Σ rows · columns, 1).

    Args:
        factors: At least one manifold, all with the same K.
        scales: Positive numbers cⱼ, so that squared distances are Σ cⱼ dⱼ² [default: all one].
    """

    def __init__(self, *factors: GeodesicManifold, scales: Sequence[float] | None = None) -> None:
        if len({factor.k for factor in factors}) != 1:
            raise ValueError(
                f"Product: the factors have {[x.k for x in factors]} modules; expected one number"
            )
        shapes = [factor.point_shape for factor in factors]
        self._flat = len({columns for _, columns in shapes}) > 1
        if self._flat:
            shapes = [(rows * columns, 1) for rows, columns in shapes]
        self._rows = [rows for rows, _ in shapes]
        name = " x ".join(f"({factor})" for factor in factors)
        super().__init__(name, factors, scales, (sum(self._rows), shapes[0][1]), **factors[0].options)

    def with_modules(self, k: int) -> Self:
        """Return this manifold with k modules."""
        return type(self)(*(factor.with_modules(k) for factor in self.factors), scales=self.scales)

    def split(self, point: Tensor) -> tuple[Tensor, ...]:
        """Return the points, or tangent vectors, of the factors, as views."""
        parts = zip(point.split(self._rows, dim=-2), self.factors, strict=True)
        return tuple(x.reshape(*x.shape[:-2], *factor.point_shape) for x, factor in parts)

    def join(self, *parts: Tensor) -> Tensor:
        """Return the point or tangent vector with these parts."""
        columns = self.point_shape[1]
        return torch.cat([part.reshape(*part.shape[:-2], -1, columns) for part in parts], dim=-2)

    def reduce(self, points: Tensor) -> Reduction:
        """Reduce factor by factor."""
        small = self._each("reduce", points)
        manifold = type(self)(*(part.manifold for part in small), scales=self.scales)

        def lift(point: Tensor) -> Tensor:
            parts = zip(small, manifold.split(point), strict=True)
            return self.join(*(part.lift(x) for part, x in parts))

        return Reduction(manifold, manifold.join(*(part.points for part in small)), lift)
