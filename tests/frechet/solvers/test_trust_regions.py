"""Trust regions of every module by itself, with three models of the Hessian."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.frechet import Problem, Status, frechet_mean
from riemerge.manifolds import Euclidean
from riemerge.problems import family
from riemerge.solvers import LBFGS, SOLVERS, TrustRegions
from tests.helpers import seeded

MODELS = ["finite_difference", "gauss_newton", "identity"]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_finds_the_mean(model: str) -> None:
    """Close updates: 8, 7 and 8 passes with the cheap models, 24 by differences (120 x 100, rank 8)."""
    problem = family("close", 4, 30, 26, 3, modules=2)
    found = frechet_mean(problem, TrustRegions(hessian=model, tol=1e-9))
    assert found.status == (Status.CONVERGED,) * 2
    np.testing.assert_allclose(found.cost, frechet_mean(problem, LBFGS(tol=1e-9)).cost, rtol=1e-9)
    assert found.passes <= (30 if model == "finite_difference" else 12)


def valley(k: int) -> Problem:
    """Rosenbrock's function on the plane: curved, and concave at some of the points."""

    def apart(x: Tensor, y: Tensor) -> Tensor:
        a, b = x[:, 0, 0], x[:, 1, 0]
        return 2 * (1 - a).square() + 20 * (b - a.square()).square() + 0 * y.sum(dim=(-2, -1))

    return Problem(Euclidean(2, 1, k=k), [torch.zeros(k, 2, 1, dtype=torch.float64)], distance=apart)


def test_each_module_has_its_own_radius() -> None:
    """Rosenbrock's valley from three starts: together they take the steps that each takes by itself."""
    starts = torch.randn(3, 2, 1, generator=seeded(1), dtype=torch.float64) * 1.5
    together = frechet_mean(valley(3), TrustRegions(tol=1e-9), starts)
    assert together.status == (Status.CONVERGED,) * 3
    np.testing.assert_allclose(together.point[:, :, 0], np.ones((3, 2)), atol=1e-7)
    for index in range(3):
        alone = frechet_mean(valley(1), TrustRegions(tol=1e-9), starts[index : index + 1])
        # In the stack a module stays where it is while others move.
        taken, own = (
            {round(float(cost), 9) for cost in costs}
            for costs in ([x.cost[index] for x in together.trace], [x.cost[0] for x in alone.trace])
        )
        assert taken == own


def test_costs_never_rise() -> None:
    for model in MODELS:
        found = frechet_mean(
            valley(2),
            TrustRegions(hessian=model, max_passes=80),
            torch.tensor([[[-1.2], [1.0]], [[2.0], [-2.0]]], dtype=torch.float64),
        )
        costs = np.array([x.cost for x in found.trace])
        assert (np.diff(costs, axis=0) <= 1e-12).all()


def test_differences_make_it_quadratic() -> None:
    """The last steps square the gradient, as no method of first order does."""
    found = frechet_mean(
        valley(1), TrustRegions(tol=1e-12), torch.tensor([[[-1.2], [1.0]]], dtype=torch.float64)
    )
    norms = [float(x.gradient_norm[0]) for x in found.trace]
    late = [norm for norm in norms if norm < 2e-3]
    assert all(after < 100 * before**2 + 1e-9 for before, after in pairwise(late))


def test_models_have_names() -> None:
    assert SOLVERS.make("trust_regions:hessian=identity") == TrustRegions(hessian="identity")
    with pytest.raises(RecipeError, match="hessian is 'exact'; expected one of finite_difference, gauss"):
        TrustRegions(hessian="exact")
