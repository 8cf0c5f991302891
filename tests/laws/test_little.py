"""A metric of 15 lines and a symmetry of 10 keep every law and enter every solver."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest
import torch
from my_lab import metric, symmetry
from torch import Tensor

from examples.toy_problem import network
from riemerge import Problem, frechet_mean
from riemerge.manifolds import GeodesicManifold, QuotientManifold
from riemerge.manifolds.checks import check_action, check_manifold, check_metric
from tests.fake_cuda import fake_cuda
from tests.laws.faults import DIFFERENCES, EXACT
from tests.manifolds import two_layers
from tools.lines import count

FAR = torch.tensor([[[1e4], [3e-3]], [[-2e-3], [5e2]]], dtype=torch.float64)


def networks() -> QuotientManifold:
    return QuotientManifold(metric.TwoLayers(k=2, seed=1), symmetry.Scaling())


@pytest.mark.parametrize(("module", "limit"), [(metric, 15), (symmetry, 10)])
def test_it_is_little_to_implement(module: Any, limit: int) -> None:
    source = inspect.getsource(module)
    (node,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    text = "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
    assert count(text)[0] <= limit


@pytest.mark.parametrize("point", [None, FAR], ids=["random", "far"])
@pytest.mark.parametrize("make", [lambda: networks().total, networks], ids=["metric", "symmetry"])
def test_laws(make: Any, point: Tensor | None) -> None:
    manifold: GeodesicManifold = make()
    defects = check_manifold(manifold, scale=0.4, point=point) | check_metric(manifold, point=point)
    # Transport is derived: by projection, which is no isometry. Differences divide round-off by their step.
    del defects["isometry"]
    assert defects.pop("gauss") < DIFFERENCES
    assert defects.pop("compatibility") < DIFFERENCES
    # Vectors are compared by their entries, and those of the far points differ by a factor of 1e7.
    assert max(defects.values()) < (1e3 if point is None else 1e6) * EXACT, defects


def test_laws_of_the_symmetry() -> None:
    defects = check_action(networks(), scale=0.4)
    assert defects.pop("vertical") < DIFFERENCES
    assert max(defects.values()) < EXACT, defects


def test_derived_verbs_are_those_that_the_toy_states() -> None:
    little, stated = networks(), QuotientManifold(two_layers.TwoLayers(k=2, seed=1), two_layers.Scaling())
    x = FAR
    y = torch.tensor([[[3.0], [5.0]], [[-0.1], [20.0]]], dtype=torch.float64)
    u, v = 0.1 * x * torch.randn(2, 2, 2, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for verb, arguments in (
        ("euclidean_to_riemannian_gradient", (x, u)),
        ("riemannian_to_euclidean_gradient", (x, u)),
        ("covariant_derivative", (x, u, v, v)),
    ):
        ours, theirs = (getattr(quotient.total, verb)(*arguments) for quotient in (little, stated))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for verb in ("momentum", "vertical_generator"):
        ours, theirs = (getattr(quotient.action, verb)(quotient.total, x, u) for quotient in (little, stated))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(little.align(y, to=x), stated.align(y, to=x))
    torch.testing.assert_close(little.dists(x, y), stated.dists(x, y))


@pytest.mark.parametrize("b", [(-1.0, 2.0), (1e3, 1e-3), (1.0, torch.nan)])
def test_a_vector_that_does_not_reach_its_point_is_no_logarithm(b: tuple[float, float]) -> None:
    """Another sign, more than half a turn (of log|t1 / t2|), and no number."""
    networks = metric.TwoLayers()
    assert not bool(networks.logarithm(network(1, 2), network(*b)).valid)
    assert bool(networks.logarithm(network(1, 2), network(2, 2)).valid)


def test_modules_devices_and_precisions_agree() -> None:
    quotient = networks()
    x, y = (quotient.random_point() for _ in range(2))
    v = 0.1 * quotient.random_tangent_vector(x)
    horizontal = quotient.horizontal(x, v)
    raised = quotient.euclidean_to_riemannian_gradient(x, v)
    with fake_cuda():
        a, b, c = (z.to("cuda") for z in (x, y, v))
        torch.testing.assert_close(quotient.dists(a, b).cpu(), quotient.dists(x, y))
        torch.testing.assert_close(quotient.horizontal(a, c).cpu(), horizontal)
        torch.testing.assert_close(quotient.euclidean_to_riemannian_gradient(a, c).cpu(), raised)
    single = quotient.horizontal(x.float(), v.float())
    assert single.dtype is torch.float32
    torch.testing.assert_close(single.double(), horizontal, rtol=1e-4, atol=1e-6)
    alone = quotient.with_modules(1)
    torch.testing.assert_close(alone.dists(x[1:], y[1:]), quotient.dists(x, y)[1:])


@pytest.mark.parametrize(
    "solver", ["lbfgs", "conjugate_gradient", "steepest_descent", "trust_regions", "fixed_point"]
)
def test_every_solver_finds_the_mean_of_predictors(solver: str) -> None:
    quotient = QuotientManifold(metric.TwoLayers(), symmetry.Scaling())
    points = [network(1, 2), network(-6, -0.5), network(0.1, 70)]
    solution = frechet_mean(Problem(quotient, points, [0.5, 0.3, 0.2]), solver)
    assert solution.ok
    assert float(solution.point.prod()) == pytest.approx(3.3, rel=1e-9)
