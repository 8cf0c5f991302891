"""What an optimizer needs to know of a Fréchet problem, whatever the points are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, final

from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

from riemerge.frechet.loss import Objective

Point: TypeAlias = Any
"""A torch tensor (K, ...) on our manifolds; whatever Pymanopt's own manifolds use on theirs."""

Known = TypeVar("Known")


class Evaluation(NamedTuple):
    """One pass over all logarithms at a point.

    Attributes:
        cost: F per module (K,), float64; +inf where the point is infeasible or a logarithm was not found.
        gradient: Riemannian gradient on the search manifold; zero in modules of infinite cost.
        norms: Length of the gradient per module (K,).
        squared: Squared distances (T, K).
        vertical: Length of the part of each logarithm along the orbit (T, K): zero where data are aligned.
        state: The pass itself, which the formulation wants back when an optimizer accepts this point; None
            where it keeps nothing.
    """

    cost: Tensor
    gradient: Point
    norms: Tensor
    squared: Tensor
    vertical: Tensor
    state: Any = None

    @property
    def coarse(self) -> Tensor | None:
        """Modules whose logarithms are of single precision, boolean (K,); None where there are no such
        passes.
        """
        coarse: Tensor | None = getattr(self.state, "coarse", None)
        return coarse

    def narrow(self, modules: Tensor) -> Evaluation:
        """Return the evaluation of some of the modules (of a formulation on tensors)."""
        parts = (x.index_select(axis, modules) for x, axis in zip(self[:5], _AXES, strict=True))
        return Evaluation._make((*parts, self.state and self.state.narrow(modules)))

    def replace(self, modules: Tensor, other: Evaluation) -> Evaluation:
        """Return this evaluation with another one of some of the modules (of a formulation on tensors)."""
        parts = (
            x.index_copy(axis, modules, y) for x, y, axis in zip(self[:5], other[:5], _AXES, strict=True)
        )
        return Evaluation._make((*parts, self.state and self.state.replace(modules, other.state)))


# Axes along which the tensors of an evaluation have their modules.
_AXES = (0, 0, 0, 1, 1)


@final
class Memory(Generic[Known]):
    """What is known of the two points that were last asked for; points are told apart by identity."""

    def __init__(self) -> None:
        self._known: list[tuple[Point, Known]] = []

    def __contains__(self, point: Point) -> bool:
        return any(known is point for known, _ in self._known)

    def recall(self, point: Point) -> Known | None:
        """Return what is known of a point, None where nothing is."""
        for known, value in self._known:
            if known is point:
                self.keep(point, value)
                return value
        return None

    def keep(self, point: Point, value: Known) -> Known:
        """Remember the value of a point, and return it; forget the point asked for the longest ago."""
        others = [pair for pair in self._known if pair[0] is not point]
        self._known = [(point, value), *others[:1]]
        return value


class Formulation(ABC):
    """What an optimizer moves on, and how the cost is computed there. Abstract; one for each kind of
    manifold.
    """

    manifold: Manifold
    objective: Objective
    k: int
    by_logarithms: bool = True
    """Whether a pass takes a logarithm for each datum and module."""
    aligns: bool = False
    """Whether a pass aligns each datum to the point."""
    coarse: Tensor | None = None
    """Modules that may be evaluated in single precision, boolean (K,) on the host: set by the solver, which
    knows what noise it tolerates. None where there are no such passes."""

    @abstractmethod
    def evaluate(self, point: Point, *, tight: bool = False) -> Evaluation:
        """Compute cost and gradient of every module in one pass: to the precision that the last accepted
        point calls for, or, tight, to round-off.
        """

    @abstractmethod
    def certify(self, point: Point) -> tuple[Evaluation, Tensor]:
        """Compute cost and gradient by the manifold's own logarithms, from scratch; and the distances (T, K)
        between exp(log) and the data, which are zero for a logarithm, however it was found.
        """

    @abstractmethod
    def resolution(self) -> Tensor:
        """Return the squared distance of a datum from a copy of it as it is computed, (K,)."""

    @abstractmethod
    def accept(self, evaluation: Evaluation) -> None:
        """Take note of the iterate that an optimizer goes on from."""

    @abstractmethod
    def precondition(self, point: Point, vector: Point, evaluation: Evaluation) -> Point:
        """Apply the inverse of a model of the Hessian, positive definite, to a tangent vector."""

    @abstractmethod
    def inner_products(self, point: Point, a: Point, b: Point) -> Tensor:
        """Return the metric per module (K,)."""

    @abstractmethod
    def scale(self, factor: Tensor, vector: Point) -> Point:
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
        step: Tensor,
        direction: Point,
        field: Point,
        ahead: tuple[Point, Point],
        behind: tuple[Point, Point],
    ) -> Point:
        """Turn values of a tangent field into its derivative along a direction, by central differences.

        Args:
            point: The point x.
            step: How far each module was moved (K,); zero where its direction is.
            direction: Tangent vector at x.
            field: Value of the field at x.
            ahead: The point where x is moved by the step along the direction, and the value there.
            behind: The point where x is moved by minus the step, and the value there.
        """

    @abstractmethod
    def start(self, initial_point: Point | None) -> Point:
        """Return where to begin: a deterministic average, or a user's own point."""

    @abstractmethod
    def solution(self, point: Point) -> Point:
        """Return the mean itself, on the manifold that was asked for."""


class PlainFormulation(Formulation, ABC):
    """A formulation that moves on the manifold that was asked for. Abstract."""

    anchor: Evaluation | None = None
    """What is known of the last iterate."""

    @abstractmethod
    def average(self) -> Point:
        """Return a deterministic average of the data, cheap to find."""

    @final
    def accept(self, evaluation: Evaluation) -> None:
        """Keep what is known of the iterate."""
        self.anchor = evaluation

    @final
    def precondition(self, point: Point, vector: Point, evaluation: Evaluation) -> Point:
        """Divide by the sum of the weights of the logarithms: the Hessian is near that."""
        pull = self.objective.pull(evaluation.squared)
        return self.scale(1 / self.objective.stiffness(pull), vector)

    @final
    def start(self, initial_point: Point | None) -> Point:
        """Return the average, or a user's point."""
        if initial_point is None:
            return self.average()
        return initial_point

    @final
    def solution(self, point: Point) -> Point:
        """Return the point itself."""
        return point
