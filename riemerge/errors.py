"""What can go wrong, by kind. Each kind has the exit code that the command line ends with."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterable
from typing import ClassVar, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class RiemergeError(Exception):
    """A fault that a user can act on: says where, what was found, what was expected, what to do.

    Its notes (`__notes__`) say what a merge, a soup, a sweep or an evaluation wrote before it.

    Args:
        problems: One text, or every problem found (they are reported together).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    @classmethod
    def refuse(cls, problems: Iterable[str]) -> None:
        """Raise a fault of this kind with all problems, if there are any."""
        if problems := tuple(problems):
            raise cls(problems)


def try_each(apply: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Apply a function to each item, and report the problems of all of them at once.

    Raises:
        RiemergeError: Every problem of every item, as a fault of the first one's kind.
    """
    results: list[_Result] = []
    faults: list[RiemergeError] = []
    for item in items:
        try:
            results.append(apply(item))
        except RiemergeError as fault:
            faults.append(fault)
    if faults:
        raise type(faults[0])(problem for fault in faults for problem in fault.problems)
    return results


def may_pass(fault: BaseException) -> bool:
    """Return whether the command that ended with a fault may go on if it is repeated.

    It may not where what it was given is refused.
    """
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
    """The output cannot be written where it was asked for; its notes say what is there all the same."""

    exit_code = 6


class ResourceError(RiemergeError):
    """The machine lacks what was asked for: a device, memory, an optional package."""

    exit_code = 7


def require_docstrings() -> None:
    """Refuse a Python without docstrings: Pymanopt 2.2 adds to its own as it is imported.

    Raises:
        ResourceError: Python was started with -OO.
    """
    if sys.flags.optimize > 1:
        raise ResourceError(
            "python: -OO (PYTHONOPTIMIZE=2) takes away docstrings, which Pymanopt needs: use -O"
        )


# As torch's allocators say it, in a RuntimeError.
_OUT_OF_MEMORY = re.compile(r"(can't|cannot) allocate memory|(out of|not enough) memory", re.IGNORECASE)
_MEMORY = "out of memory: use --threads 1, --dtype float32 (for adapters), or fewer models at a time"
_OF_OUTPUTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


def explain(fault: BaseException) -> tuple[str, int, tuple[str, ...]]:
    """Return the kind of any fault, its exit code and what to say: a `Bug` where it is none of ours."""
    if isinstance(fault, RiemergeError):
        return type(fault).__name__, fault.exit_code, fault.problems
    text, number = " ".join(str(fault).split()), getattr(fault, "errno", None)
    of_torch = isinstance(fault, RuntimeError) and _OUT_OF_MEMORY.search(text)
    if of_torch or isinstance(fault, MemoryError) or type(fault).__name__ == "OutOfMemoryError":
        lacking = _MEMORY
    elif isinstance(fault, RuntimeError) and "can't start new thread" in text:
        lacking = "no more threads can be started: use --threads 1, or raise the limit (ulimit -u)"
    elif number in {errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
        lacking = f"{text}: free some, or raise the limit (ulimit)"
    else:
        lacking = ""
    if lacking:
        return ResourceError.__name__, ResourceError.exit_code, (lacking,)
    if isinstance(fault, OSError):
        kind = OutputError if number in _OF_OUTPUTS else AdapterError
        where = f"{fault.filename}: " if fault.filename else ""
        return kind.__name__, kind.exit_code, (f"{where}{fault.strerror or text}",)
    return "Bug", 1, (f"a bug: {type(fault).__name__}: {text}",)
