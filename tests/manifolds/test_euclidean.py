"""The flat space and its mean."""

from __future__ import annotations

import torch

from riemerge.manifolds import Euclidean


def test_the_closed_mean_is_the_weighted_average_of_each_module() -> None:
    manifold = Euclidean(3, 2, k=2, seed=1)
    points = torch.stack([manifold.random_point() for _ in range(3)])
    weights = torch.tensor([[0.5, 1.0], [0.25, 0.0], [0.25, 0.0]])
    mean = manifold.closed_mean(points, weights)
    torch.testing.assert_close(mean[1], points[0, 1], rtol=0, atol=0)
    logs = manifold.logarithm(mean, points).tangent
    gradient = (weights[..., None, None] * logs).sum(dim=0)
    assert float(gradient.abs().max()) < 1e-15
