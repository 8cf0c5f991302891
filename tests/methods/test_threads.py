"""Modules are worked on in order, on any number of threads."""

from __future__ import annotations

import threading

import pytest

from riemerge.methods.threads import in_order


def test_a_fault_comes_out_in_its_turn_and_tells_the_others() -> None:
    cancelled, ended = threading.Event(), []

    def work(item: int) -> int:
        if item == 1:
            raise ZeroDivisionError
        if item == 2:
            ended.append(cancelled.wait(60))
        return item

    results = in_order(work, range(9), 2, cancelled)
    assert next(results) == 0
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert cancelled.is_set()
    assert all(ended)  # had it not been told, it would have waited in vain
