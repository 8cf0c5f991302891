"""All problems are reported at once, as a fault of one kind with its exit code."""

from __future__ import annotations

import pytest

from riemerge.errors import AdapterError, OutputError, RecipeError, RiemergeError, may_pass, try_each


def test_a_fault_has_its_problems_line_by_line() -> None:
    assert str(AdapterError("one")) == "one"
    fault = RecipeError(text for text in ("one", "two"))
    assert fault.problems == ("one", "two")
    assert str(fault) == "one\ntwo"


def test_problems_are_refused_by_their_kind_and_none_are_no_fault() -> None:
    AdapterError.refuse([])
    AdapterError.refuse(iter(()))
    with pytest.raises(AdapterError) as caught:
        AdapterError.refuse(text for text in ("one", "two"))
    assert caught.value.problems == ("one", "two")


def test_every_item_is_tried_and_the_problems_of_all_come_at_once() -> None:
    def halve(number: int) -> int:
        if number % 2:
            raise AdapterError([f"{number} is odd", "expected an even number"])
        return number // 2

    assert try_each(halve, iter([2, 4])) == [1, 2]
    assert try_each(halve, []) == []
    with pytest.raises(AdapterError) as caught:
        try_each(halve, [2, 3, 4, 5])
    assert caught.value.problems == (
        *("3 is odd", "expected an even number"),
        *("5 is odd", "expected an even number"),
    )


def test_another_fault_of_an_item_is_not_collected() -> None:
    def fail(_: int) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        try_each(fail, [1, 2])


def test_each_kind_has_an_exit_code_of_its_own() -> None:
    kinds: list[type[RiemergeError]] = [RiemergeError, *RiemergeError.__subclasses__()]
    assert len({kind.exit_code for kind in kinds}) == len(kinds)


def test_a_command_may_go_on_after_a_full_disk_but_not_after_a_bad_recipe() -> None:
    assert may_pass(OutputError("the disk is full"))
    assert may_pass(KeyboardInterrupt())
    assert not may_pass(RecipeError("no such method"))
