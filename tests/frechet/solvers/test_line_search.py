"""The line search that gives every module its own step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import Tensor

from riemerge import Status
from riemerge.frechet.solvers.catalogue import LBFGS
from riemerge.frechet.solvers.lbfgs import LBFGSOptimizer
from riemerge.frechet.solvers.line_search import ModulewiseLineSearcher
from riemerge.frechet.solvers.monitor import Monitor
from tests.frechet.problems import mean_of, search_of
from tests.manifolds.subjects import family, updates


def test_line_searcher_is_not_copied() -> None:
    quotient, points = updates(14, 12, 3), family("close", 3, 14, 12, 3, seed=3, k=1)
    problem = search_of(quotient, points)
    monitor = Monitor(problem, LBFGS(tol=0.0, max_passes=50))
    searcher = ModulewiseLineSearcher(problem, monitor)
    assert copy.deepcopy(searcher) is searcher


def test_a_bad_direction_is_given_up_before_the_module_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along one direction nothing is accepted; the gradient then goes on, and the solve converges."""
    quotient, points = updates(24, 20, 3), family("close", 3, 24, 20, 3, seed=5, k=1)
    apply, calls = LBFGSOptimizer._apply_inverse, list[int]()

    def spoiled(self: LBFGSOptimizer, problem: Any, algebra: Any, point: Tensor, kept: Tensor) -> Any:
        calls.append(0)
        direction = apply(self, problem, algebra, point, kept)
        gradient = algebra.push(kept)
        if len(calls) != 2:
            return direction
        # Downhill by next to nothing, and far across.
        across = problem.manifold.random_tangent_vector(point)
        share = (
            problem.manifold.inner_product(point, across, gradient)
            / problem.manifold.norm(point, gradient) ** 2
        )
        return 1e9 * (across - share * gradient) + 1e-12 * gradient

    monkeypatch.setattr(LBFGSOptimizer, "_apply_inverse", spoiled)
    assert mean_of(quotient, points, max_passes=200).status == (Status.CONVERGED,)
    assert len(calls) > 2
