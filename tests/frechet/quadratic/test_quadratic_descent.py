"""Minimisation among matrices of one rank: where it ends, and what it says."""

from __future__ import annotations

import pytest
import torch

from riemerge.errors import RecipeError
from riemerge.frechet.quadratic.quadratic_cost import LowRankQuadratic
from riemerge.frechet.quadratic.quadratic_descent import minimise
from riemerge.frechet.status import Status
from tests.frechet.quadratic.forms import apart, cut, normal, problem


@pytest.mark.parametrize("solver", ["trust_regions", "lbfgs"])
def test_with_identities_any_start_ends_at_eckart_and_young(solver: str) -> None:
    target = normal(9, 7)
    target /= target.norm()
    eye = (torch.eye(9).double()[None], torch.eye(7).double()[None])
    given = LowRankQuadratic(*eye, target, 0.5, 3)
    found = minimise(given, given.manifold.random_point(), solver=solver, tol=1e-8, max_passes=3000)
    assert found.status == Status.CONVERGED
    # The gradient over the spectral gap.
    assert apart(given.total.matrix(found.point)[0], cut(target, 3)) < 1e-6


def test_a_solve_says_how_it_ended() -> None:
    given = problem()
    start = given.manifold.random_point()
    short = minimise(given, start, max_passes=3)
    assert (short.status, short.passes) == (Status.BUDGET, 3)
    assert short.cost <= given.cost(start)
    assert minimise(given, start, cost_tol=0.9, tol=0.0).status == Status.FLAT
    with pytest.raises(RecipeError, match="fixed_point: under a rank constraint"):
        minimise(given, start, solver="fixed_point")
