"""Losses: their slopes, their kinks, what their means are, on every kind of manifold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from pymanopt import manifolds
from torch import Tensor

from riemerge import Status
from riemerge.errors import RecipeError
from riemerge.frechet.loss import LossLike, Objective, as_loss, weighted_median
from riemerge.losses import LOSSES, Absolute, FunctionLoss, Huber, Square, Trimmed
from riemerge.manifolds import Euclidean, Stiefel, SymmetricPositiveDefinite
from riemerge.manifolds.checks import check_gradient
from tests.fake_cuda import fake_cuda
from tests.frechet.guests import COMPLETE, drawn, unit
from tests.frechet.problems import as_pymanopt, away, mean_of, search_of
from tests.helpers import import_geomstats, seeded
from tests.manifolds.subjects import family, matrices, relative, updates


def cauchy(distances: Tensor) -> Tensor:
    return torch.log1p(distances.square())


MANY: dict[str, LossLike] = {
    **{name: name for name in LOSSES},
    "huber, absolute": Huber(0.3, relative=False),
    "a function": cauchy,
    "a function with a kink": lambda d: d + d.square(),
}
WEIGHTS = torch.tensor([[0.1, 0.4], [0.2, 0.3], [0.3, 0.3], [0.4, 0.0]]).double()


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("name", MANY)
def test_pull_is_the_slope_of_the_cost_over_the_distance(name: str, scale: float) -> None:
    distances = torch.rand(4, 2, generator=seeded(3), dtype=torch.float64) + 0.1
    zero = torch.zeros(2, dtype=torch.float64)
    objective = Objective(as_loss(MANY[name]), WEIGHTS, zero + scale, zero)
    leaf = distances.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective.cost(leaf.square()).sum(), leaf)
    torch.testing.assert_close(objective.pull(distances.square()), slope / distances, rtol=1e-10, atol=0)
    few = objective.narrow(torch.tensor([1]))
    assert torch.equal(few.cost(distances[:, 1:].square()), objective.cost(distances.square())[1:])


def test_a_function_s_loss_is_the_one_that_it_states() -> None:
    squared = torch.rand(4, 2, generator=seeded(3), dtype=torch.float64)
    squared[1] = 0
    for ours, function in (
        (Square(), lambda d: d.square() / 2),
        (Absolute(), lambda d: d),
        (Huber(0.5), lambda d: torch.where(d <= 0.5, d.square() / 2, 0.5 * d - 0.125)),
    ):
        own = FunctionLoss(function)
        assert own.smooth is ours.smooth
        for verb in ("cost", "pull"):
            torch.testing.assert_close(
                getattr(own, verb)(WEIGHTS, squared), getattr(ours, verb)(WEIGHTS, squared)
            )
        torch.testing.assert_close(own.kink(WEIGHTS), ours.kink(WEIGHTS))
    assert as_loss(cauchy).caveat == "F has several minima, and this one depends on the start."
    assert Square().caveat == ""
    assert "not smooth" in Absolute().caveat


def test_trimmed_is_the_least_over_all_ways_to_leave_a_share_out() -> None:
    squared = torch.rand(6, 3, generator=seeded(5), dtype=torch.float64)
    weights = torch.rand(6, 3, generator=seeded(6), dtype=torch.float64)
    weights /= weights.sum(dim=0)
    for share in (0.0, 0.25, 0.6):
        found = Trimmed(share).cost(weights, squared)
        for module in range(3):
            best = scipy.optimize.linprog(
                squared[:, module].numpy() / 2,
                A_eq=np.ones((1, 6)),
                b_eq=[1 - share],
                bounds=[(0, float(w)) for w in weights[:, module]],
            )
            assert float(found[module]) == pytest.approx(best.fun, abs=1e-12)


def test_the_weighted_median_is_that_of_as_many_copies() -> None:
    values = torch.rand(5, 1, generator=seeded(8), dtype=torch.float64)
    for counts in ([1, 2, 3, 4, 5], [1, 1, 1, 1, 0], [7, 1, 1, 1, 1], [1, 2, 3, 1, 1]):
        copies = np.repeat(values[:, 0].numpy(), counts)
        found = weighted_median(values, torch.tensor(counts).double()[:, None] / sum(counts))
        assert float(found) == pytest.approx(np.median(copies), rel=1e-12)


@pytest.mark.parametrize("name", COMPLETE)
def test_guests_have_a_median_and_a_certificate(name: str) -> None:
    """The logarithms of length one, weighted, add up to zero; or at a datum to no more than its weight."""
    manifold = COMPLETE[name]()
    center, *others = drawn(manifold)
    # Within reach of each other: on positive curvature a median of far points need not be unique.
    points = [center, *(manifold.exp(center, 0.4 * manifold.log(center, y)) for y in others)]
    weights = np.array([0.2, 0.3, 0.25, 0.25])
    solution = mean_of(manifold, points, weights, loss="absolute")
    assert solution.status == (Status.CONVERGED,)
    apart = np.array([manifold.dist(solution.point, y) for y in points])
    np.testing.assert_allclose(solution.distances[:, 0], apart, atol=1e-7)
    np.testing.assert_allclose(solution.cost[0], weights @ apart, rtol=1e-7)
    met = apart < 1e-6
    pulls = np.where(met, 0, weights / np.maximum(apart, 1e-6))
    logs = [p * manifold.log(solution.point, y) for p, y in zip(pulls, points, strict=True)]
    assert manifold.norm(solution.point, sum(logs[1:], logs[0])) < weights[met].sum() + 1e-7


@pytest.mark.oracle
def test_medians_are_those_of_geomstats() -> None:
    median = import_geomstats("geomstats.learning.geometric_median").GeometricMedian
    sphere = import_geomstats("geomstats.geometry.hypersphere").Hypersphere(dim=3)
    generator = np.random.default_rng(0)
    points = [unit(x) for x in generator.standard_normal((6, 4)) + 1]
    theirs = median(sphere, max_iter=500, epsilon=1e-9).fit(np.stack(points)).estimate_
    ours = mean_of(manifolds.Sphere(4), points, loss="absolute")
    np.testing.assert_allclose(ours.point, theirs, atol=1e-6)
    matrices_ = import_geomstats("geomstats.geometry.spd_matrices")
    spd = matrices_.SPDMatrices(3, equip=False)
    spd.equip_with_metric(matrices_.SPDAffineMetric)
    manifold = SymmetricPositiveDefinite(3)
    cores = [manifold.random_point() for _ in range(5)]
    theirs = median(spd, max_iter=500, epsilon=1e-9).fit(torch.cat(cores).numpy()).estimate_
    np.testing.assert_allclose(mean_of(manifold, cores, loss="absolute").point[0], theirs, atol=1e-6)


FORMS: dict[str, dict[str, Any]] = {
    "joint": {},
    "nested": {"form": "nested"},
    "autograd": {"gradient": "autograd"},
    "chordal": {"distance": "chordal"},
    "first order": {"distance": "first_order"},
}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("absolute", form) for form in FORMS),
        ("huber, absolute", "joint"),
        ("trimmed", "joint"),
        ("a function", "chordal"),
    ],
)
def test_the_gradient_is_that_of_the_cost(name: str, form: str) -> None:
    quotient, points = updates(8, 7, 2), family("mix", 3, 8, 7, 2, seed=5, k=1)
    problem = search_of(quotient, points, [0.5, 0.3, 0.2], loss=MANY[name], **FORMS[form])
    assert check_gradient(as_pymanopt(problem), point=away(problem)) == pytest.approx(2, abs=0.1)


def test_the_joint_form_and_the_nested_one_have_one_mean() -> None:
    quotient, points = updates(9, 8, 2), family("mix", 3, 9, 8, 2, seed=5, k=1)
    joint = mean_of(quotient, points, loss="huber", tol=1e-7)
    nested = mean_of(quotient, points, loss="huber", tol=1e-7, form="nested")
    assert joint.ok
    assert nested.ok
    np.testing.assert_allclose(joint.cost, nested.cost, rtol=1e-7)
    assert relative(matrices(quotient, joint.point), matrices(quotient, nested.point)) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_a_point_of_half_of_the_weight_is_the_median(form: str) -> None:
    """Its gradient is the shortest subgradient: no weighted sum of logarithms vanishes there."""
    quotient, points = updates(8, 7, 2, k=2), family("close", 4, 8, 7, 2, seed=5)
    weights = torch.tensor([[0.6, 0.2], [0.2, 0.3], [0.1, 0.2], [0.1, 0.3]])
    solution = mean_of(quotient, points, weights, loss="absolute", tol=1e-7, **FORMS[form])
    assert solution.ok
    assert relative(matrices(quotient, solution.point)[:1], matrices(quotient, points[0])[:1]) < 1e-7
    assert solution.distances[0, 0] < 1e-7
    assert solution.distances[0, 1] > 1e-3


@pytest.mark.parametrize("manifold", [SymmetricPositiveDefinite(3), Stiefel(7, 2), manifolds.Sphere(4)])
def test_a_start_at_a_datum_that_is_no_median_is_left(manifold: Any) -> None:
    """Weiszfeld's iteration as he wrote it stays there."""
    np.random.seed(2)  # noqa: NPY002 - Pymanopt draws from the global generator
    points = [manifold.random_point() for _ in range(4)]
    points[1:] = [manifold.exp(points[0], 0.3 * manifold.log(points[0], y)) for y in points[1:]]
    weights = [0.1, 0.3, 0.3, 0.3]
    for solver in ("lbfgs", "fixed_point"):
        here = mean_of(manifold, points, weights, loss="absolute", initial_point=points[0], solver=solver)
        there = mean_of(manifold, points, weights, loss="absolute")
        assert here.ok
        assert there.ok
        np.testing.assert_allclose(here.cost, there.cost, rtol=1e-12)
        assert here.distances[0, 0] > 1e-3


def test_copies_are_their_median_and_their_huber_mean() -> None:
    manifold = SymmetricPositiveDefinite(3, k=2)
    one, other = manifold.random_point(), manifold.random_point()
    for loss in ("absolute", "huber"):
        solution = mean_of(manifold, [one, one, one, other], loss=loss)
        assert solution.ok
        torch.testing.assert_close(solution.point, one, rtol=1e-10, atol=1e-10)
        assert mean_of(manifold, [one, one.clone()], loss=loss).ok
    # Between two points all are medians: the one half way is returned.
    solution = mean_of(manifold, [one, other], loss="absolute")
    assert solution.ok
    assert solution.distances[0, 0] + solution.distances[1, 0] == pytest.approx(manifold.dists(one, other)[0])


def test_the_huber_mean_is_between_the_median_and_the_mean() -> None:
    manifold = SymmetricPositiveDefinite(3, k=2)
    points = [manifold.random_point() for _ in range(5)]
    median, mean = mean_of(manifold, points, loss="absolute"), mean_of(manifold, points)
    near, far = (mean_of(manifold, points, loss=f"huber:delta={delta}") for delta in (1e-3, 1e3))
    torch.testing.assert_close(near.point, median.point, rtol=0, atol=1e-3)
    torch.testing.assert_close(far.point, mean.point, rtol=0, atol=1e-7)
    # δ moves with the data, module by module, and counts the passes that found it.
    flat = manifolds.Euclidean(3)
    data = [np.random.default_rng(i).standard_normal(3) for i in range(5)]
    one = mean_of(flat, data, loss="huber")
    ten = mean_of(flat, [10 * x + 1 for x in data], loss="huber")
    np.testing.assert_allclose(ten.point, 10 * one.point + 1, atol=1e-6)
    assert one.passes > mean_of(flat, data, loss="absolute").passes
    each = mean_of(manifold, points, loss="huber", tol=1e-11)
    for module in range(2):
        alone = SymmetricPositiveDefinite(3)
        single = mean_of(alone, [x[module : module + 1] for x in points], loss="huber", tol=1e-11)
        torch.testing.assert_close(each.point[module], single.point[0], rtol=1e-9, atol=1e-9)


