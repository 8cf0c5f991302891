"""Squared distances through torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from riemerge.manifolds import FixedRank, Stiefel
from tests.frechet.problems import mean_of
from tests.manifolds.subjects import family, updates


def test_squared_distance_is_differentiable_in_both_points() -> None:
    manifold = FixedRank(9, 8, 2, k=3)
    a, b = manifold.random_point(), manifold.random_point()
    b = manifold.exp(a, 0.2 * manifold.log(a, b))
    leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
    manifold.squared_dists(*leaves).sum().backward()
    for x, leaf, log in ((a, leaves[0], manifold.log(a, b)), (b, leaves[1], manifold.log(b, a))):
        assert leaf.grad is not None
        gradient = manifold.euclidean_to_riemannian_gradient(x, leaf.grad)
        torch.testing.assert_close(gradient, -2 * log, rtol=0, atol=1e-12)


def test_squared_distance_on_the_quotient_is_differentiable_in_both_points() -> None:
    quotient = updates(12, 11, 3, k=1)
    a, b = family("mix", 2, 12, 11, 3, seed=5, k=1)
    v = quotient.random_tangent_vector(b)
    leaf = b.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(quotient.squared_dists(a, leaf).sum(), leaf)
    ahead, behind = (float(quotient.squared_dists(a, quotient.exp(b, t * v))) for t in (1e-4, -1e-4))
    # Central differences, of distances aligned to 1e-10.
    assert float((gradient * v).sum()) == pytest.approx((ahead - behind) / 2e-4, abs=1e-6)


def test_a_pair_that_does_not_count_has_no_say_in_the_gradient() -> None:
    """A point of weight zero in one module, and beyond its cut locus there."""
    manifold = Stiefel(8, 2, k=2, seed=1)
    x = manifold.random_point()
    points = [manifold.exp(x, 0.3 * manifold.random_tangent_vector(x)) for _ in range(3)]
    points[2][1] = -points[0][1]
    weights = torch.tensor([[1.0, 1], [1, 1], [1, 0]])
    # Started where that point's log is undefined.
    means = [
        mean_of(manifold, points, weights, gradient=g, initial_point=points[0])
        for g in ("analytic", "autograd")
    ]
    assert all(mean.ok for mean in means)
    np.testing.assert_allclose(means[0].cost, means[1].cost, rtol=1e-10)
    alone = mean_of(Stiefel(8, 2), [p[1:] for p in points[:2]])
    np.testing.assert_allclose(means[0].cost[1], alone.cost[0], rtol=1e-10)


def test_squared_distance_cannot_be_differentiated_twice() -> None:
    manifold = Stiefel(6, 2)
    a = manifold.random_point().requires_grad_()
    (gradient,) = torch.autograd.grad(
        manifold.squared_dists(a, manifold.random_point()).sum(), a, create_graph=True
    )
    with pytest.raises(RuntimeError):
        gradient.sum().backward()
