"""The sphere near, far, in a span and beside Pymanopt's."""

from __future__ import annotations

import numpy as np
import pymanopt
import pytest
import torch

from riemerge.manifolds import Sphere


def turned(angle: float, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Two points (1, width, 1) at an angle."""
    point = torch.zeros(1, width, 1, dtype=torch.float64)
    point[0, 0] = 1
    other = torch.zeros_like(point)
    other[0, 0], other[0, 1] = np.cos(angle), np.sin(angle)
    return point, other


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-3, 1.0, 3.0, np.pi - 1e-5])
def test_angles_are_accurate_near_and_far(angle: float) -> None:
    manifold = Sphere(5, 1)
    a, b = turned(angle)
    # cos(pi - t) itself holds t to eps / t.
    assert float(manifold.dist(a, b)) == pytest.approx(angle, rel=1e-15 / (np.pi - angle), abs=1e-28)
    log = manifold.logarithm(a, b)
    assert bool(log.valid)
    assert float(log.tangent[0, 1, 0]) == pytest.approx(angle, rel=1e-14)
    assert float(manifold.inner_product(a, a, log.tangent)) < 1e-9 * min(angle, 1)


@pytest.mark.parametrize("angle", [np.pi, np.pi - 1e-8])
def test_antipodes_have_no_logarithm(angle: float) -> None:
    assert not bool(Sphere(5, 1).logarithm(*turned(angle)).valid)


def test_a_point_off_the_sphere_is_not_feasible_nor_reached() -> None:
    a, b = turned(0.5)
    manifold = Sphere(5, 1)
    assert bool(manifold.feasible(a))
    assert not bool(manifold.feasible(1.1 * a))
    assert not bool(manifold.feasible(a * torch.nan))
    assert not bool(manifold.logarithm(a, 1.1 * b).valid)


def test_the_span_of_the_data_has_their_distances() -> None:
    manifold = Sphere(40, 30, k=2, seed=3)
    x = manifold.random_point()
    points = torch.stack([x, *(manifold.exp(x, 1e-6 * manifold.random_tangent_vector(x)) for _ in range(2))])
    small = manifold.reduce(points)
    assert small.manifold.point_shape == (3, 1)
    assert bool(small.manifold.feasible(small.points).all())
    there, here = (m.dists(p[0], p[1:]) for m, p in ((small.manifold, small.points), (manifold, points)))
    torch.testing.assert_close(there, here, rtol=1e-8, atol=0)
    torch.testing.assert_close(small.lift(small.points[1]), points[1], rtol=0, atol=1e-15)


def test_the_average_of_antipodes_is_a_point() -> None:
    a, _ = turned(0.0)
    mean = Sphere(5, 1).extrinsic_mean(torch.stack([a, -a]), torch.tensor([[0.5], [0.5]]))
    torch.testing.assert_close(mean, a)


@pytest.mark.oracle
def test_the_sphere_is_pymanopt_s() -> None:
    ours, theirs = Sphere(3, 4, seed=2), pymanopt.manifolds.Sphere(3, 4)
    a, b = ours.random_point(), ours.random_point()
    v = ours.random_tangent_vector(a)
    x, y, w = (t[0].numpy() for t in (a, b, v))
    assert float(ours.dist(a, b)) == pytest.approx(float(theirs.dist(x, y)), rel=1e-14)
    np.testing.assert_allclose(ours.log(a, b)[0], theirs.log(x, y), atol=1e-14)
    np.testing.assert_allclose(ours.exp(a, v)[0], theirs.exp(x, w), atol=1e-14)
