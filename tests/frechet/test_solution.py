"""The status of a solve that did not converge."""

from __future__ import annotations

from pymanopt.optimizers import SteepestDescent

from riemerge import Status
from tests.frechet.problems import ITERATIVE, mean_of
from tests.manifolds.subjects import family, updates


def test_an_optimizer_that_stops_by_itself_is_not_converged() -> None:
    quotient, points = updates(20, 17, 3, k=2), family("independent", 3, 20, 17, 3, seed=7)
    solution = mean_of(quotient, points, solver=SteepestDescent(verbosity=0, max_iterations=2))
    assert set(solution.status) == {Status.STOPPED}
    assert not solution.ok


def test_budget_is_kept_and_named() -> None:
    quotient, points = updates(40, 36, 4), family("independent", 4, 40, 36, 4, seed=11, k=1)
    for solver in ITERATIVE:
        solution = mean_of(quotient, points, solver=solver, max_passes=8)
        assert solution.status == (Status.BUDGET,)
        # One Hessian-vector product is two passes, and is not cut in half.
        assert solution.passes <= (8 + 2 * 30 if solver == "trust_regions" else 8)
        assert not solution.ok
