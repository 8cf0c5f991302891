"""Fréchet means beside those of geomstats, where both packages have the manifold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from riemerge import Problem, frechet_mean
from riemerge.manifolds import Grassmann, HalfPlane, Sphere
from tests.helpers import import_geomstats

pytestmark = pytest.mark.oracle

WEIGHTS = [0.5, 0.3, 0.2]


def theirs(space: object, points: np.ndarray) -> np.ndarray:
    learner = import_geomstats("geomstats.learning.frechet_mean").FrechetMean(space)
    learner.set(epsilon=1e-12, max_iter=200)
    return np.asarray(learner.fit(points, weights=np.array(WEIGHTS)).estimate_)


def test_means_on_the_sphere() -> None:
    manifold = Sphere(5, 1, seed=1)
    x = manifold.random_point()
    points = [manifold.exp(x, 0.8 * manifold.random_tangent_vector(x)) for _ in range(3)]
    space = import_geomstats("geomstats.geometry.hypersphere").Hypersphere(4)
    data = torch.stack(points)[:, 0, :, 0].numpy()
    mean = frechet_mean(Problem(manifold, points, WEIGHTS)).point
    np.testing.assert_allclose(mean[0, :, 0], theirs(space, data), atol=1e-6)


def test_means_on_the_half_plane() -> None:
    manifold = HalfPlane(seed=1)
    points = [manifold.random_point() for _ in range(3)]
    space = import_geomstats("geomstats.geometry.poincare_half_space").PoincareHalfSpace(2)
    data = torch.stack(points)[:, 0, :, 0].numpy()
    mean = frechet_mean(Problem(manifold, points, WEIGHTS)).point
    # Theirs goes through the unit ball.
    np.testing.assert_allclose(mean[0, :, 0], theirs(space, data), rtol=1e-6, atol=1e-6)


def test_means_of_subspaces() -> None:
    manifold = Grassmann(5, 2, seed=1)
    x = manifold.random_point()
    points = [manifold.exp(x, 0.6 * manifold.random_tangent_vector(x)) for _ in range(3)]
    space = import_geomstats("geomstats.geometry.grassmannian").Grassmannian(5, 2)
    data = torch.stack([point @ point.mT for point in points])[:, 0].numpy()
    mean = frechet_mean(Problem(manifold, points, WEIGHTS)).point[0]
    np.testing.assert_allclose(mean @ mean.mT, theirs(space, data), atol=1e-6)
