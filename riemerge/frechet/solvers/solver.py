"""What a solver is: a value with a name, its options, and when it stops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from riemerge.errors import RecipeError

if TYPE_CHECKING:
    from riemerge.frechet.formulation import Point
    from riemerge.frechet.solvers.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """How a Fréchet mean is found, and when the search for it ends. Abstract; solvers are frozen values.

    A solver of one's own is a frozen dataclass with a `run`; its fields are its options. The watch says what
    it asks of the problem, and ends it: `accept` is False when every module is converged or the budget spent.

    Attributes:
        tol: Converged where ‖gradient‖ <= tol * max(1, √(2 F)).
        cost_tol: Flat where a few iterates lower F by at most this share; 0 to switch off.
        max_passes: Budget of passes over all logarithms; those at the start may exceed it.
        max_seconds: Budget of wall time in seconds; none by default. Results that ran out of it are not
            reproducible.

    Raises:
        RecipeError: A tolerance or a budget that is none.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Descent(Solver):
        ...     share: float = 0.5
        ...
        ...     def run(self, watch, x):
        ...         while watch.accept(x):
        ...             x = watch.move(x, -self.share, watch.gradient(x))
    """

    tol: float = 1e-8
    cost_tol: float = 0.0
    max_passes: int = 1000
    max_seconds: float | None = None

    coarse: ClassVar[bool] = False
    """Whether passes may be of single precision. Most solvers need more of a cost than that it falls: its
    minimum along a direction, for whose noise conjugate gradients take half as many passes more, or the ratio
    to what a model promised."""

    def __post_init__(self) -> None:
        for name, value in (("tol", self.tol), ("cost_tol", self.cost_tol)):
            if not (np.isfinite(value) and value >= 0):
                raise RecipeError(f"{name} is {value}; expected a finite number >= 0")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise RecipeError(f"max_seconds is {self.max_seconds}; expected a positive number")
        if self.max_passes < 1:
            raise RecipeError(f"max_passes is {self.max_passes}; at least 1 is needed")

    @abstractmethod
    def run(self, watch: Watch, start: Point) -> None:
        """Move from a start until `watch.accept` of an iterate is False."""
