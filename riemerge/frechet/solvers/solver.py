"""What a solver is: a value with a name, its options, and when it stops."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, final

from riemerge.errors import RecipeError

if TYPE_CHECKING:
    from riemerge.frechet.formulation import Point
    from riemerge.frechet.solvers.watch import Watch


def option(default: Any, holds: Callable[[Any], bool], expected: str) -> Any:
    """Return the field of a solver's option, which is refused where a condition does not hold.

    Args:
        default: Value unless another is given.
        holds: The condition.
        expected: The condition in words, which follow "expected".
    """
    return field(default=default, metadata={"options": [(holds, expected)]})


def one_of(default: str, known: Iterable[str]) -> Any:
    """Return the field of a solver's option that is one of some words.

    Args:
        default: Value unless another is given.
        known: The words.
    """
    words = tuple(known)
    return option(default, words.__contains__, f"one of {', '.join(words)}")


def is_count(value: Any) -> bool:
    """Tell whether an option is a whole number >= 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_tolerance(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


def _is_time(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and value > 0)


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
        RecipeError: A tolerance or a budget that is none; an `option` whose condition does not hold.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Descent(Solver):
        ...     share: float = 0.5
        ...
        ...     def run(self, watch, x):
        ...         while watch.accept(x):
        ...             x = watch.move(x, -self.share, watch.gradient(x))
    """

    tol: float = option(1e-8, _is_tolerance, "a finite number >= 0")
    cost_tol: float = option(0.0, _is_tolerance, "a finite number >= 0")
    max_passes: int = option(1000, is_count, "a whole number, at least 1")
    max_seconds: float | None = option(None, _is_time, "a positive number")

    coarse: ClassVar[bool] = False
    """Whether passes may be of single precision. Most solvers need more of a cost than that it falls: its
    minimum along a direction, for whose noise conjugate gradients take half as many passes more, or the ratio
    to what a model promised."""

    @final
    def __post_init__(self) -> None:
        for known in fields(self):
            value = getattr(self, known.name)
            for holds, expected in known.metadata.get("options", ()):
                if not holds(value):
                    raise RecipeError(f"{known.name} is {value!r}; expected {expected}")

    @abstractmethod
    def run(self, watch: Watch, start: Point) -> None:
        """Move from a start until `watch.accept` of an iterate is False."""
