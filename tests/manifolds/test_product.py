"""Products: their metric and mean are those of their factors, scaled."""

from __future__ import annotations

import pytest
import torch

from riemerge.errors import RecipeError
from riemerge.manifolds import Euclidean, HalfPlane, Product, Sphere


def test_squared_distances_are_the_scaled_sum_of_those_of_the_factors() -> None:
    factors = Sphere(3, 2, k=2, seed=1), HalfPlane(3, k=2, seed=2)
    manifold = Product(*factors, scales=(2, 0.5))
    assert manifold.point_shape == (12, 1)
    a, b = manifold.random_point(), manifold.random_point()
    parts = zip(factors, manifold.split(a), manifold.split(b), strict=True)
    sphere, plane = (factor.dists(x, y).square() for factor, x, y in parts)
    torch.testing.assert_close(manifold.dists(a, b).square(), 2 * sphere + 0.5 * plane)
    torch.testing.assert_close(manifold.join(*manifold.split(a)), a, rtol=0, atol=0)


def test_a_logarithm_needs_one_of_every_factor() -> None:
    manifold = Product(Euclidean(2, 1), Sphere(2, 1))
    a, b = torch.tensor([[0.0], [0.0], [1.0], [0.0]]), torch.tensor([[1.0], [0.0], [-1.0], [0.0]])
    assert not bool(manifold.logarithm(a[None], b[None]).valid)
    assert not bool(manifold.feasible(2 * a[None]))


def test_factors_of_equal_width_lie_below_each_other_and_are_reduced() -> None:
    manifold = Product(Sphere(30, 2, k=2, seed=1), Euclidean(4, 2, k=2, seed=2))
    assert manifold.point_shape == (34, 2)
    points = torch.stack([manifold.random_point() for _ in range(3)])
    small = manifold.reduce(points)
    # The sphere's coordinates have one column.
    assert small.manifold.point_shape == (3 + 8, 1)
    torch.testing.assert_close(
        small.manifold.dists(small.points[0], small.points[1:]), manifold.dists(points[0], points[1:])
    )
    torch.testing.assert_close(small.lift(small.points[2]), points[2])


def test_a_closed_mean_needs_one_of_every_factor() -> None:
    flat = Euclidean(2, 1, seed=1)
    points = torch.stack([Product(flat, flat).random_point() for _ in range(2)])
    weights = torch.tensor([[0.25], [0.75]], dtype=torch.float64)
    torch.testing.assert_close(
        Product(flat, flat).closed_mean(points, weights), 0.25 * points[0] + 0.75 * points[1]
    )
    with pytest.raises(RecipeError, match="Sphere of 2x1 matrices has no closed_mean; needed by the closed"):
        Product(flat, Sphere(2, 1)).closed_mean(points, weights)


def test_bad_factors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\] modules; expected one number"):
        Product(Euclidean(1, 1), Euclidean(1, 1, k=2))
    with pytest.raises(ValueError, match="expected 1 positive"):
        Product(Euclidean(1, 1), scales=(0,))
