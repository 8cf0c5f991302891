"""The solvers by name, and Pymanopt's optimizers as guests."""

from __future__ import annotations

import pytest
import torch
from pymanopt import manifolds, optimizers

from riemerge.errors import RecipeError
from riemerge.frechet import Problem, Status, frechet_mean
from riemerge.frechet.solvers.catalogue import as_solver
from riemerge.manifolds import Euclidean, SymmetricPositiveDefinite
from riemerge.manifolds.spd_metrics import SpdLogEuclidean
from riemerge.solvers import LBFGS, SOLVERS, ConjugateGradient, Guest
from tests.helpers import random_core, seeded


def test_a_solver_is_given_by_name_as_itself_or_as_an_optimizer() -> None:
    named = as_solver("conjugate_gradient:beta=LiuStorey", tol=1e-6)
    assert named == ConjugateGradient(beta="LiuStorey", tol=1e-6)
    assert as_solver(named) is named
    given = optimizers.TrustRegions(verbosity=0)
    guest = as_solver(given, max_passes=7)
    assert isinstance(guest, Guest)
    assert guest.optimizer is given
    assert guest.max_passes == 7
    assert isinstance(as_solver(optimizers.SteepestDescent), Guest)


@pytest.mark.parametrize("given", [optimizers.ConjugateGradient, optimizers.ConjugateGradient(verbosity=0)])
def test_an_optimizer_of_a_plugin_is_a_guest(monkeypatch: pytest.MonkeyPatch, given: object) -> None:
    monkeypatch.setattr(SOLVERS, "_entries", dict(SOLVERS._entries))
    monkeypatch.setattr(SOLVERS, "_given", {})
    SOLVERS.register("pcg", given)
    guest = as_solver("pcg:max_passes=7", tol=1e-3)
    assert isinstance(guest, Guest)
    assert isinstance(guest.optimizer, optimizers.ConjugateGradient)
    assert guest.optimizer is not as_solver("pcg").optimizer  # type: ignore[attr-defined]
    assert (guest.max_passes, guest.tol) == (7, 1e-3)
    assert SOLVERS.make(SOLVERS.text_of(guest), tol=1.0) is guest
    with pytest.raises(RecipeError, match="unexpected keyword argument 'passes'"):
        SOLVERS.make("pcg:passes=3")


@pytest.mark.parametrize("given", [3, dict])
def test_what_builds_no_solver_is_refused(given: object) -> None:
    with pytest.raises(RecipeError, match=r"solver 'lab': .* builds no solver; expected a subclass of"):
        SOLVERS.register("lab", given)


def test_a_closed_form_is_the_mean_or_is_refused() -> None:
    generator = seeded(5)
    cores = [random_core(3, 20.0, generator)[None] for _ in range(4)]
    log_euclidean = SpdLogEuclidean(3)
    for manifold in (Euclidean(3, 3), log_euclidean):
        problem = Problem(manifold, cores, [0.4, 0.3, 0.2, 0.1])
        closed, known = frechet_mean(problem, "closed_form"), frechet_mean(problem, LBFGS(tol=1e-10))
        assert closed.status == (Status.EXACT,)
        torch.testing.assert_close(closed.point, known.point, rtol=1e-8, atol=1e-9)
        assert closed.gradient_norm[0] < 1e-9
    affine = SymmetricPositiveDefinite(3)
    refused = (
        (Problem(affine, cores), "has no closed_mean; needed by the closed-form solver"),
        (Problem(log_euclidean, cores, loss="absolute"), "has no closed mean"),
        (
            Problem(log_euclidean, cores, distance=lambda x, y: (x - y).square().sum(dim=(-2, -1))),
            "no closed",
        ),
        (Problem(manifolds.Euclidean(3, 3), [x[0].numpy() for x in cores]), "has no closed mean"),
    )
    for problem, words in refused:
        with pytest.raises(RecipeError, match=words):
            frechet_mean(problem, "closed_form")


@pytest.mark.parametrize("solver", ["fixed_point", "trust_regions:hessian=gauss_newton"])
def test_unit_steps_of_a_median_are_weiszfeld_s(solver: str) -> None:
    """x <- (Σ wᵢ yᵢ/dᵢ) / (Σ wᵢ/dᵢ), in a flat space (Weiszfeld 1937)."""
    generator = seeded(6)
    points = [torch.randn(1, 3, 1, generator=generator, dtype=torch.float64) for _ in range(5)]
    start = torch.zeros(1, 3, 1, dtype=torch.float64)
    found = frechet_mean(
        Problem(Euclidean(3, 1), points, loss="absolute"), SOLVERS.make(solver, max_passes=2), start
    )
    pull = [1 / x.norm() for x in points]
    expected = sum(p * x for p, x in zip(pull, points, strict=True)) / sum(pull)
    torch.testing.assert_close(found.point, expected, rtol=1e-9, atol=1e-9)
