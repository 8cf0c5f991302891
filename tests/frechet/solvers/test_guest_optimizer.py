"""Pymanopt's optimizers as they are: what they are shown, and how they are ended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pymanopt
import pytest
from pymanopt import optimizers
from pymanopt.optimizers.optimizer import Optimizer

from riemerge.errors import RecipeError
from riemerge.frechet import Problem, Status, frechet_mean
from riemerge.frechet.solvers.guest_optimizer import ENDLESS, MAX_REJECTIONS
from riemerge.problems import family
from riemerge.solvers import Guest, LBFGSOptimizer


@pytest.mark.parametrize(
    "optimizer", ["SteepestDescent", "ConjugateGradient", "TrustRegions", "LBFGSOptimizer"]
)
def test_an_optimizer_is_ended_by_the_tolerance(optimizer: str) -> None:
    kind = getattr(optimizers, optimizer, LBFGSOptimizer)
    found = frechet_mean(family("close", 3, 12, 10, 2, modules=2), Guest(optimizer=kind(**ENDLESS)))
    assert found.status == (Status.CONVERGED,) * 2
    short = frechet_mean(family("independent", 3, 12, 10, 2), Guest(optimizer=kind(**ENDLESS), max_passes=9))
    assert short.status == (Status.BUDGET,)
    assert short.passes <= 9 + 2


class Lazy(Optimizer):
    """Never accepts a trial."""

    def run(self, problem: Any, *, initial_point: Any = None, **options: Any) -> Any:
        gradient = problem.riemannian_gradient(initial_point)
        for trial in range(1000):
            problem.cost(problem.manifold.exp(initial_point, -1e-3 * trial * gradient))
        raise AssertionError("it was not ended")


def test_an_optimizer_that_accepts_nothing_is_ended() -> None:
    sphere = pymanopt.manifolds.Sphere(3)
    found = frechet_mean(Problem(sphere, list(np.eye(3))), Lazy())
    assert found.status == (Status.STALLED,)
    assert found.passes <= MAX_REJECTIONS + 10


def test_an_optimizer_that_stops_says_so() -> None:
    sphere = pymanopt.manifolds.Sphere(3)
    problem = Problem(sphere, list(np.eye(3)), [0.6, 0.3, 0.1])
    early = frechet_mean(problem, optimizers.SteepestDescent(max_iterations=2, verbosity=0))
    assert early.status == (Status.STOPPED,)


def test_an_optimizer_without_a_gradient_is_refused() -> None:
    for optimizer in (optimizers.NelderMead(), optimizers.ParticleSwarm()):
        with pytest.raises(RecipeError, match="asks for no gradient"):
            Guest(optimizer=optimizer)