def test_a_unit_step_of_the_preconditioned_gradient_is_weiszfeld_s() -> None:
    points = [torch.randn(2, 1, 3, generator=seeded(i), dtype=torch.float64) for i in range(4)]
    problem = search_of(Euclidean(1, 3, k=2), points, WEIGHTS, loss="absolute", reduce=False)
    x = torch.zeros(2, 1, 3, dtype=torch.float64)
    found = problem.evaluate(x)
    step = problem.form.precondition(x, found.gradient, found)
    pulls = WEIGHTS / torch.stack([y.norm(dim=(-2, -1)) for y in points])
    expected = (pulls[..., None, None] * torch.stack(points)).sum(dim=0) / pulls.sum(dim=0)[:, None, None]
    torch.testing.assert_close(x - step, expected)
    # In the joint form that of the mean, the alignments being those of the iterate.
    joint = search_of(updates(8, 7, 2), family("mix", 3, 8, 7, 2, seed=5, k=1), loss="absolute").form
    point = joint.start(None)
    found = joint.evaluate(point)
    pull = (1 / (3 * found.squared.sqrt())).sum()
    step = joint.precondition(point, found.gradient, found)
    torch.testing.assert_close(pull * joint.solution(step), joint.solution(found.gradient))


@pytest.mark.parametrize("loss", ["absolute", "huber", "trimmed", "a function"])
def test_an_outlier_is_borne(loss: str) -> None:
    manifold = SymmetricPositiveDefinite(3)
    center = manifold.random_point()
    close = [manifold.exp(center, 0.1 * manifold.random_tangent_vector(center)) for _ in range(4)]
    far = manifold.exp(center, 8 * manifold.random_tangent_vector(center))
    solution = mean_of(manifold, [*close, far], loss=MANY[loss])
    assert solution.ok
    assert float(manifold.dist(solution.point, center)) < 0.15
    assert float(manifold.dist(mean_of(manifold, [*close, far]).point, center)) > 1


REFUSED: dict[str, tuple[Any, str]] = {
    "no name": ("hubert", "unknown loss 'hubert': did you mean 'huber'"),
    "negative delta": ("huber:delta=-1", "delta is -1"),
    "all trimmed": ("trimmed:share=1", "share is 1"),
    "another shape": (lambda d: d.sum(), "one number for each"),
    "no gradient": (lambda d: d.detach(), "one number for each"),
    "no torch": (lambda d: 1.0, "it returned 1.0"),
    "infinite slope": (lambda d: d.sqrt(), "slope of the loss at distance 0 is inf"),
    "fall": (lambda d: -d, "slope of the loss at distance 0 is -1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_loss_is_refused(case: str) -> None:
    loss, words = REFUSED[case]
    with pytest.raises(RecipeError, match=words):
        as_loss(loss)


def test_a_relative_loss_asks_for_the_median() -> None:
    with pytest.raises(RecipeError, match="geometric median, which must be found first"):
        search_of(manifolds.Euclidean(2), [np.zeros(2), np.ones(2)], loss="huber")


@pytest.mark.parametrize("loss", ["huber", "trimmed", cauchy])
def test_the_device_changes_no_bit(loss: LossLike) -> None:
    manifold = SymmetricPositiveDefinite(3, k=2)
    points = [manifold.random_point() for _ in range(4)]
    expected = mean_of(manifold, points, WEIGHTS, loss=loss).point
    with fake_cuda():
        there = SymmetricPositiveDefinite(3, k=2, device="cuda")
        found = mean_of(there, [x.to("cuda") for x in points], WEIGHTS, loss=loss)
        assert torch.equal(found.point.cpu(), expected)
