"""Torch functions as Pymanopt's costs."""

from __future__ import annotations

import pymanopt
import pytest
import torch

from riemerge.manifolds import FixedRank, torch_function
from riemerge.manifolds.checks import check_gradient, check_hessian
from tests.laws.faults import EXACT
from tests.manifolds.subjects import QUOTIENTS, TOTAL


@pytest.mark.parametrize(
    "name", ["stiefel", "stiefel, short", "rotations", "spd", "fixed rank", "two layers"]
)
def test_gradient_and_hessian_of_a_torch_function(name: str) -> None:
    manifold = TOTAL[name]()
    generator = torch.Generator().manual_seed(3)
    x = manifold.random_point()
    # Entries of SPD points reach 20: the cost must bend on the scale of the manifold for the steps to show
    # its order.
    a = torch.randn(x.shape, generator=generator, dtype=torch.float64) / x.abs().amax()

    @torch_function(manifold)
    def cost(point: torch.Tensor) -> torch.Tensor:
        return (a * point).sum() + (a * point).sin().square().sum()

    problem = pymanopt.Problem(manifold, cost)
    assert check_gradient(problem) == pytest.approx(2, abs=0.1)
    found = check_hessian(problem)
    assert found.pop("slope") == pytest.approx(3, abs=0.1)
    assert max(found.values()) < EXACT


def test_function_of_orbits_has_a_symmetric_hessian_on_the_quotient() -> None:
    quotient = QUOTIENTS["updates"]()
    total = quotient.total
    assert isinstance(total, FixedRank)

    @torch_function(quotient)
    def cost(point: torch.Tensor) -> torch.Tensor:
        return total.matrix(point).sin().sum()

    found = check_hessian(pymanopt.Problem(quotient, cost))
    assert found.pop("slope") == pytest.approx(3, abs=0.1)
    assert max(found.values()) < EXACT
