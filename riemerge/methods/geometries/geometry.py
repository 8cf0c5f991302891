"""What a geometry is: how the updates of a module become points of a manifold, and a point an update."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, final

from torch import Tensor

from riemerge.methods.method import Domain
from riemerge.methods.setting import Answer, Setting
from riemerge.methods.stack import Evidence

if TYPE_CHECKING:
    from riemerge.manifolds import TorchManifold  # which brings Pymanopt, and no closed form needs it


@final
@dataclass(frozen=True, eq=False)
class Placed:
    """The points of one module: a Fréchet problem without its loss.

    Attributes:
        manifold: A manifold of one module (K = 1). Problems on manifolds that hold the same, of points of one
            shape, are solved side by side (see `riemerge.methods.fingerprint`).
        points: T points (T, rows, columns), float64.
        weights: T weights (T,); those of the setting where there are none.
        start: Point (rows, columns) where the solver begins; the solver's own where there is none.
        unit: Length to which tolerances are relative, of points that may be divided by it.
        options: Options of the solver, such as `tol`, where a recipe has none.
        apart: How far K points are from K others as updates, ‖dW − dW'‖ / ‖dW'‖ (K,), from a manifold of K
            modules and both; of the points as they are where there is none.
    """

    manifold: TorchManifold
    points: Tensor
    weights: Tensor | None = None
    start: Tensor | None = None
    unit: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    apart: Callable[[Any, Tensor, Tensor], Tensor] | None = None


class Solved(NamedTuple):
    """A mean: of what a geometry placed, or of the updates of a module.

    Attributes:
        value: The mean: a point (rows, columns), or at last a merged update in the geometry's domain.
        evidence: How it was found, and its certificate; of distances those to the points that were placed.
    """

    value: Any
    evidence: Evidence


Steps: TypeAlias = Generator[Placed, Solved, Solved]
"""A mean in steps: what to solve is yielded, its solution comes back, and at last the mean is returned."""


class Geometry(ABC):  # noqa: B024 (one states its `manifold`, `place` or `mean`: whichever it has)
    """How updates become points of a manifold, and a point an update. Abstract; geometries are frozen values.

    The least of one is `manifold`: updates (T, p, q), in orthonormal bases of their joint column and row
    spaces, are then points of it as they are, and so is the mean. What else is here is derived, and may be
    stated instead.

    Law: the mean is a function of the updates and the weights, whatever the order of the models.

    Example:
        >>> class Mine(Geometry):
        ...     def manifold(self, rows, columns):
        ...         return Euclidean(rows, columns)
    """

    @property
    def domain(self) -> Domain:
        """What the geometry sees of a module. Derived: `span`; state it where it sees something else."""
        return "span"

    @property
    def closed_domain(self) -> Domain:
        """What the geometry sees of a module under the square loss. Derived: `domain`; state it where the
        closed mean sees less.
        """
        return self.domain

    @property
    def by_rows(self) -> bool:
        """Whether `closed_mean` may be taken of runs of the rows of dense updates apart. Derived: it may not.

        Where the geometry sees inner products, whether the coefficients that it answers are the same whatever
        they are.
        """
        return False

    def manifold(self, rows: int, columns: int) -> TorchManifold:
        """Return the manifold of points of so many rows and columns, of one module.

        Derived: there is none; state it, or `place` or `mean` in its stead.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `manifold`: it is needed to place updates")

    def closed_mean(self, x: Tensor, setting: Setting) -> Tensor | Answer | None:
        """Return the mean under the square loss where it has a closed form; None where it has none.

        Derived: None; state it where a closed form is known.
        """
        return None

    def place(self, x: Tensor, setting: Setting) -> Placed:
        """Return the points of T updates.

        Derived: the updates themselves, on `manifold`; state it where they are no points of it.
        """
        rows, columns = x.shape[1:]
        return Placed(self.manifold(rows, columns), x)

    def update(self, point: Tensor, x: Tensor, setting: Setting) -> Tensor:
        """Return what the mean is as an update, in the geometry's domain.

        Derived: the point itself; state it where `place` is.
        """
        return point

    def mean(self, x: Any, setting: Setting) -> Steps:
        """Say what to solve, and what the solutions mean.

        Derived: one problem, that of `place`; state it where there are several, one after the other.
        """
        solved = yield self.place(x, setting)
        return solved._replace(value=self.update(solved.value, x, setting))


def spread(evidence: Evidence, present: Sequence[int], count: int) -> Evidence:
    """Return evidence about some of T points as evidence about all: of the others there are no distances."""
    if evidence.distances is None:
        return evidence
    known = dict(zip(present, evidence.distances, strict=True))
    return replace(evidence, distances=tuple(known.get(place) for place in range(count)))
