"""Solvers are values: what they refuse, and one of a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pymanopt
import pytest

from riemerge.errors import RecipeError
from riemerge.frechet import Problem, Status, frechet_mean
from riemerge.problems import family
from riemerge.solvers import SOLVERS, Solver, Watch, option


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize(
    "options",
    [
        {"tol": -1.0},
        {"tol": float("nan")},
        {"tol": "small"},
        {"cost_tol": -1.0},
        {"cost_tol": float("inf")},
        {"max_passes": 0},
        {"max_passes": 2.5},
        {"max_seconds": 0.0},
    ],
)
def test_a_tolerance_or_budget_that_is_none_is_refused(name: str, options: dict[str, Any]) -> None:
    ((word, _),) = options.items()
    with pytest.raises(RecipeError, match=f"{word} is"):
        SOLVERS.make(name, **options)
    assert SOLVERS.make(name) == SOLVERS.make(name)


@final
@dataclass(frozen=True, kw_only=True)
class HeavyBall(Solver):
    """Descent that keeps a share of its last move (Polyak 1964)."""

    share: float = option(0.2, lambda value: 0 <= value < 1, "a number from 0 up to 1")

    def run(self, watch: Watch, x: Any) -> None:
        before, last = x, 0.0
        while watch.accept(x):
            move = self.share * last - watch.precondition(x, watch.gradient(x))
            before, x = x, watch.move(x, 1.0, move)
            last = watch.transport(before, x, move)


def test_a_solver_of_ones_own_is_a_dataclass_with_a_run() -> None:
    sphere = pymanopt.manifolds.Sphere(3)
    for problem in (family("close", 3, 12, 10, 2, modules=2), Problem(sphere, list(np.eye(3)))):
        ours, known = frechet_mean(problem, HeavyBall(tol=1e-9)), frechet_mean(problem)
        assert {*ours.status} == {Status.CONVERGED}
        np.testing.assert_allclose(ours.cost, known.cost, rtol=1e-9)
    assert frechet_mean(family("close", 3, 12, 10, 2), HeavyBall(max_passes=3)).status == (Status.BUDGET,)
    with pytest.raises(RecipeError, match="share is 1; expected a number from 0 up to 1"):
        HeavyBall(share=1)


@final
@dataclass(frozen=True, kw_only=True)
class Idle(Solver):
    """Does nothing at all."""

    def run(self, watch: Watch, x: Any) -> None:
        while watch.accept(x):
            pass


def test_a_solver_that_stays_is_ended() -> None:
    assert frechet_mean(family("close", 3, 12, 10, 2), Idle()).status == (Status.STALLED,)
