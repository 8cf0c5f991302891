"""Comparisons: who reaches the least certified cost, who does not and how, and performance profiles."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from riemerge.records.comparison_record import MEASURES, Comparison
from tests.study.comparisons import made_comparison, made_run

CASE = "polar & square"


def test_profiles_are_those_of_the_definition() -> None:
    comparison = made_comparison(made_run("a", [2, 4, 9]), made_run("b", [4, 4, 3]))
    assert comparison.profile(CASE, "passes") == {
        "a": ([1.0, 1.0, 3.0], [1 / 3, 2 / 3, 1.0]),
        "b": ([1.0, 1.0, 2.0], [1 / 3, 2 / 3, 1.0]),
    }


@given(st.lists(st.tuples(*[st.tuples(st.integers(1, 50), st.booleans())] * 3), min_size=1, max_size=4))
def test_profiles_are_step_functions_that_never_fall(rows: list[tuple[tuple[int, bool], ...]]) -> None:
    runs = [
        made_run(f"s{i}", [x for x, _ in row], cost=[1.0 if solved else 2.0 for _, solved in row])
        for i, row in enumerate(rows)
    ]
    comparison = made_comparison(*runs, made_run("all", [7, 7, 7]))
    for measure in MEASURES:
        profiles = comparison.profile(CASE, measure)
        for solver, (ratios, shares) in profiles.items():
            assert all(x <= y for x, y in itertools.pairwise(ratios))
            assert all(x <= y for x, y in itertools.pairwise(shares))
            assert all(1 <= x < float("inf") for x in ratios)
            reached = comparison.count(CASE, solver)["reached"] / 3
            assert shares[-1:] == [reached] * (reached > 0)
        # In each module the best solver is within a ratio of 1.
        assert sum(ratios.count(1.0) for ratios, _ in profiles.values()) >= 3


def test_a_slow_solver_is_ranked_last_of_those_that_arrive_and_a_wrong_one_last_of_all() -> None:
    runs = made_run("wrong", [1, 1, 1], cost=(1.0, 1.0, 1.1), gradient=1e-2, status="STOPPED")
    comparison = made_comparison(runs, made_run("slow", [90, 90, 90]), made_run("quick", [5, 5, 5]))
    assert comparison.ranking(CASE) == ["quick", "slow", "wrong"]


@pytest.mark.parametrize(
    ("cost", "gradient", "status", "outcome"),
    [
        (1.0, 1e-7, "CONVERGED", "reached"),
        (1 + 1e-9, 1e-7, "CONVERGED", "reached"),
        (1 + 1e-6, 1e-7, "CONVERGED", "another minimum"),
        (1.0, 1e-5, "BUDGET", "BUDGET"),
        (1.0, 1e-5, "STOPPED", "STOPPED"),
        (float("inf"), 0.0, "UNDEFINED", "UNDEFINED"),
    ],
)
def test_outcomes(cost: float, gradient: float, status: str, outcome: str) -> None:
    run = made_run("x", [3, 3, 3], cost=(cost,) * 3, gradient=gradient, status=status)
    comparison = made_comparison(made_run("best", [9, 9, 9]), run)
    assert comparison.count(CASE, "x") == {outcome: 3}
    assert comparison.count(CASE, "best") == {"reached": 3}


def test_solvers_are_judged_on_the_modules_whose_mean_is_determined() -> None:
    lost = made_run("x", [3, 3, 3], cost=(1.0, 2.0, 1.0))
    runs = made_run("best", [9, 9, 9]), lost
    assert made_comparison(*runs).count(CASE, "x") == {"reached": 2, "another minimum": 1}
    determined = made_comparison(*runs, determined=("yes", "no", "open"))
    assert determined.count(CASE, "x") == {"reached": 1}
    assert determined.profile(CASE, "passes")["x"] == ([1.0], [1.0])


def test_a_comparison_is_read_as_it_was_written() -> None:
    comparison = made_comparison(
        made_run("a", [2, 4, 9]), made_run("b", [1, 1, 1], cost=(float("inf"), 1.0, 1.0))
    )
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison
