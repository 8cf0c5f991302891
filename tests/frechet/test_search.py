"""The problem itself: its Hessian, its reduction, its starts, its weights, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pymanopt
import pytest
import torch

from riemerge.errors import RecipeError
from riemerge.frechet import search
from riemerge.frechet.low_rank.joint import Joint
from riemerge.frechet.low_rank.search_space import JointManifold
from riemerge.manifolds import Orthogonal, QuotientManifold, Stiefel
from riemerge.manifolds.checks import check_hessian
from tests.frechet.problems import FORMS, Form, as_pymanopt, away, mean_of, search_of
from tests.manifolds.subjects import family, matrices, relative, updates


@pytest.mark.parametrize("form", FORMS)
def test_hessian_is_symmetric_at_the_mean(form: Form) -> None:
    quotient, points = updates(20, 17, 3, k=2), family("close", 3, 20, 17, 3, seed=3)
    problem = search_of(quotient, points, form=form)
    mean = mean_of(quotient, points, tol=1e-11).point
    start = search_of(quotient, points, form=form, initial_point=mean)
    x = start.start()
    if form == "joint":
        search = start.form.manifold
        assert isinstance(search, JointManifold)
        assert isinstance(start.form, Joint)
        at, _ = search.split(x)
        x = search.join(at, search.action.nearest(search.total, start.form.points, at))
    found = check_hessian(as_pymanopt(start), point=x)
    assert found.pop("slope") == pytest.approx(3, abs=0.3)
    assert max(found.values()) < 1e-6
    assert problem.k == 2


def test_hessian_of_a_stack_is_that_of_its_modules() -> None:
    quotient, points = updates(14, 12, 3, k=2), family("mix", 3, 14, 12, 3, seed=3)
    problem = search_of(quotient, points)
    search = problem.form.manifold
    x = away(problem)
    v = search.random_tangent_vector(x)
    # A step for the stack would be a thousand times too long for one module.
    v[1] *= 1e-6
    together = problem.hessian(x, v)
    for module in range(2):
        alone = search_of(updates(14, 12, 3), [p[module : module + 1] for p in points])
        expected = alone.hessian(x[module : module + 1], v[module : module + 1])
        torch.testing.assert_close(
            together[module : module + 1], expected, rtol=1e-5, atol=1e-7 * float(v[module].norm())
        )


@pytest.mark.parametrize("name", ["close", "mix", "lora_like", "independent"])
def test_reduction_is_exact(name: str) -> None:
    quotient, points = updates(60, 50, 4, k=2), family(name, 3, 60, 50, 4, seed=5)
    full = search_of(quotient, points, reduce=False)
    small = search_of(quotient, points)
    assert small.form.manifold.total.m == 12
    starts = small.start(), full.start()
    torch.testing.assert_close(
        *(p.evaluate(x).cost for p, x in zip((small, full), starts, strict=True)), rtol=1e-12, atol=0
    )
    assert (
        relative(matrices(quotient, small.solution(starts[0])), matrices(quotient, full.solution(starts[1])))
        < 1e-12
    )
    # Both begin in single precision, so they agree as far as they are solved.
    reduced = mean_of(quotient, points, max_passes=200, tol=1e-12)
    trivial_reduction = mean_of(quotient, points, max_passes=200, tol=1e-12, reduce=False)
    assert relative(matrices(quotient, reduced.point), matrices(quotient, trivial_reduction.point)) < 1e-10


def test_a_start_outside_the_span_is_kept() -> None:
    quotient, points = updates(40, 30, 2), family("close", 2, 40, 30, 2, seed=5, k=1)
    outside = quotient.random_point()
    problem = search_of(quotient, points, initial_point=outside)
    assert (
        relative(matrices(quotient, problem.solution(problem.start())), matrices(quotient, outside)) < 1e-12
    )


BAD_WEIGHTS: dict[str, tuple[list[float] | torch.Tensor, str]] = {
    "negative": ([0.5, -0.1, 0.6], "negative"),
    "not finite": ([0.5, float("nan"), 0.5], "finite"),
    "infinite": ([0.5, float("inf"), 0.5], "finite"),
    "all zero": ([0.0, 0.0, 0.0], "positive"),
    "too few": ([0.5, 0.5], "shape"),
    "of another module count": (torch.ones(3, 7), "shape"),
    "too large and negative": ([1e308, 1e308, -1.0], "negative"),
    "zero in one module": (torch.tensor([[1.0, 0], [1, 0], [1, 0]]), "positive"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused(case: str) -> None:
    weights, words = BAD_WEIGHTS[case]
    with pytest.raises(RecipeError, match=words):
        search_of(updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5), weights)


def test_weights_are_normalised_and_may_differ_by_module() -> None:
    quotient, points = updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)
    whole = mean_of(quotient, points, [5, 3, 2])
    shares = mean_of(quotient, points, [0.5, 0.3, 0.2])
    assert torch.equal(whole.point, shares.point)
    mixed = mean_of(quotient, points, torch.tensor([[1.0, 0], [1, 1], [0, 1]]))
    left = mean_of(quotient, points[:2])
    right = mean_of(quotient, points[1:])
    merged = matrices(quotient, mixed.point)
    assert relative(merged[:1], matrices(quotient, left.point)[:1]) < 1e-7
    assert relative(merged[1:], matrices(quotient, right.point)[1:]) < 1e-7


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "form": ({"form": "primal"}, "'primal'"),
    "gradient": ({"gradient": "numeric"}, "'numeric'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused(case: str) -> None:
    options, words = REFUSED[case]
    with pytest.raises(RecipeError, match=words):
        search_of(updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5), **options)


def test_bad_points_are_refused() -> None:
    with pytest.raises(RecipeError, match="no points"):
        search_of(Stiefel(5, 2), [])
    with pytest.raises(RecipeError, match=r"point 0 is of shape \(1, 5, 2\); expected \(2, 5, 2\)"):
        search_of(Stiefel(5, 2, k=2), [Stiefel(5, 2).random_point()])
    with pytest.raises(RecipeError, match=r"initial_point is of shape \(1, 6, 2\)"):
        search_of(Stiefel(5, 2), [Stiefel(5, 2).random_point()], initial_point=Stiefel(6, 2).random_point())
    with pytest.raises(RecipeError, match="a distance of your own"):
        search_of(pymanopt.manifolds.Sphere(3), [np.eye(3)[0]], gradient="autograd")
    joint = search_of(updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)).form.manifold
    with pytest.raises(RecipeError, match="no logarithm"):
        search_of(joint, [joint.random_point()])


@pytest.mark.parametrize("damage", ["nan", "indefinite core", "frame not orthonormal"])
def test_data_off_the_manifold_is_refused_by_point_and_module(damage: str) -> None:
    quotient, points = updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)
    bad = points[1].clone()
    u, b, _ = quotient.total.split(bad[1])
    if damage == "nan":
        u[0, 0] = torch.nan
    elif damage == "indefinite core":
        b.neg_()
    else:
        u.mul_(2)
    with pytest.raises(RecipeError, match="point 1 is no point of the manifold in module 1"):
        search_of(quotient, [points[0], bad, points[2]])


def test_geometry_of_the_quotient_alone() -> None:
    """Every gauge of every point gives the same cost: the joint start aligns them."""
    quotient, points = updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)
    generator = torch.Generator().manual_seed(0)
    action, total = quotient.action, quotient.total
    assert isinstance(action, Orthogonal)
    turned = [action.act(total, x, action.random_element((2,), generator)) for x in points]
    for a, b in itertools.product((points, turned), repeat=2):
        one, two = search_of(quotient, a), search_of(quotient, b)
        costs = [p.evaluate(p.start()).cost for p in (one, two)]
        torch.testing.assert_close(*costs, rtol=1e-9, atol=0)
    assert isinstance(quotient, QuotientManifold)


@pytest.mark.parametrize(("rank", "width"), [(8, 64), (16, 96)])
def test_a_start_at_the_cut_locus_is_left_by_ever_longer_steps(
    rank: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many modules of one subspace, one in forty is helped neither by the first step nor by the data."""
    points = family("shared_subspace", 6, width, width, rank, seed=0, k=12)
    tries = []
    for steps in (search._STEPS_OFF, 1):
        monkeypatch.setattr(search, "_STEPS_OFF", steps)
        solution = mean_of(updates(width, width, rank, k=12), points, max_passes=1)
        tries.append(int(np.isinf(solution.cost).sum()))
    assert tries == [0, 1]


def test_what_a_solve_takes_is_counted_by_kind() -> None:
    quotient, points = updates(12, 11, 2, k=2), family("close", 3, 12, 11, 2, seed=5)
    counts = {form: mean_of(quotient, points, form=form, max_passes=4).counts for form in FORMS}
    for form, found in counts.items():
        assert found["passes"] == 4
        assert found["gradients"] == 2 * 4
        assert found["logarithms"] == 3 * 2 * 4
        assert found["alignments"] == found["logarithms"] * (form == "nested")
        # The start is moved to from nowhere, and in the joint form evaluated again in double precision.
        assert found["exponentials"] == 2 * {"joint": 2, "nested": 3}[form]
        assert found["hessian_products"] == 0
    second = mean_of(quotient, points, solver="trust_regions", max_passes=9).counts
    assert second["hessian_products"] > 0
    assert second["gradients"] == 2 * second["passes"]
    chordal = mean_of(quotient, points, distance="chordal", max_passes=4).counts
    assert chordal["logarithms"] == 0
    assert chordal["gradients"] == 8
    whole = mean_of(quotient, points, loss="huber", tol=1e-6)
    median = mean_of(quotient, points, loss="absolute", tol=1e-6)
    assert whole.counts["passes"] == whole.passes > median.passes
