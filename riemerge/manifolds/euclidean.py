"""Matrices with the Frobenius metric."""

from __future__ import annotations

from abc import ABC
from typing import Unpack, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds.base import GeodesicManifold, Logarithm, Options


class FrobeniusManifold(GeodesicManifold, ABC):
    """A set of matrices with the metric tr(aᵀb), whose projection is orthogonal. Abstract."""

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return tr(aᵀb) per module."""
        return linalg.frobenius(a, b)

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Return the projection of E."""
        return self.projection(point, euclidean_gradient)

    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Return v."""
        return tangent_vector

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Return the projection of the entrywise derivative."""
        return self.projection(point, derivative)


@final
class Euclidean(FrobeniusManifold):
    """K copies of the space of matrices (rows, columns) with the metric tr(aᵀb).

    Args:
        rows: Rows of a matrix.
        columns: Columns of a matrix.
        options: See `riemerge.manifolds.base.Options`.
    """

    def __init__(self, rows: int, columns: int, **options: Unpack[Options]) -> None:
        name = f"Euclidean space of {rows}x{columns} matrices"
        super().__init__(name, None, (rows, columns), **options)

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a straight line."""
        return point + tangent_vector, tangent_vector

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Return b - a; valid where it is finite."""
        tangent = point_b - point_a
        return Logarithm(tangent, linalg.frobenius(tangent, tangent), self.feasible(tangent))

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted average."""
        return self.closed_mean(points, weights)

    def closed_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted average: the Fréchet mean."""
        return torch.einsum("tk,tk...->k...", weights.to(points), points)
