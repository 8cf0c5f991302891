"""What a geometry is: how the updates of a module become points of a manifold, and a point an update."""

from __future__ import annotations

from abc import ABC
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias, final

from torch import Tensor

from riemerge.manifolds import TorchManifold
from riemerge.methods.method import Domain
from riemerge.methods.setting import Answer, Setting
from riemerge.methods.stack import Evidence


@final
@dataclass(frozen=True, eq=False)
class Placed:
    """The points of one module: a Fréchet problem without its loss.

    Attributes:
        manifold: A manifold of one module (K = 1). Problems of manifolds of one name and points of one shape
            are solved side by side, so the name must tell manifolds apart.
        points: T points (T, rows, columns), float64.
        weights: T weights (T,); those of the setting where there are none.
        start: Point (rows, columns) where the solver begins; the solver's own where there is none.
        options: Options of the solver that are this problem's own, such as `tol`.
    """

    manifold: TorchManifold
    points: Tensor
    weights: Tensor | None = None
    start: Tensor | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Solved(NamedTuple):
    """The Fréchet mean of what a geometry placed.

    Attributes:
        point: The mean (rows, columns).
        evidence: How it was found, and its certificate.
    """

    point: Tensor
    evidence: Evidence


Steps: TypeAlias = Generator[Placed, Solved, Tensor | Answer]
"""A mean in steps: what to solve is yielded, its solution comes back, and at last the mean is returned."""


class Geometry(ABC):  # noqa: B024 (one states its `manifold`, `place` or `mean`: whichever it has)
    """How updates become points of a manifold, and a point an update. Abstract; geometries are frozen values.

    The least of one is `manifold`: updates (T, p, q), in orthonormal bases of their joint column and row
    spaces, are then points of it as they are, and so is the mean. What else is here is derived, and may be
    stated instead.

    Law: the mean is a function of the updates and the weights, whatever the order of the models.

    Attributes:
        domain: What the geometry sees of a module (see `riemerge.methods.setting.Mean`).

    Example:
        >>> class Mine(Geometry):
        ...     def manifold(self, rows, columns):
        ...         return Euclidean(rows, columns)
    """

    domain: ClassVar[Domain] = "span"

    def manifold(self, rows: int, columns: int) -> TorchManifold:
        """Return the manifold of points of so many rows and columns, of one module.

        Derived: there is none; state it, or `place` or `mean` in its stead.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `manifold`: it is needed to place updates")

    def closed(self, x: Tensor, setting: Setting) -> Tensor | Answer | None:
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

    def mean(self, x: Tensor, setting: Setting) -> Steps:
        """Say what to solve, and what the solutions mean.

        Derived: one problem, that of `place`; state it where there are several, one after the other.
        """
        solved = yield self.place(x, setting)
        return self.update(solved.point, x, setting)
