"""Reducing modules one at a time: each is read, brought to its joint span, and dropped."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

from riemerge.errors import NumericalError
from riemerge.methods.stack import Edit, Options, Stack
from riemerge.updates.low_rank import JointSpan, LowRankUpdate

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Reduced(NamedTuple):
    """One module in its joint span.

    Attributes:
        span: What lifts small updates to the module's own size.
        inputs: The T updates, small, as they were read.
        edited: The T small updates after the edits of the method.
        problems: Why an edit has no answer, for each such update.
    """

    span: JointSpan
    inputs: tuple[LowRankUpdate, ...]
    edited: tuple[LowRankUpdate, ...]
    problems: tuple[str, ...]


def reduce_module(stack: Stack, edits: Sequence[Edit], options: Options, module: str) -> Reduced:
    """Read one module, reduce it to its joint span, and edit its updates there."""
    span = JointSpan(stack.low_rank(module))
    edited: list[LowRankUpdate] = []
    problems: list[str] = []
    for name, update in zip(stack.names, span.updates, strict=True):
        result = update
        try:
            for edit in edits:
                result = edit(result, options)
        except NumericalError as fault:
            problems += [f"{name}: {module}: {problem}" for problem in fault.problems]
        edited.append(result)
    return Reduced(span, span.updates, tuple(edited), tuple(problems))


def in_order(
    work: Callable[[_In], _Out],
    items: Iterable[_In],
    threads: int,
    cancelled: threading.Event | None = None,
) -> Iterator[_Out]:
    """Yield the result of each item in the order of the items, worked on by so many threads.

    Law: the results are those of one thread, bit for bit, where `work` depends on its item alone. At most
    `threads` + 1 results wait for the one before them, so memory does not grow with the items. A fault of
    one item comes out in its turn.

    Args:
        work: Called on each item; torch has one thread within it.
        items: Taken as they are needed.
        threads: At least 1, for none but the caller's own.
        cancelled: Set when no more results are wanted, for work that can end early.
    """
    if threads <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[_Out]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        if cancelled is not None:
            cancelled.set()
        pool.shutdown(cancel_futures=True)
