"""What the watch counts, freezes and ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from riemerge import Status
from riemerge.frechet import Evaluation, Search
from riemerge.frechet.low_rank.joint import Joint
from riemerge.manifolds import Stiefel
from tests.frechet.problems import ITERATIVE, mean_of
from tests.manifolds.subjects import family, matrices, relative, updates


def test_flat_costs_end_the_solve() -> None:
    quotient, points = updates(40, 36, 4), family("independent", 4, 40, 36, 4, seed=11, k=1)
    solution = mean_of(quotient, points, cost_tol=1e-3)
    assert solution.status == (Status.FLAT,)
    assert solution.ok
    assert solution.gradient_norm.max() > 1e-8


def test_impossible_tolerance_stalls_or_meets_the_budget() -> None:
    quotient, points = updates(20, 17, 3, k=2), family("close", 3, 20, 17, 3, seed=7)
    for solver in ITERATIVE:
        solution = mean_of(quotient, points, solver=solver, tol=0.0, max_passes=120)
        assert set(solution.status) <= {Status.STALLED, Status.BUDGET}
        # At round-off an iterate of trust regions may be worse than the one before.
        assert np.min([step.gradient_norm for step in solution.trace], axis=0).max() < 1e-8


def test_modules_end_apart() -> None:
    quotient = updates(40, 36, 4, k=2)
    close, far = (family(name, 4, 40, 36, 4, seed=11, k=1) for name in ("close", "independent"))
    points = [torch.cat(pair) for pair in zip(close, far, strict=True)]
    solution = mean_of(quotient, points, max_passes=60, solver="steepest_descent")
    assert solution.status == (Status.CONVERGED, Status.BUDGET)
    assert solution.trace[-1].active == 1
    alone = mean_of(updates(40, 36, 4), close)
    assert relative(matrices(quotient, solution.point)[:1], matrices(quotient, alone.point)) < 1e-7


def test_an_undefined_module_is_named_and_the_rest_solved() -> None:
    manifold = Stiefel(12, 3, k=2, seed=0)
    a = manifold.random_point()
    b = manifold.exp(a, 0.5 * manifold.random_tangent_vector(a))
    b[1] = -a[1]
    for solver in ITERATIVE:
        solution = mean_of(manifold, [a, b], solver=solver, initial_point=a)
        assert solution.status[1] is Status.UNDEFINED
        assert solution.status[0] is Status.CONVERGED
        assert solution.cost[1] == np.inf


def test_callback_sees_the_trace() -> None:
    quotient, points = updates(20, 17, 3, k=2), family("close", 3, 20, 17, 3, seed=7)
    seen: list[object] = []
    solution = mean_of(quotient, points, callback=seen.append)
    assert tuple(seen) == solution.trace
    assert solution.trace[-1].active == 0


def test_finished_modules_stay_where_they_are() -> None:
    quotient = updates(40, 36, 4, k=2)
    close, far = (family(name, 4, 40, 36, 4, seed=11, k=1) for name in ("close", "independent"))
    points = [torch.cat(pair) for pair in zip(close, far, strict=True)]
    for solver in ("conjugate_gradient", "steepest_descent", "fixed_point"):
        short, long = (mean_of(quotient, points, solver=solver, max_passes=n, tol=1e-3) for n in (12, 16))
        assert short.status[0] is long.status[0] is Status.CONVERGED
        # A step of zero is taken by the geodesic, to round-off.
        assert float((short.point[0] - long.point[0]).abs().max()) < 1e-13
        assert float((short.point[1] - long.point[1]).abs().max()) > 1e-5


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one at every pass of a joint formulation."""
    calls: list[int] = []
    evaluate = Joint.evaluate

    def counted(self: Joint, point: torch.Tensor, *, tight: bool = False) -> Evaluation:
        calls.append(0)
        return evaluate(self, point, tight=tight)

    monkeypatch.setattr(Joint, "evaluate", counted)
    return calls


@pytest.mark.parametrize("solver", ["conjugate_gradient", "steepest_descent", "fixed_point"])
def test_passes_are_counted_and_used(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quotient, points = updates(24, 20, 3), family("independent", 4, 24, 20, 3, seed=11, k=1)
    calls = count_passes(monkeypatch)
    for budget in (10, 11, 12):
        calls.clear()
        solution = mean_of(quotient, points, solver=solver, max_passes=budget)
        assert solution.passes == len(calls) == budget


def test_passes_of_hessians_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    quotient, points = updates(24, 20, 3), family("close", 4, 24, 20, 3, seed=11, k=1)
    calls = count_passes(monkeypatch)
    assert mean_of(quotient, points, solver="trust_regions").passes == len(calls)


def test_finished_modules_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    evaluate = Search.evaluate

    def measured(self: Search, point: torch.Tensor) -> Evaluation:
        sizes.append(self.k)
        return evaluate(self, point)

    monkeypatch.setattr(Search, "evaluate", measured)
    parts = [family(name, 4, 40, 36, 4, seed=11, k=1) for name in ("close", "lora_like", "close", "mix")]
    points = [torch.cat(pair) for pair in zip(*parts, strict=True)]
    for solver in ("lbfgs", "conjugate_gradient", "steepest_descent", "trust_regions"):
        sizes.clear()
        solution = mean_of(updates(40, 36, 4, k=4), points, solver=solver, max_passes=600, tol=1e-6)
        assert solution.status == (Status.CONVERGED,) * 4
        assert sizes[0] == 4
        assert sizes[-1] < 4
        for index, part in enumerate(parts):
            alone = mean_of(updates(40, 36, 4), part, max_passes=600, tol=1e-6)
            # The gradient's square, over a curvature that is a tenth at least; several minima are one F
            # apart.
            if index in (0, 2):
                assert solution.cost[index] == pytest.approx(alone.cost[0], abs=1e-10)
        # The certificate is of all modules, whenever they left.
        assert float(solution.gradient_norm.max()) < 1.1e-6 * np.sqrt(2 * solution.cost.max()).clip(1)
        assert solution.trace[-1].cost == pytest.approx(solution.cost, rel=1e-9)
