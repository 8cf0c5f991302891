"""Work on many modules by several threads, in their order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

_In = TypeVar("_In")
_Out = TypeVar("_Out")


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
