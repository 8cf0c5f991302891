"""The check of values: what is kept of them, and what is said of those that do not fit.

What a recipe says about parameters, with its paths and remedies, is in tests/recipes/test_recipe.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from riemerge.methods.parameters import (
    Parameter,
    check_value,
    choice,
    describe,
    energy_of,
    factor,
    is_last,
    positive,
    scalars,
    share,
)

RANK = Parameter("rank", "rank", "", low=1)
SHARE = share("share", "", open_low=True)
FORM = choice("form", "", ("joint", "nested"))
FLAG = Parameter("flag", "flag", "")
STARTS = Parameter("starts", "integer", "", low=1, words=("auto",))


def checked(spec: Parameter, value: object) -> tuple[Any, list[str]]:
    problems: list[str] = []
    return check_value(spec, value, "here", problems), problems


@pytest.mark.parametrize(
    ("spec", "value", "kept"),
    [
        (SHARE, 1, 1.0),
        (SHARE, [0.2, 1], [0.2, 1.0]),
        (SHARE, {"value": 0.5}, [{"value": 0.5}]),
        (
            SHARE,
            [{"filter": "q", "value": [0.1, 0.2]}, {"value": 1}],
            [{"filter": "q", "value": [0.1, 0.2]}, {"value": 1.0}],
        ),
        (RANK, 8, 8),
        (RANK, "sum", "sum"),
        (RANK, "95%", "95%"),
        (FORM, "joint", "joint"),
        (STARTS, "auto", "auto"),
        (FLAG, False, False),
    ],
)
def test_what_fits_is_kept_as_plain_data(spec: Parameter, value: object, kept: object) -> None:
    found, problems = checked(spec, value)
    assert problems == []
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("spec", "value", "problem"),
    [
        (SHARE, 0, "here: 0: expected more than 0"),
        (SHARE, 1.5, "here: 1.5: expected at most 1"),
        (SHARE, float("inf"), "here: inf: expected a finite number"),
        (SHARE, "0.5", "here: the text '0.5': expected a number: write 0.5 without quotes"),
        (SHARE, True, "here: the truth value true: expected a number"),
        (SHARE, [], "here: an empty list: expected at least one value"),
        (SHARE, {"filter": "q"}, "here[0].value: missing: a filter needs a value"),
        (share("gamma", "", open_high=True), 1, "here: 1: expected less than 1"),
        (factor("ridge", ""), -1, "here: -1: expected at least 0"),
        (positive("tol", ""), [1.0], "here: a list: expected a number, the same for all modules"),
        (RANK, 0, "here: 0: expected at least 1"),
        (RANK, "0%", "here: the text '0%': expected a whole number, 'sum', 'auto' or a share such as '95%'"),
        (
            FORM,
            "flat",
            "here: 'flat' is not known: expected 'joint' or 'nested'",
        ),
        (
            FLAG,
            "true",
            "here: the text 'true': expected true or false: write true without quotes",
        ),
        (Parameter("solver", "text", ""), "", "here: the text '': expected a text that is not empty"),
        (
            STARTS,
            1.5,
            "here: 1.5: expected a whole number or 'auto'",
        ),
    ],
)
def test_what_does_not_fit_is_said(spec: Parameter, value: object, problem: str) -> None:
    assert checked(spec, value)[1] == [problem]


def test_what_is_never_reached_is_said() -> None:
    assert is_last({"value": 1})
    assert not is_last({"filter": "q", "value": 1})
    _, problems = checked(SHARE, [{"value": 1}, {"filter": "q", "value": 0.5}])
    assert problems == ["here: the items after the first that is for every module are never reached"]


def test_every_scalar_has_its_path() -> None:
    value = [{"filter": "q", "value": [0.1, 0.2]}, {"value": 0.5}]
    assert list(scalars(value, "p")) == [("p[0].value[0]", 0.1), ("p[0].value[1]", 0.2), ("p[1].value", 0.5)]


ENERGIES = [("auto", 0.95), ("90%", 0.9), ("99.5%", 0.995), ("100%", None), ("x", None)]


@pytest.mark.parametrize(("rank", "energy"), ENERGIES)
def test_a_share_as_rank_is_a_number(rank: str, energy: float | None) -> None:
    assert energy_of(rank) == energy


def test_values_in_words() -> None:
    values: list[object] = [None, True, "a", 2.0, 3, {}, (), b""]
    assert [describe(value) for value in values] == [
        "nothing",
        "the truth value true",
        "the text 'a'",
        "2",
        "3",
        "a mapping",
        "a list",
        "b''",
    ]
