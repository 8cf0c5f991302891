"""Conjugate gradients of every module by itself, against Pymanopt's and on quadratics."""

from __future__ import annotations

import numpy as np
import pymanopt
import pytest
import torch
from pymanopt.optimizers import ConjugateGradient as Stock
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.frechet import Problem, frechet_mean
from riemerge.frechet.solvers import conjugate_gradient
from riemerge.frechet.solvers.guest_optimizer import ENDLESS
from riemerge.manifolds import Euclidean
from riemerge.problems import family
from riemerge.solvers import SOLVERS, ConjugateGradient, Guest
from tests.helpers import seeded

RULES = ["FletcherReeves", "PolakRibiere", "HestenesStiefel", "HagerZhang", "LiuStorey"]


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_is_behind_pymanopt_s(rule: str) -> None:
    """At a tight tolerance, where with one β and one step for all modules the named one was behind."""
    problem = family("lora_like", 3, 16, 14, 2, modules=2, seed=2)
    ours, stock = (
        frechet_mean(problem, solver)
        for solver in (
            ConjugateGradient(beta=rule, max_passes=150),
            Guest(optimizer=Stock(beta_rule=rule, **ENDLESS), max_passes=150),
        )
    )
    assert ours.ok
    assert ours.passes < stock.passes


def ellipsoids(k: int = 2) -> Problem:
    """The points 0 under quadratic distances of condition 100, another one in each module."""
    scales = torch.stack([torch.logspace(0, 2 - i, 8, dtype=torch.float64) for i in range(k)])[..., None]

    def apart(x: Tensor, y: Tensor) -> Tensor:
        return (scales * (x - y).square()).sum(dim=(-2, -1))

    return Problem(Euclidean(8, 1, k=k), [torch.zeros(k, 8, 1, dtype=torch.float64)], distance=apart)


@pytest.mark.parametrize("rule", RULES)
def test_directions_are_conjugate(rule: str) -> None:
    """Eight steps end on a quadratic of eight variables, but for restarts; descent takes hundreds."""
    start = torch.ones(2, 8, 1, dtype=torch.float64)
    solver = ConjugateGradient(beta=rule, tol=1e-8, max_passes=120)
    assert frechet_mean(ellipsoids(), solver, start).ok
    descent = SOLVERS.make("steepest_descent", max_passes=120)
    assert not frechet_mean(ellipsoids(), descent, start).ok


@pytest.mark.parametrize("rule", RULES)
def test_each_module_runs_as_if_alone(rule: str) -> None:
    generator = seeded(3)
    start = torch.randn(2, 8, 1, generator=generator, dtype=torch.float64)
    both = frechet_mean(ellipsoids(2), ConjugateGradient(beta=rule, max_passes=12), start)
    alone = frechet_mean(ellipsoids(1), ConjugateGradient(beta=rule, max_passes=12), start[:1])
    for one, two in zip(both.trace, alone.trace, strict=False):
        np.testing.assert_allclose(one.cost[0], two.cost[0], rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_the_first_shares_are_pymanopt_s(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one module: after the same first step, the same β."""
    seen: list[float] = []
    known = conjugate_gradient._RULES[rule]

    def watched(turn: conjugate_gradient._Turn) -> Tensor:
        seen.append(float(known(turn)))
        x = np.zeros(8)
        space = pymanopt.manifolds.Euclidean(8)
        old = turn.gradient - turn.change
        names = {
            "manifold": space,
            "x": x,
            "newx": x,
            "grad": old,
            "newgrad": turn.gradient,
            "Pnewgrad": turn.descent,
            "newgradPnewgrad": (turn.gradient * turn.descent).sum(),
            "Pgrad": turn.descent - turn.descent_change,
            "gradPgrad": turn.decrease[0],
            "gradient_norm": turn.norm[0],
            "oldgrad": old,
            "descent_direction": turn.direction,
        }
        flat = {key: v.numpy().ravel() if isinstance(v, Tensor) and v.ndim else v for key, v in names.items()}
        stock = pymanopt.optimizers.conjugate_gradient.BETA_RULES[rule](**flat)
        assert seen[-1] == pytest.approx(float(stock), rel=1e-10)
        return known(turn)

    monkeypatch.setitem(conjugate_gradient._RULES, rule, watched)
    start = torch.randn(1, 8, 1, generator=seeded(4), dtype=torch.float64)
    frechet_mean(ellipsoids(1), ConjugateGradient(beta=rule, max_passes=12), start)
    assert len(seen) > 3


def test_rules_have_words_in_lower_case_too() -> None:
    one, two = (SOLVERS.make(f"conjugate_gradient:beta={name}") for name in ("liu_storey", "LiuStorey"))
    problem = family("close", 3, 12, 10, 2)
    assert torch.equal(frechet_mean(problem, one).point, frechet_mean(problem, two).point)
    with pytest.raises(RecipeError, match="beta is 'DaiYuan'; expected one of FletcherReeves"):
        ConjugateGradient(beta="DaiYuan")
