"""Symmetries, and the manifold of their orbits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self, final

import numpy as np
import torch
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.manifolds.base import (
    GeodesicManifold,
    Logarithm,
    Reduction,
    solve_form,
    trivial_reduction,
    unit_matrices,
)

# Averages of the derived extrinsic mean; it is a start.
_MEAN_SWEEPS = 2


class GroupAction(ABC):
    """A group that acts on a manifold by isometries, from the right. Abstract: a symmetry is `act`, `align`
    and `vertical`.

    Group elements and elements of the algebra are tensors (..., a, b) with one element per module. A verb
    whose docstring says "Derived" is derived from the others, for groups of matrices; state it where a
    closed form is known. A discrete group has dimension 0, and vertical vectors of zero.

    Laws (run by `checks.check_action`): act(act(x, g), h) = act(x, g h); distances are invariant; `vertical`
    is the derivative of `act` at the identity, and zero for zero alone; `horizontal` is orthogonal to every
    vertical vector and idempotent; `align` returns a point of the same orbit and depends on the orbits alone.

    Attributes:
        dimension: Dimension of the group.
        shape: Rows and columns of an element.
        columns: Number of columns of the points that the group acts on; None for any.
        reducible: Whether the group acts in the same way on what `GeodesicManifold.reduce` makes of the
            points. Where it does not, problems are not reduced.
    """

    dimension: int
    shape: tuple[int, int]
    columns: int | None = None
    reducible: bool = False

    @abstractmethod
    def act(self, total: GeodesicManifold, point: Tensor, element: Tensor) -> Tensor:
        """Move a point along its orbit by a group element."""

    @abstractmethod
    def align(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        """Return the representative of a point's orbit that is nearest to another point.

        The leading axes of both broadcast.
        """

    @abstractmethod
    def vertical(self, total: GeodesicManifold, point: Tensor, algebra: Tensor) -> Tensor:
        """Return the velocity of act(point, exponential(t algebra)) at t = 0: linear in the algebra."""

    def require(self, total: GeodesicManifold) -> None:
        """Raise where the group does not act on a manifold. Derived: where the number of columns differs.

        Raises:
            RecipeError: The group does not act on this manifold.
        """
        if self.columns not in (None, total.point_shape[1]):
            raise RecipeError(
                f"this {type(self).__name__} acts on points of {self.columns} columns; those of {total} "
                f"have {total.point_shape[1]}"
            )

    def formulation(self, total: GeodesicManifold) -> str | None:
        """Return what states Fréchet problems on the quotient: `joint`, where alignments are variables of
        updates, or a class `package.module:Class`; None for the nested form, which aligns the data anew at
        every point. Derived: None.
        """
        return None

    def realign(
        self, total: GeodesicManifold, point: Tensor, to: Tensor, tolerance: Tensor | None = None
    ) -> Tensor:
        """Align again a representative that is nearly aligned. Derived: by `align`, from scratch.

        Args:
            total: The manifold of both points.
            point: Nearly aligned points.
            to: Points to align to; the leading axes of both broadcast.
            tolerance: What may be left of the vertical part of each logarithm, in the shape of the leading
                axes [default: round-off].
        """
        return self.align(total, point, to)

    def project(self, matrix: Tensor) -> Tensor:
        """Project matrices (..., a, b) orthogonally onto the algebra. Derived: the identity, and zero for a
        discrete group.
        """
        if self.dimension == 0:
            return torch.zeros_like(matrix)
        return matrix

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the element that acts as `first` and then `second`. Derived: the product of matrices."""
        return first @ second

    def exponential(self, algebra: Tensor) -> Tensor:
        """Return the group element at the end of a one-parameter subgroup. Derived: the exponential of
        matrices.
        """
        return torch.linalg.matrix_exp(algebra)

    def momentum(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        """Return the adjoint of `vertical`: M with sum(M * algebra) = ⟨vector, vertical(point, algebra)⟩.

        It is conserved along geodesics (Noether), and zero exactly where the vector is horizontal. Derived:
        by torch.
        """
        leading = np.broadcast_shapes(point.shape[:-2], vector.shape[:-2])
        zero = torch.zeros(*leading, *self.shape, dtype=torch.float64, device=vector.device)

        def pair(algebra: Tensor) -> Tensor:
            vertical = self.vertical(total, point, self.project(algebra))
            return total.inner_products(point, vector, vertical).sum()

        return torch.func.grad(pair)(zero)

    def vertical_generator(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        """Return the algebra element whose vertical vector is the orthogonal projection of a tangent
        vector. Derived: by a linear solve in the entries of the algebra.
        """
        momentum = self.momentum(total, point, vector)
        if self.dimension == 0:
            return momentum
        units = self.project(unit_matrices(momentum[(0,) * (momentum.ndim - point.ndim)]))
        lowered = self.momentum(total, point, self.vertical(total, point, units))
        return solve_form(units, lowered, momentum)

    def extrinsic_mean(self, total: GeodesicManifold, points: Tensor, weights: Tensor) -> Tensor:
        """Average orbits (T, K, ...) with weights (T, K) cheaply: a start for the mean, in any order of the
        points.

        Derived: all are aligned to the point that is nearest to them, and averaged in the total space; then
        aligned to that average, and averaged again.
        """
        aligned = self.align(total, points, points.unsqueeze(1))
        errors = total.projection(points.unsqueeze(1), aligned - points.unsqueeze(1))
        apart = (weights * total.norms(points.unsqueeze(1), errors).square()).sum(dim=1)
        nearest = apart.nan_to_num(nan=torch.inf).argmin(dim=0)
        mean = points[nearest, torch.arange(points.shape[1], device=points.device)]
        for _ in range(_MEAN_SWEEPS):
            moved = total.extrinsic_mean(self.align(total, points, mean), weights)
            # Where a point cannot be aligned there is no average: the last one stays.
            mean = torch.where(total.feasible(moved)[..., None, None], moved, mean)
        return mean

    def random_algebra(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw elements of the algebra, one per module. Derived: projections of standard normal matrices."""
        return self.project(torch.randn(*leading, *self.shape, generator=generator, dtype=torch.float64))

    def random_element(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw group elements of every component, one per module. Derived: exponentials; state it where the
        group has several components.
        """
        return self.exponential(self.random_algebra(leading, generator))


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
        action.require(total)
        name = f"Quotient of {total} by {type(action).__name__}"
        dimension = total.dim // total.k - action.dimension
        super().__init__(name, dimension, total.point_shape, **total.options)
        self._generator = total._generator  # of one seed, vectors would be the numbers of points
        self.total = total
        self.action = action

    def with_modules(self, k: int) -> Self:
        """Return this manifold with k modules."""
        return type(self)(self.total.with_modules(k), self.action)

    def align(self, point: Tensor, to: Tensor) -> Tensor:
        """Return the representative of `point` nearest to `to`. Law: depends on the orbits alone."""
        return self.action.align(self.total, point, to).to(point.dtype)

    def horizontal(self, point: Tensor, vector: Tensor) -> Tensor:
        """Remove the component of a tangent vector along the orbit."""
        gauge = self.action.vertical_generator(self.total, point, vector)
        return vector - self.action.vertical(self.total, point, gauge).to(vector.dtype)

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
        """Reduce the total space, where the group acts on what is left in the same way."""
        if not self.action.reducible:
            return trivial_reduction(self, points)
        small = self.total.reduce(points)
        return Reduction(type(self)(small.manifold, self.action), small.points, small.lift)

    def random_point(self) -> Tensor:
        """Draw a representative."""
        return self.total.random_point()
