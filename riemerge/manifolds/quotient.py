"""Symmetries, and the manifold of their orbits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.manifolds.base import GeodesicManifold, Logarithm, Reduction


class GroupAction(ABC):
    """A Lie group that acts on a manifold by isometries, from the right. Abstract: a symmetry is these few
    verbs.

    Group elements and elements of the algebra are tensors (..., a, b) with one element per module.

    Laws (run by `checks.check_action`): act(act(x, g), h) = act(x, g h); distances are invariant; `vertical`
    is the derivative of `act` at the identity; `horizontal` is orthogonal to every vertical vector and
    idempotent; `align` returns a point of the same orbit and depends on the orbits alone.
    """

    dimension: int
    acts_on: ClassVar[type] = GeodesicManifold
    """Class of the manifolds that the group acts on."""
    columns: int | None = None
    """Number of columns of the points that the group acts on; None for any."""

    @abstractmethod
    def act(self, total: GeodesicManifold, point: Tensor, element: Tensor) -> Tensor:
        """Move a point along its orbit by a group element."""

    @abstractmethod
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the element that acts as `first` and then `second`."""

    @abstractmethod
    def exponential(self, algebra: Tensor) -> Tensor:
        """Return the group element at the end of a one-parameter subgroup."""

    @abstractmethod
    def vertical(self, total: GeodesicManifold, point: Tensor, algebra: Tensor) -> Tensor:
        """Return the velocity of act(point, exponential(t algebra)) at t = 0."""

    @abstractmethod
    def momentum(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        """Return the adjoint of `vertical`: M with sum(M * algebra) = ⟨vector, vertical(point, algebra)⟩.

        It is conserved along geodesics (Noether), and zero exactly where the vector is horizontal.
        """

    @abstractmethod
    def vertical_generator(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        """Return the algebra element whose vertical vector is the orthogonal projection of a tangent
        vector.
        """

    @abstractmethod
    def align(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        """Return the representative of a point's orbit that is nearest to another point."""

    def formulation(self, total: GeodesicManifold) -> str | None:
        """Return the class `package.module:Class` that states Fréchet problems on the quotient; None for
        the nested one, which aligns the data anew at every point. Derived: None.
        """
        return None

    def realign(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        """Align again a representative that is nearly aligned. Derived: by `align`, from scratch."""
        return self.align(total, point, to)

    @abstractmethod
    def extrinsic_mean(self, total: GeodesicManifold, points: Tensor, weights: Tensor) -> Tensor:
        """Average orbits (T, K, ...) with weights (T, K) cheaply: a start for the mean, in any order of the
        points.
        """

    @abstractmethod
    def random_algebra(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw standard normal elements of the algebra, one per module."""

    @abstractmethod
    def random_element(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw group elements of every component, one per module."""


@final
class QuotientManifold(GeodesicManifold):
    """The orbits of a symmetry: any representative of an orbit is the point, horizontal vectors are the
    tangents.

    Distances are those of aligned representatives. Source: Boumal 2023, ch. 9; Huckemann, Hotz, Munk 2010.

    Args:
        total: The manifold the group acts on.
        action: The group.

    Raises:
        RecipeError: The group does not act on this manifold.
    """

    def __init__(self, total: GeodesicManifold, action: GroupAction) -> None:
        if not isinstance(total, action.acts_on):
            raise RecipeError(
                f"{type(action).__name__} acts on {action.acts_on.__name__}, and {total} is of class "
                f"{type(total).__name__}: give it a {action.acts_on.__name__}, or write a GroupAction "
                "that acts on yours"
            )
        if action.columns not in (None, total.point_shape[1]):
            raise RecipeError(
                f"this {type(action).__name__} acts on points of {action.columns} columns; those of {total} "
                f"have {total.point_shape[1]}"
            )
        name = f"Quotient of {total} by {type(action).__name__}"
        dimension = total.dim // total.k - action.dimension
        super().__init__(name, dimension, **total.options)
        self.total = total
        self.action = action

    @property
    def point_shape(self) -> tuple[int, int]:
        """Rows and columns of one module's point."""
        return self.total.point_shape

    def with_modules(self, k: int) -> Self:
        """Return this manifold with k modules."""
        return type(self)(self.total.with_modules(k), self.action)

    def align(self, point: Tensor, to: Tensor) -> Tensor:
        """Return the representative of `point` nearest to `to`. Law: depends on the orbits alone."""
        return self.action.align(self.total, point, to)

    def horizontal(self, point: Tensor, vector: Tensor) -> Tensor:
        """Remove the component of a tangent vector along the orbit."""
        gauge = self.action.vertical_generator(self.total, point, vector)
        return vector - self.action.vertical(self.total, point, gauge)

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the total space's inner products."""
        return self.total.inner_products(point, a, b)

    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Project onto the horizontal space."""
        return self.horizontal(point, self.total.projection(point, vector))

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Return the total space's gradient, which is horizontal where the function is constant on
        orbits.
        """
        return self.total.euclidean_to_riemannian_gradient(point, euclidean_gradient)

    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Lower in the total space."""
        return self.total.riemannian_to_euclidean_gradient(point, tangent_vector)

    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Retract in the total space."""
        return self.total.retraction(point, tangent_vector)

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Carry in the total space, then take the horizontal part: isometric up to what turns vertical."""
        return self.projection(point_b, self.total.transport(point_a, point_b, tangent_vector_a))

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Return the horizontal part of the total space's derivative (Boumal 2023, thm. 9.43)."""
        return self.horizontal(point, self.total.covariant_derivative(point, direction, field, derivative))

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a horizontal geodesic of the total space."""
        return self.total.geodesic(point, tangent_vector)

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Align b to a, then take the total space's logarithm; exp reaches the orbit of b."""
        return self.total.logarithm(point_a, self.align(point_b, to=point_a))

    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether a representative is a point of the total space."""
        return self.total.feasible(point)

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Average orbits by the action's own cheap average."""
        return self.action.extrinsic_mean(self.total, points, weights)

    def reduce(self, points: Tensor) -> Reduction:
        """Reduce the total space; the group acts there in the same way."""
        small = self.total.reduce(points)
        return Reduction(type(self)(small.manifold, self.action), small.points, small.lift)

    def random_point(self) -> Tensor:
        """Draw a representative."""
        return self.total.random_point()
