"""Distances other than the geodesic one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, final

import autograd.numpy as anp
from pymanopt.manifolds.manifold import Manifold
from pymanopt.manifolds.product import Product
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.linalg import frobenius
from riemerge.manifolds import FixedRank, QuotientManifold, TorchManifold
from riemerge.registry import Registry


class Distance(ABC):
    """How far two points are from each other, in place of the geodesic distance. Abstract.

    Minimised by its gradient alone, so it needs no logarithm. On a quotient it is a function of orbits; one
    that is none is refused.

    Attributes:
        invariant: Whether isometries that are linear in the entries leave the distance as it is, so that a
            problem may be solved in the joint span of its data.
        aligned: Whether the distance on a quotient is the least one over the representatives. That is found
            where the symmetry has a joint form.
    """

    invariant: bool = True
    aligned: ClassVar[bool] = False

    @abstractmethod
    def square(self, manifold: Manifold, x: Any, y: Any) -> Any:
        """Return d² of two points, differentiable in x: (K,) by torch on our manifolds, a number by
        autograd.numpy on Pymanopt's.
        """


@final
@dataclass(frozen=True)
class Chordal(Distance):
    """‖x − y‖ of the entries; of updates, ‖dW − dW′‖, without forming them.

    Law: the mean of updates by this distance is the truncated SVD of their average; the mean of frames is the
    polar factor of their average.
    """

    def square(self, manifold: Manifold, x: Any, y: Any) -> Any:
        """Return the sum of the squared differences."""
        if isinstance(manifold, QuotientManifold) and isinstance(manifold.total, FixedRank):
            return _squared_gap(manifold.total, x, y)
        if isinstance(manifold, TorchManifold):
            return frobenius(x - y, x - y)
        if isinstance(manifold, Product):
            parts = zip(manifold.manifolds, x, y, strict=True)
            return sum(self.square(part, a, b) for part, a, b in parts)
        if manifold.num_values > 1:
            raise RecipeError(
                f"points of {manifold} are tuples, whose entries have no difference: pass a squared distance "
                "of your own, a function of two points"
            )
        return anp.sum(anp.real(x - y) ** 2 + anp.imag(x - y) ** 2)


@final
@dataclass(frozen=True)
class FirstOrder(Distance):
    """‖P(y − x)‖ in the metric at x, P the projection onto the tangent space: the length of the logarithm to
    second order in the distance, for the price of a projection.

    Law: d(x, y) is the geodesic distance up to the order of its cube where the metric is that of the entries'
    space, and of its square elsewhere; it is not symmetric. Its mean is near the Fréchet mean of close data;
    far from x, where y − x is normal to the tangent space, it is zero though y is not x. On a quotient it is
    the least over the representatives.
    """

    aligned = True

    def square(self, manifold: Manifold, x: Any, y: Any) -> Any:
        """Return the squared norm of the projected difference."""
        if not isinstance(manifold, TorchManifold):
            raise RecipeError(
                f"{manifold} projects in numpy, which autograd cannot follow, so the first-order distance "
                "has no gradient there: use `chordal`, or a function of your own"
            )
        vector = manifold.projection(x, y - x)
        return manifold.inner_products(x, vector, vector)


@final
@dataclass(frozen=True)
class SquaredDistance(Distance):
    """A squared distance of one's own.

    Attributes:
        function: d², a function of two points: by torch, (K,), on our manifolds; by autograd.numpy, a number,
            on Pymanopt's.
        invariant: Whether the function is so under isometries that are linear in the entries. The data are
            not reduced to their joint span unless it is.

    Example:
        >>> quartic = SquaredDistance(lambda x, y: ((x - y) ** 4).sum(dim=(-2, -1)))
    """

    function: Callable[[Any, Any], Any]
    invariant: bool = False

    def square(self, manifold: Manifold, x: Any, y: Any) -> Any:
        """Return what the function does."""
        return self.function(x, y)


def _squared_gap(total: FixedRank, x: Tensor, y: Tensor) -> Tensor:
    """Return ‖U B Vᵀ − X C Yᵀ‖², from its rows within the span of V and those normal to it: each is a sum of
    squares, so that near updates lose no digits.
    """
    (u, b, v), (left, core, right) = total.split(x), total.split(y)
    inside = right.mT @ v
    within, normal = u @ b - left @ (core @ inside), (right - v @ inside.mT) @ core
    return frobenius(within, within) + frobenius(normal, normal)


DistanceLike: TypeAlias = Distance | str | Callable[[Any, Any], Any]

DISTANCES: Registry[DistanceLike] = Registry("distance", {"chordal": Chordal, "first_order": FirstOrder})
"""The distances by name, besides the geodesic one, which is the default."""


def as_distance(distance: DistanceLike | None) -> Distance | None:
    """Return a distance given as itself, by name, or as a squared distance (see `SquaredDistance`); None is
    the geodesic one.
    """
    if isinstance(distance, str):
        return as_distance(DISTANCES.make(distance))
    if distance is None or isinstance(distance, Distance):
        return distance
    return SquaredDistance(distance)
