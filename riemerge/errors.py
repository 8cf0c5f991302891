"""What can go wrong, by kind. Each kind has the exit code that the command line ends with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class RiemergeError(Exception):
    """A fault that a user can act on: says where, what was found, what was expected, what to do.

    What a merge, a soup, a sweep or an evaluation wrote before it, its notes (`__notes__`) say.

    Args:
        problems: One text, or every problem found (they are reported together).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


def may_pass(fault: BaseException) -> bool:
    """Return whether the same command may go on where it ended: not after a refusal of what it was given."""
    return not isinstance(fault, RecipeError | AdapterError | NumericalError)


class RecipeError(RiemergeError):
    """What was asked makes no sense: an unknown method, a bad weight, too few adapters."""

    exit_code = 3


class AdapterError(RiemergeError):
    """An input (adapter, checkpoint, statistics) cannot be read exactly, or inputs do not fit each other."""

    exit_code = 4


class NumericalError(RiemergeError):
    """The mathematics has no answer for these numbers: a cut locus, a rank-deficient update, overflow."""

    exit_code = 5


class OutputError(RiemergeError):
    """The output cannot be written where it was asked for; what is there all the same, its notes say."""

    exit_code = 6


class ResourceError(RiemergeError):
    """The machine lacks what was asked for: a device, memory, an optional package."""

    exit_code = 7
