"""A manifold with another metric."""

from __future__ import annotations

from typing import Protocol, Self, final

from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.manifolds.base import GeodesicManifold


class Metric(Protocol):
    """A metric: `inner_products`, and each verb of `GeodesicManifold` that has a closed form."""

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the metric of two tangent vectors, one float64 number per module (...)."""
        ...


@final
class MetricManifold(GeodesicManifold):
    """A manifold whose metric is replaced: the set, its tangent spaces and its random points are the base's.

    A verb that the metric states is the metric's, with the arguments that it has on a manifold. What it does
    not state is derived as for any manifold, never taken from the base, whose metric is another; the start of
    a mean, `extrinsic_mean`, is the base's, for which any point will do. So is the retraction of a metric
    without geodesics: it does not depend on the metric.

    Args:
        base: The manifold.
        metric: An object with `inner_products`, and with any of the verbs that depend on the metric.

    Raises:
        RecipeError: The metric has no `inner_products`.

    Example:
        >>> import torch
        >>> from riemerge.manifolds import Euclidean, MetricManifold
        >>> class Doubled:
        ...     def inner_products(self, point, a, b):
        ...         return 2 * (a * b).sum(dim=(-2, -1))
        >>> manifold = MetricManifold(Euclidean(2, 1), Doubled())
        >>> float(manifold.norm(torch.zeros(1, 2, 1), torch.ones(1, 2, 1)))
        2.0
    """

    def __init__(self, base: GeodesicManifold, metric: Metric) -> None:
        if not hasattr(metric, "inner_products"):
            raise RecipeError(f"a metric on {base}, {metric!r}, has no inner_products(point, a, b): state it")
        name = f"{base} with {type(metric).__name__}"
        super().__init__(name, base.dim // base.k, base.point_shape, **base.options)
        self._generator = base._generator  # of one seed, vectors would be the numbers of points
        self.base = base
        self.metric = metric
        for verb in dir(metric):
            if not verb.startswith("_") and hasattr(GeodesicManifold, verb):
                setattr(self, verb, getattr(metric, verb))

    def with_modules(self, k: int) -> Self:
        """Return this manifold with k modules."""
        return type(self)(self.base.with_modules(k), self.metric)

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the metric of two tangent vectors per module."""
        return self.metric.inner_products(point, a, b)

    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Project as the base does."""
        return self.base.projection(point, vector)

    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Move as the base does, or along the metric's own geodesics."""
        if hasattr(self.metric, "geodesic"):
            return self.exp(point, tangent_vector)
        return self.base.retraction(point, tangent_vector)

    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether a point is the base's."""
        return self.base.feasible(point)

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Average as the base does."""
        return self.base.extrinsic_mean(points, weights)

    def random_point(self) -> Tensor:
        """Draw a point of the base."""
        return self.base.random_point()
