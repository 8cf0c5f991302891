"""The laws of losses and solvers, on what breaks them."""

from __future__ import annotations

from typing import final

import pymanopt
import pytest
from torch import Tensor

from riemerge.laws import LAWS, judge
from riemerge.losses import LOSSES, Loss
from riemerge.solvers import SteepestDescent
from riemerge.study.value_laws import check_loss, check_solver
from tests.frechet.problems import ITERATIVE


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_obeys_the_laws(name: str) -> None:
    defects = check_loss(LOSSES.make(name))
    assert defects.keys() == LAWS["loss"].keys()
    assert {finding.verdict for finding in judge("loss", defects)} == {"holds"}, defects


@final
class Cubic(Loss):
    """ρ(d) = d³/3, with one fault or none."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def cost(self, weights: Tensor, squared: Tensor) -> Tensor:
        third = squared.sqrt() ** 3 / 3
        if self.fault == "zero":
            third = third + 1
        if self.fault == "growth":
            third = -third
        if self.fault == "absence":
            weights = weights + 0.1
        return (weights * third).sum(dim=0)

    def pull(self, weights: Tensor, squared: Tensor) -> Tensor:
        scale = 1.01 if self.fault == "pull" else 1.0
        if self.fault == "smoothness":
            return weights / squared.sqrt()
        return scale * weights * squared.sqrt()


@pytest.mark.parametrize("fault", ["", *LAWS["loss"]])
def test_a_fault_of_a_loss_is_caught(fault: str) -> None:
    failing = {
        finding.name for finding in judge("loss", check_loss(Cubic(fault))) if finding.verdict == "fails"
    }
    assert fault in failing or not (fault or failing)


@pytest.mark.parametrize("name", ITERATIVE)
def test_every_solver_obeys_the_laws(name: str) -> None:
    assert {finding.verdict for finding in judge("solver", check_solver(name))} == {"holds"}


def test_a_guest_obeys_the_laws() -> None:
    found = judge("solver", check_solver(pymanopt.optimizers.ConjugateGradient))
    assert {finding.verdict for finding in found} == {"holds"}


def test_a_solver_that_does_not_arrive_is_caught() -> None:
    early = check_solver(SteepestDescent(max_passes=1))
    assert early["status"] == 1
    assert early["mean"] > 1e-3
    loose = check_solver(SteepestDescent(tol=1e-2))
    assert loose["status"] == 0
    assert loose["mean"] > LAWS["solver"]["mean"].tolerance
