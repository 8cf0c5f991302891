"""What an optimizer needs to know of a Fréchet problem, whatever the points are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, TypeAlias

from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

Point: TypeAlias = Any
"""A torch tensor (K, ...) on our manifolds; whatever Pymanopt's own manifolds use on theirs."""


class Evaluation(NamedTuple):
    """One pass over all logarithms at a point.

    Attributes:
        cost: F per module (K,), float64; +inf where the point is infeasible or a logarithm was not found.
        gradient: Riemannian gradient on the search manifold; zero in modules of infinite cost.
        norms: Its length per module (K,).
        squared: Squared distances (T, K).
        vertical: Length of the part of each logarithm along the orbit (T, K): zero where data are aligned.
        state: What the formulation wants back when an optimizer accepts this point.
        coarse: Of which modules the logarithms are of single precision, boolean (K,); None where there are no
            such passes.
    """

    cost: Tensor
    gradient: Point
    norms: Tensor
    squared: Tensor
    vertical: Tensor
    state: Any = None
    coarse: Tensor | None = None

    def narrowed(self, modules: Tensor) -> Evaluation:
        """Return the same for some of the modules (of a formulation on tensors)."""
        return Evaluation(
            self.cost[modules],
            self.gradient[modules],
            self.norms[modules],
            self.squared[:, modules],
            self.vertical[:, modules],
            None if self.state is None else self.state.narrowed(modules),
            None if self.coarse is None else self.coarse[modules],
        )

    def replaced(self, modules: Tensor, other: Evaluation) -> Evaluation:
        """Return the same with another evaluation of some of the modules (of a formulation on tensors)."""
        return Evaluation(
            self.cost.index_copy(0, modules, other.cost),
            self.gradient.index_copy(0, modules, other.gradient),
            self.norms.index_copy(0, modules, other.norms),
            self.squared.index_copy(1, modules, other.squared),
            self.vertical.index_copy(1, modules, other.vertical),
            None if self.state is None else self.state.replaced(modules, other.state),
            None
            if self.coarse is None or other.coarse is None
            else self.coarse.index_copy(0, modules, other.coarse),
        )


class Formulation(ABC):
    """What an optimizer moves on, and how the cost is computed there. Abstract; one for each kind of
    manifold.
    """

    manifold: Manifold
    k: int
    # Of which modules passes may be of single precision, (K,) on the host: for who knows of their noise to
    # say. None where there are no such passes.
    coarse: Tensor | None = None

    @abstractmethod
    def evaluate(self, point: Point, *, tight: bool = False) -> Evaluation:
        """Compute cost and gradient of every module in one pass: to the precision that the last accepted
        point calls for, or, tight, to round-off.
        """

    @abstractmethod
    def certify(self, point: Point) -> tuple[Evaluation, Tensor]:
        """Compute the same by the manifold's own logarithms, from scratch; and the distances (T, K) between
        exp(log) and the data, which are zero for a logarithm, however it was found.
        """

    @abstractmethod
    def accept(self, evaluation: Evaluation) -> None:
        """Take note of the iterate that an optimizer moves on from."""

    @abstractmethod
    def precondition(self, point: Point, vector: Point, evaluation: Evaluation) -> Point:
        """Apply the inverse of a model of the Hessian, positive definite, to a tangent vector."""

    @abstractmethod
    def inner_products(self, point: Point, a: Point, b: Point) -> Tensor:
        """Return the metric per module (K,)."""

    @abstractmethod
    def scaled(self, factor: Tensor, vector: Point) -> Point:
        """Multiply each module's tangent vector by its own factor (K,)."""

    @abstractmethod
    def move(self, point: Point, step: Tensor, direction: Point) -> Point:
        """Move each module by its own step (K,) along its own direction."""

    @abstractmethod
    def choose(self, mask: Tensor, a: Point, b: Point) -> Point:
        """Take module by module from a where the mask (K,) holds, else from b."""

    @abstractmethod
    def differentiate(
        self,
        point: Point,
        direction: Point,
        field: Point,
        ahead: tuple[Point, Point],
        behind: tuple[Point, Point],
    ) -> Point:
        """Turn values of a tangent field into its derivative along a direction.

        Args:
            point: The point x.
            direction: Tangent vector at x.
            field: Value of the field at x.
            ahead: The point where x is moved by the direction, and the value there.
            behind: The point where x is moved by minus the direction, and the value there.
        """

    @abstractmethod
    def start(self, initial_point: Point | None) -> Point:
        """Return where to begin: a deterministic average, or a user's own point."""

    @abstractmethod
    def solution(self, point: Point) -> Point:
        """Return the mean itself, on the manifold that was asked for."""
