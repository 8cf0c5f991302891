"""Pymanopt's manifolds, and points on them, for the tests of guests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pymanopt
from pymanopt import manifolds

FRAME = np.linalg.qr(np.random.default_rng(3).standard_normal((6, 3)))[0]


# All of Pymanopt's manifolds, by the verbs that they have.
COMPLETE: dict[str, Callable[[], pymanopt.manifolds.manifold.Manifold]] = {
    "Sphere": lambda: manifolds.Sphere(4),
    "Sphere of matrices": lambda: manifolds.Sphere(3, 2),
    "SphereSubspaceIntersection": lambda: manifolds.SphereSubspaceIntersection(FRAME),
    "SphereSubspaceComplementIntersection": lambda: manifolds.SphereSubspaceComplementIntersection(FRAME),
    "SymmetricPositiveDefinite": lambda: manifolds.SymmetricPositiveDefinite(3, k=2),
    "HermitianPositiveDefinite": lambda: manifolds.HermitianPositiveDefinite(3),
    "SpecialHermitianPositiveDefinite": lambda: manifolds.SpecialHermitianPositiveDefinite(3),
    "Grassmann": lambda: manifolds.Grassmann(6, 2),
    "Grassmann, stacked": lambda: manifolds.Grassmann(6, 2, k=2),
    "ComplexGrassmann": lambda: manifolds.ComplexGrassmann(6, 2),
    "SpecialOrthogonalGroup": lambda: manifolds.SpecialOrthogonalGroup(3, k=2),
    "UnitaryGroup": lambda: manifolds.UnitaryGroup(3),
    "Oblique": lambda: manifolds.Oblique(3, 4),
    "PoincareBall": lambda: manifolds.PoincareBall(3),
    "Positive": lambda: manifolds.Positive(2, 3, k=2),
    "PSDFixedRank": lambda: manifolds.PSDFixedRank(5, 2),
    "PSDFixedRankComplex": lambda: manifolds.PSDFixedRankComplex(5, 2),
    "Euclidean": lambda: manifolds.Euclidean(3, 2),
    "ComplexEuclidean": lambda: manifolds.ComplexEuclidean(3, 2),
    "Symmetric": lambda: manifolds.Symmetric(3, k=2),
    "SkewSymmetric": lambda: manifolds.SkewSymmetric(3),
    "Product": lambda: manifolds.Product(
        [manifolds.PoincareBall(2), manifolds.UnitaryGroup(2), manifolds.SymmetricPositiveDefinite(2)]
    ),
}


def drawn(manifold: pymanopt.manifolds.manifold.Manifold, count: int = 4, seed: int = 2) -> list[Any]:
    np.random.seed(seed)  # noqa: NPY002 - Pymanopt draws from the global generator
    return [manifold.random_point() for _ in range(count)]


def unit(vector: np.ndarray | int) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))
