"""Means and solvers: the laws of the mean, the solvers' agreement, and how each solve says that it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pymanopt
import pytest
import torch
from my_lab.metric import TwoLayers
from my_lab.symmetry import Scaling
from pymanopt.optimizers import ConjugateGradient, NelderMead, SteepestDescent

from examples.toy_problem import equation_15, network
from riemerge import Status
from riemerge.errors import RecipeError
from riemerge.frechet.solution import TracePoint
from riemerge.frechet.solvers.solver import Solver
from riemerge.frechet.solvers.watch import Watch
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold, Stiefel, SymmetricPositiveDefinite
from tests.frechet.certificates import certified
from tests.frechet.problems import ITERATIVE, mean_of
from tests.helpers import adapter_family, random_core, random_gauge, seeded
from tests.manifolds.subjects import family, matrices, relative, updates


def test_solvers_agree_on_close_adapters() -> None:
    quotient, points = updates(64, 48, 8, k=3), family("close", 6, 64, 48, 8, seed=7, k=3, noise=0.3)
    solutions = {name: mean_of(quotient, points, solver=name) for name in ITERATIVE}
    for solution in solutions.values():
        assert set(solution.status) == {Status.CONVERGED}
        assert certified(solution)
    costs = np.array([solution.cost for solution in solutions.values()])
    np.testing.assert_allclose(costs, np.broadcast_to(costs[0], costs.shape), rtol=1e-9)
    merged = [matrices(quotient, solution.point) for solution in solutions.values()]
    assert max(relative(m, merged[0]) for m in merged) < 1e-6


@pytest.mark.parametrize("solver", ["conjugate_gradient", "steepest_descent", "trust_regions"])
@pytest.mark.parametrize("cond", [1.0, 1e3, 1e6])
def test_ill_conditioned_adapters_converge(solver: str, cond: float) -> None:
    quotient, points = updates(30, 25, 4, k=2), family("close", 3, 30, 25, 4, seed=2, cond=cond)
    # Log on SPD(r) loses eps * cond(B).
    tol = max(1e-8, 1e-15 * cond * 10)
    solution = mean_of(quotient, points, solver=solver, tol=tol)
    assert certified(solution, tol), (solution.status, solution.gradient_norm)


def test_forms_agree() -> None:
    quotient, points = updates(20, 17, 3, k=2), family("close", 3, 20, 17, 3, seed=7)
    solution = mean_of(quotient, points, form="nested")
    assert solution.ok
    other = mean_of(quotient, points)
    assert relative(matrices(quotient, solution.point), matrices(quotient, other.point)) < 1e-7


def test_gradient_by_autograd_gives_the_same_mean() -> None:
    quotient, points = updates(20, 17, 3, k=2), family("close", 3, 20, 17, 3, seed=7)
    one, two = (mean_of(quotient, points, gradient=x, tol=1e-11) for x in ("analytic", "autograd"))
    assert relative(matrices(quotient, one.point), matrices(quotient, two.point)) < 1e-10


@pytest.mark.slow
def test_far_apart_adapters_descend() -> None:
    quotient, points = updates(32, 28, 4, k=2), family("independent", 3, 32, 28, 4, seed=7)
    for solver in ("conjugate_gradient", "steepest_descent", "trust_regions"):
        solution = mean_of(quotient, points, solver=solver, max_passes=60)
        costs = np.array([point.cost for point in solution.trace])
        # Trust regions judge the stack as a whole; steps per module make every module descend.
        costs = costs.sum(axis=1) if solver == "trust_regions" else costs
        assert (np.diff(costs, axis=0) <= 1e-12 * costs[0]).all()
        # No worse than any of the data.
        for x in points:
            distances = [quotient.dists(x, y) for y in points]
            assert (solution.cost <= (torch.stack(distances) ** 2).mean(dim=0).numpy() / 2).all()


def test_any_optimizer_of_pymanopt() -> None:
    quotient, points = updates(20, 17, 3), family("close", 3, 20, 17, 3, seed=7, k=1)
    ours = mean_of(quotient, points)
    for optimizer in (
        SteepestDescent(verbosity=0, min_gradient_norm=1e-9, max_iterations=200),
        ConjugateGradient(verbosity=0, min_gradient_norm=1e-9, max_iterations=200),
    ):
        solution = mean_of(quotient, points, solver=optimizer)
        np.testing.assert_allclose(solution.cost, ours.cost, rtol=1e-9)
        assert set(solution.status) <= {Status.CONVERGED, Status.STOPPED}


@pytest.mark.parametrize("solver", ITERATIVE)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("cond", [10.0, 1e6])
def test_copies_of_one_update_merge_to_it(solver: str, count: int, cond: float) -> None:
    generator = seeded(1)
    total = FixedRank(20, 17, 4, k=2)
    factors = [family_pair(20, 17, 4, cond, seed) for seed in (1, 2)]
    copies = []
    for _ in range(count):
        gauges = [random_gauge(4, 10.0, generator) for _ in factors]
        left = torch.stack([b @ g for (b, _), g in zip(factors, gauges, strict=True)])
        right = torch.stack([torch.linalg.solve(g, a).mT for (_, a), g in zip(factors, gauges, strict=True)])
        copies.append(total.factor(left, right))
    quotient = QuotientManifold(total, Orthogonal(4))
    solution = mean_of(quotient, copies, solver=solver)
    assert set(solution.status) == {Status.CONVERGED}
    dense = torch.stack([b @ a for b, a in factors])
    assert relative(matrices(quotient, solution.point), dense) < 1e-10
    # The log on SPD(r) of equal cores is eps * cond(B).
    assert float(np.nanmax(solution.distances)) < 1e-14 * cond * 100


def family_pair(m: int, n: int, r: int, cond: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return adapter_family("independent", 1, m, n, r, seed, cond=cond)[0]


@pytest.mark.parametrize("solver", ITERATIVE)
def test_starting_at_the_optimum_is_the_end(solver: str) -> None:
    quotient, points = updates(20, 17, 3, k=2), family("close", 3, 20, 17, 3, seed=7)
    mean = mean_of(quotient, points, tol=1e-12, max_passes=60).point
    again = mean_of(quotient, points, solver=solver, initial_point=mean, tol=1e-6)
    assert set(again.status) == {Status.CONVERGED}
    assert relative(matrices(quotient, again.point), matrices(quotient, mean)) < 1e-6
    assert np.isfinite(again.cost).all()


def test_one_point_is_its_own_mean_to_the_bit() -> None:
    quotient, points = updates(20, 17, 3, k=2), family("close", 1, 20, 17, 3, seed=7)
    solution = mean_of(quotient, points, reduce=False)
    assert solution.ok
    assert relative(matrices(quotient, solution.point), matrices(quotient, points[0])) < 1e-14


# "Far": relative tolerance 1e-4, because there the mean is barely determined: many far-apart points cost
# nearly the same.
GAUGE = [
    ("close", 1.0, 1e-8),
    ("close", 1e6, 1e-8),
    ("mix", 10.0, 1e-8),
    ("lora_like", 10.0, 1e-8),
    ("independent", 10.0, 1e-4),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cond", "tolerance"), GAUGE)
def test_the_gauge_of_the_adapters_does_not_matter(name: str, cond: float, tolerance: float) -> None:
    m, n, r = 40, 36, 4
    generator = seeded(4)
    adapters = adapter_family(name, 4, m, n, r, seed=11, cond=cond)
    total = FixedRank(m, n, r)
    quotient = QuotientManifold(total, Orthogonal(r))
    means = []
    for condition in (None, 1.0, 1e3):
        points = []
        for b, a in adapters:
            gauge = (
                torch.eye(r, dtype=torch.float64)
                if condition is None
                else random_gauge(r, condition, generator)
            )
            points.append(total.factor((b @ gauge)[None], torch.linalg.solve(gauge, a).mT[None]))
        means.append(matrices(quotient, mean_of(quotient, points, tol=1e-9, max_passes=300).point))
    assert max(relative(x, means[0]) for x in means[1:]) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), [("close", 1e-8), ("lora_like", 1e-8), ("independent", 1e-4)])
def test_the_order_of_the_points_does_not_matter(name: str, tolerance: float) -> None:
    quotient, points = updates(40, 36, 4), family(name, 4, 40, 36, 4, seed=11, k=1)
    weights = [0.4, 0.3, 0.2, 0.1]
    order = [2, 0, 3, 1]
    one = mean_of(quotient, points, weights, tol=1e-9, max_passes=300)
    two = mean_of(quotient, [points[i] for i in order], [weights[i] for i in order], tol=1e-9, max_passes=300)
    assert relative(matrices(quotient, one.point), matrices(quotient, two.point)) < tolerance
    np.testing.assert_allclose(
        two.distances, one.distances[order], atol=1e-3 if name == "independent" else 1e-7
    )


@pytest.mark.parametrize("solver", ITERATIVE)
def test_weight_zero_is_absence(solver: str) -> None:
    quotient, points = updates(20, 17, 3, k=2), family("close", 3, 20, 17, 3, seed=7)
    with_zero = mean_of(quotient, points, [0.6, 0, 0.4], solver=solver)
    without = mean_of(quotient, [points[0], points[2]], [0.6, 0.4], solver=solver)
    assert torch.equal(with_zero.point, without.point)
    assert np.isnan(with_zero.distances[1]).all()


# Name, noise, condition of the cores, tolerance: log on SPD(r) loses eps cond(B).
PAIRS = [("close", 0.5, 10.0, 1e-7), ("close", 0.2, 1e6, 1e-6), ("mix", 0.1, 10.0, 1e-7)]


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 0.8])
@pytest.mark.parametrize(("name", "noise", "cond", "tolerance"), PAIRS)
def test_two_points_divide_the_distance_as_their_weights(
    name: str, noise: float, cond: float, tolerance: float, weight: float
) -> None:
    quotient, points = updates(30, 25, 4, k=2), family(name, 2, 30, 25, 4, seed=7, noise=noise, cond=cond)
    solution = mean_of(quotient, points, [1 - weight, weight])
    apart = quotient.dists(*points).numpy()
    if weight:
        np.testing.assert_allclose(solution.distances[1], (1 - weight) * apart, rtol=tolerance)
    np.testing.assert_allclose(solution.distances[0], weight * apart, rtol=tolerance, atol=1e-8)
    cost = weight * (1 - weight) * apart**2 / 2
    np.testing.assert_allclose(solution.cost, cost, rtol=tolerance, atol=1e-12)


def test_two_points_far_apart_divide_some_geodesic_as_their_weights() -> None:
    """Independent ones have many geodesics: alignments are local, and the one found for the mean need not be
    the pair's. Measured over three seeds: 0 to 8 % longer.
    """
    quotient, points = updates(30, 25, 4, k=2), family("independent", 2, 30, 25, 4, seed=7)
    solution = mean_of(quotient, points, [0.7, 0.3], max_passes=400)
    apart = quotient.dists(*points).numpy()
    np.testing.assert_allclose(0.7 * solution.distances[0], 0.3 * solution.distances[1], rtol=1e-6)
    assert (solution.distances.sum(axis=0) >= apart * (1 - 1e-9)).all()
    assert (solution.distances.sum(axis=0) <= 1.1 * apart).all()


def test_rotating_the_inputs_rotates_the_merge() -> None:
    m, n, r = 24, 20, 3
    quotient, points = updates(m, n, r, k=2), family("lora_like", 3, m, n, r, seed=7)
    left, right = Stiefel(m, m, seed=1).random_point()[0], Stiefel(n, n, seed=2).random_point()[0]
    total = quotient.total
    turned = []
    for x in points:
        u, b, v = total.split(x)
        turned.append(total.join(left @ u, b, right @ v))
    one, two = (mean_of(quotient, x, tol=1e-9).point for x in (points, turned))
    assert relative(matrices(quotient, two), left @ matrices(quotient, one) @ right.mT) < 1e-8


def test_scaling_the_inputs_scales_the_merge() -> None:
    quotient, points = updates(24, 20, 3, k=2), family("lora_like", 3, 24, 20, 3, seed=7)
    total = quotient.total
    larger = [total.join(*(x * f for x, f in zip(total.split(p), (1, 1e4, 1), strict=True))) for p in points]
    one, two = (mean_of(quotient, x, tol=1e-9).point for x in (points, larger))
    assert relative(matrices(quotient, two), 1e4 * matrices(quotient, one)) < 1e-8


@pytest.mark.parametrize("solver", ITERATIVE)
def test_toy_problem_has_its_closed_form(solver: str) -> None:
    networks = QuotientManifold(TwoLayers(), Scaling())
    points = [network(1, 2), network(-6, -0.5), network(0.1, 70)]
    weights = [0.5, 0.3, 0.2]
    solution = mean_of(networks, points, weights, solver=solver)
    assert solution.ok
    assert float(solution.point.prod()) == pytest.approx(0.5 * 2 + 0.3 * 3 + 0.2 * 7, rel=1e-9)
    # d = |w - w'| / sqrt 2 (GeoMerge, eq. 17).
    np.testing.assert_allclose(
        solution.distances[:, 0], np.abs(np.array([2, 3, 7]) - 3.3) / np.sqrt(2), rtol=1e-8
    )


def test_two_gauges_of_one_network_merge_to_it() -> None:
    networks = QuotientManifold(TwoLayers(), Scaling())
    theta = network(1.5, -2)
    solution = mean_of(networks, [theta, -theta])
    assert float(solution.point.prod()) == pytest.approx(-3, rel=1e-12)
    assert solution.cost.max() < 1e-24
    # What averaging the parameters gives.
    assert not (theta + -theta).any()


def test_equation_15_is_a_geodesic_for_horizontal_starts_only() -> None:
    networks, start = TwoLayers(), network(1, 2)
    horizontal, other = network(0.1, 0.2), network(0.2, 0.1)
    for time in (0.3, 1.0):
        printed, true = equation_15(start, horizontal, time), networks.exp(start, time * horizontal)
        torch.testing.assert_close(printed, true, rtol=1e-14, atol=0)
    assert float(networks.dist(equation_15(start, other), networks.exp(start, other))) > 1e-2
    # A geodesic has no acceleration: at time 0, by central differences of the curve.
    for velocity, straight in ((horizontal, True), (other, False)):
        step = 1e-4
        ends = equation_15(start, velocity, step), equation_15(start, velocity, -step)
        speed, bend = (ends[0] - ends[1]) / (2 * step), (ends[0] + ends[1] - 2 * start) / step**2
        torch.testing.assert_close(speed, velocity, rtol=1e-6, atol=0)
        acceleration = networks.covariant_derivative(start, velocity, velocity, bend)
        assert (float(networks.norm(start, acceleration)) < 1e-6) is straight


def test_networks_of_opposite_sign_have_no_mean() -> None:
    networks = QuotientManifold(TwoLayers(), Scaling())
    solution = mean_of(networks, [network(1, 2), network(1, -5)])
    assert solution.status == (Status.UNDEFINED,)


def test_same_input_same_bits() -> None:
    quotient, points = updates(40, 36, 4), family("independent", 4, 40, 36, 4, seed=11, k=1)
    one, two = (mean_of(quotient, points, max_passes=30) for _ in range(2))
    assert torch.equal(one.point, two.point)


# In rank 3 the data themselves are at each other's cut locus, too.
@pytest.mark.parametrize(("rank", "seed"), [(2, 1), (2, 4), (2, 9), (3, 2), (3, 5)])
def test_shared_subspaces_have_a_mean_whatever_their_orientation(rank: int, seed: int) -> None:
    """Their extrinsic mean lies in the shared subspace, at the cut locus of those turned the other way."""
    quotient, points = updates(12, 11, rank), family("shared_subspace", 3, 12, 11, rank, seed=seed, k=1)
    costs = []
    for order in ([0, 1, 2], [1, 2, 0], [2, 1, 0]):
        solution = mean_of(quotient, [points[i] for i in order], cost_tol=1e-9, max_passes=300)
        assert solution.status[0] is not Status.UNDEFINED
        costs.append(float(solution.cost[0]))
        # No worse than any of the data.
        for x in points:
            distances = [float(quotient.dists(x, y)) for y in points]
            assert np.isnan(distances).any() or costs[-1] <= np.mean(np.square(distances)) / 2
    # Several minima, which the order of the data may choose among.
    assert max(costs) < 1.05 * min(costs)


def test_updates_that_cancel_have_a_mean() -> None:
    total = FixedRank(9, 8, 1)
    left, right = (torch.randn(1, n, 1, generator=seeded(n), dtype=torch.float64) for n in (9, 8))
    points = [total.factor(left, right), total.factor(-left, right)]
    solution = mean_of(QuotientManifold(total, Orthogonal(1)), points)
    assert np.isfinite(solution.cost).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_points_of_any_float_dtype(dtype: torch.dtype) -> None:
    quotient, points = updates(16, 14, 2, k=2), family("close", 3, 16, 14, 2, seed=5)
    solution = mean_of(quotient, [x.to(dtype) for x in points])
    assert solution.ok
    assert solution.point.dtype == dtype
    # Solved in float64, so what is off is the rounding of the points.
    exact = matrices(quotient, mean_of(quotient, points).point)
    assert relative(matrices(quotient, solution.point.double()), exact) < 20 * torch.finfo(dtype).eps


REFUSED = {
    "no solver": ({"solver": None}, "solver is None"),
    "no gradient": ({"solver": NelderMead()}, "asks for no gradient"),
    "solver": ({"solver": "newton"}, "known: lbfgs"),
    "tol": ({"tol": -1.0}, "tol is -1.0"),
    "tol nan": ({"tol": float("nan")}, "tol is nan"),
    "cost_tol": ({"cost_tol": float("inf")}, "cost_tol is inf"),
    "max_passes": ({"max_passes": 0}, "at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused(case: str) -> None:
    options, words = REFUSED[case]
    with pytest.raises(RecipeError, match=words):
        mean_of(Stiefel(5, 2), [Stiefel(5, 2).random_point()], **options)


def test_our_spd_mean_is_that_of_stock_spd() -> None:
    generator = seeded(3)
    cores = [random_core(3, 20.0, generator) for _ in range(4)]
    ours = mean_of(SymmetricPositiveDefinite(3), [x[None] for x in cores])
    theirs = mean_of(pymanopt.manifolds.SymmetricPositiveDefinite(3), [x.numpy() for x in cores])
    np.testing.assert_allclose(ours.point[0], theirs.point, atol=1e-8)


# --- losses that the median gives a scale -------------------------------------------------------------------


def test_every_solver_minimises_the_same_relative_loss() -> None:
    quotient, points = updates(9, 8, 2, k=2), family("close", 4, 9, 8, 2, seed=7, noise=0.3)
    solvers = ("lbfgs", "conjugate_gradient", "steepest_descent")
    costs = [mean_of(quotient, points, solver=name, loss="huber", tol=1e-6).cost for name in solvers]
    np.testing.assert_allclose(costs[1:], np.broadcast_to(costs[0], (2, 2)), rtol=1e-10)


def test_the_median_of_a_relative_loss_counts_and_is_told() -> None:
    quotient, points = updates(9, 8, 2, k=2), family("close", 4, 9, 8, 2, seed=7, noise=0.3)
    told: list[TracePoint] = []
    solution = mean_of(quotient, points, loss="huber", callback=told.append)
    of_mean = len(solution.trace)
    assert tuple(told[-of_mean:]) == solution.trace
    median = told[:-of_mean]
    assert median
    assert all(step.active == 2 for step in median)
    assert median[-1].passes <= solution.trace[0].passes < solution.passes
    assert median[-1].seconds < solution.trace[0].seconds < solution.seconds
    late = mean_of(quotient, points, loss="huber", max_seconds=1e-9)
    assert set(late.status) == {Status.BUDGET}


def test_a_closed_form_refuses_a_relative_loss_before_its_median() -> None:
    with pytest.raises(RecipeError, match=r"under Huber.*has no closed mean"):
        mean_of(Stiefel(5, 2), [Stiefel(5, 2).random_point()], solver="closed_form", loss="huber")


# --- solvers of one's own -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Early(Solver):
    """A solver that returns before the watch ends it."""

    accepts: bool

    def run(self, watch: Watch, start: Any) -> None:
        if self.accepts:
            watch.accept(start)


@pytest.mark.parametrize("accepts", [True, False])
def test_a_solver_that_returns_early_has_stopped(accepts: bool) -> None:
    quotient, points = updates(9, 8, 2, k=2), family("close", 3, 9, 8, 2, seed=7, noise=0.3)
    solution = mean_of(quotient, points, solver=Early(accepts=accepts))
    assert set(solution.status) == {Status.STOPPED}
    assert len(solution.trace) == 1
