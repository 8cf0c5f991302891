"""Formulations on torch manifolds: their gradients, and one bad module among good ones."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from riemerge.frechet.batched import Nested
from riemerge.frechet.low_rank.joint import Joint
from riemerge.manifolds import FixedRank, Orthogonal, Stiefel, SymmetricPositiveDefinite
from riemerge.manifolds.checks import check_gradient, check_hessian
from tests.frechet.problems import FORMS, Form, as_pymanopt, away, search_of
from tests.manifolds.subjects import family, updates


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["close", "lora_like"])
def test_analytic_autograd_and_finite_differences_agree(form: Form, name: str) -> None:
    quotient, points = updates(20, 17, 4, k=2), family(name, 3, 20, 17, 4, seed=3)
    analytic = search_of(quotient, points, [0.5, 0.3, 0.2], form=form)
    autograd = search_of(quotient, points, [0.5, 0.3, 0.2], form=form, gradient="autograd")
    x = away(analytic)
    one, two = analytic.evaluate(x), autograd.evaluate(x)
    torch.testing.assert_close(one.cost, two.cost, rtol=1e-13, atol=0)
    # In nested form both see an alignment that is found to 1e-10 only.
    torch.testing.assert_close(one.gradient, two.gradient, rtol=0, atol=1e-12 if form == "joint" else 1e-9)
    assert check_gradient(as_pymanopt(analytic), point=x) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    "manifold", [Stiefel(12, 3, k=2), SymmetricPositiveDefinite(4, k=2), FixedRank(9, 8, 2, k=2)]
)
def test_gradients_agree_without_a_symmetry(manifold: Stiefel) -> None:
    points = [manifold.random_point() for _ in range(3)]
    analytic = search_of(manifold, points)
    autograd = search_of(manifold, points, gradient="autograd")
    x = away(analytic)
    torch.testing.assert_close(
        analytic.evaluate(x).gradient, autograd.evaluate(x).gradient, rtol=0, atol=1e-12
    )
    assert check_gradient(as_pymanopt(analytic), point=x) == pytest.approx(2, abs=0.1)
    found = check_hessian(as_pymanopt(analytic), point=x)
    assert found.pop("slope") == pytest.approx(3, abs=0.2)
    # Central differences: their error is the step's square.
    assert max(found.values()) < 1e-6


def test_unaligned_data_are_seen_as_such() -> None:
    quotient, points = updates(14, 12, 3, k=2), family("close", 3, 14, 12, 3, seed=3)
    problem = search_of(quotient, points)
    form = problem.form
    assert isinstance(form, Joint)
    x, _ = form.manifold.split(problem.start())
    aligned = form.manifold.join(x, form.action.nearest(form.total, form.points, x))
    turned = away(problem)
    assert float(problem.evaluate(turned).vertical.max()) > 1e6 * float(
        problem.evaluate(aligned).vertical.max()
    )


def test_one_bad_module_costs_infinity_and_leaves_the_others_alone() -> None:
    quotient, points = updates(12, 11, 3, k=3), family("close", 3, 12, 11, 3, seed=5, k=3)
    for form in FORMS:
        problem = search_of(quotient, points, form=form)
        x = problem.start()
        before = problem.evaluate(x)
        for damage in (torch.nan, torch.inf, -1.0):
            bad = x.clone()
            total = problem.form.manifold.total
            bad[1, total.m : total.m + 3] = damage * torch.eye(3, dtype=torch.float64)
            after = problem.evaluate(bad)
            assert after.cost[1] == torch.inf
            assert not after.gradient[1].any()
            assert torch.isfinite(after.gradient).all()
            torch.testing.assert_close(after.cost[[0, 2]], before.cost[[0, 2]], rtol=1e-13, atol=0)


def test_the_nested_form_follows_the_alignments_of_the_last_iterate() -> None:
    """And no trial point's; they are searched for at the start and in the certificate alone."""
    quotient, points = updates(12, 11, 3, k=2), family("mix", 3, 12, 11, 3, seed=5)
    problem = search_of(quotient, points, form="nested")
    start, trial = problem.start(), away(problem, 0.3)
    form = problem.form
    assert isinstance(form, Nested)
    truth = form.certify(trial)[0]
    form.accept(form.evaluate(start))
    with mock.patch.object(Orthogonal, "nearest", side_effect=AssertionError):
        loose, tight = form.evaluate(trial), form.evaluate(trial, tight=True)
        form.evaluate(start)
    torch.testing.assert_close(tight.cost, truth.cost, rtol=1e-12, atol=0)
    torch.testing.assert_close(tight.gradient, truth.gradient, rtol=0, atol=1e-9)
    # Off by a share of the gradient where it started, the cost by its square.
    norms = form.evaluate(start).norms
    assert bool((form.manifold.norms(trial, loose.gradient - truth.gradient) <= 0.1 * norms).all())
    assert bool(((loose.cost - truth.cost).abs() <= 0.01 * norms.square()).all())
    few = torch.tensor([1])
    narrow = form.narrow(few).evaluate(trial[few], tight=True)
    torch.testing.assert_close(narrow.cost, truth.cost[1:], rtol=1e-12, atol=0)
    assert float(form.certify(trial)[0].vertical.max()) < 1e-8
