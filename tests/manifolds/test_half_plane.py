"""The half-plane near and far, and its means beside the kernel of Fisher-Rao means and geomstats."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from riemerge.manifolds import HalfPlane
from tests.helpers import import_geomstats


def point(u: float, s: float) -> torch.Tensor:
    return torch.tensor([[[u], [s]]], dtype=torch.float64)


def exact(a: torch.Tensor, b: torch.Tensor) -> float:
    """The distance, by arccosh in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        (u, s), (v, t) = ([Decimal(x) for x in p.flatten().tolist()] for p in (a, b))
        argument = 1 + ((u - v) ** 2 + (s - t) ** 2) / (2 * s * t)
        return float((argument + (argument**2 - 1).sqrt()).ln())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((0.3, 2.0), (0.3 + 1e-12, 2.0)),
        ((0.3, 2.0), (0.3, 2.0 + 1e-9)),
        ((0.0, 1.0), (1e-3, 1.001)),
        ((1.0, 1e-8), (-2.0, 1e5)),
        ((1e6, 1e-6), (-1e6, 1e-6)),
        ((0.0, 1e-100), (0.0, 1e100)),
    ],
)
def test_distances_and_logarithms_are_accurate_near_and_far(
    a: tuple[float, float], b: tuple[float, float]
) -> None:
    manifold, x, y = HalfPlane(), point(*a), point(*b)
    log = manifold.logarithm(x, y)
    assert bool(log.valid)
    distance = exact(x, y)
    assert float(log.squared.sqrt()) == pytest.approx(distance, rel=1e-13)
    assert float(manifold.norm(x, log.tangent)) == pytest.approx(distance, rel=1e-13)
    # The numbers of the arrival are known to eps times their size over the height; times the distance.
    miss = manifold.dist(manifold.exp(x, log.tangent), y)
    assert float(miss) < 1e-13 * max(1, abs(b[0]) / b[1]) * max(1, distance)


def test_what_is_not_above_the_line_is_not_feasible() -> None:
    manifold = HalfPlane()
    assert not bool(manifold.feasible(point(0, 0)))
    assert not bool(manifold.feasible(point(0, -1)))
    assert not bool(manifold.feasible(point(np.nan, 1)))
    assert not bool(manifold.logarithm(point(0, 1), point(0, -1)).valid)


def test_parallel_transport_takes_the_velocity_along() -> None:
    manifold = HalfPlane(4, seed=3)
    a, b = manifold.random_point(), manifold.random_point()
    torch.testing.assert_close(manifold.transport(a, b, manifold.log(a, b)), -manifold.log(b, a))


@pytest.mark.oracle
def test_the_half_plane_is_that_of_geomstats() -> None:
    geomstats = import_geomstats("geomstats.geometry.poincare_half_space")
    theirs = geomstats.PoincareHalfSpace(2).metric
    manifold = HalfPlane(seed=4)
    a, b = manifold.random_point(), manifold.random_point()
    x, y = a[0, :, 0].numpy(), b[0, :, 0].numpy()
    assert float(manifold.dist(a, b)) == pytest.approx(float(theirs.dist(x, y)), rel=1e-9)
    np.testing.assert_allclose(manifold.log(a, b)[0, :, 0], theirs.log(y, x), rtol=1e-7)
