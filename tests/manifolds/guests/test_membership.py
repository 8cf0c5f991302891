"""Points of Pymanopt's manifolds, and what is none."""

from __future__ import annotations

import numpy as np
import pytest
from pymanopt import manifolds

from riemerge.errors import RecipeError
from riemerge.manifolds.guests.guarded import guard
from tests.frechet.guests import COMPLETE, drawn
from tests.frechet.problems import mean_of


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("length", [1e-8, 1e-6, 1e-4])
def test_points_next_to_each_other_obey_the_laws(name: str, length: float) -> None:
    """Round-off of a distance by arccos is 1e-8 there, and no fault of the manifold."""
    manifold = COMPLETE[name]()
    point = drawn(manifold, 1)[0]
    vector = manifold.random_tangent_vector(point)
    safe = guard(manifold)
    other = safe.exp(point, length / safe.norm(point, vector) * vector)
    assert mean_of(manifold, [point, other]).ok


E = np.eye(3)


NO_POINTS = {
    "nan": (manifolds.Sphere(3), np.array([np.nan, 0, 1]), "not finite"),
    "shape": (manifolds.Sphere(3), np.ones(4) / 2, r"shape \(4,\); expected an array of shape \(3,\)"),
    "text": (manifolds.Sphere(3), "x", "it is str"),
    "complex": (manifolds.Sphere(3), E[1] + 0j, "complex"),
    "length": (manifolds.Sphere(3), 2 * E[1], "off the manifold by 1"),
    "subspace": (manifolds.SphereSubspaceIntersection(E[:, :2]), E[2], "out of the subspace"),
    "singular": (manifolds.SymmetricPositiveDefinite(3), np.diag([1.0, 1, 0]), "singular"),
    "indefinite": (manifolds.SymmetricPositiveDefinite(3), np.diag([1.0, 1, -1]), "not positive definite"),
    "asymmetric": (manifolds.SymmetricPositiveDefinite(3), E + np.triu(E + 1, 1) / 9, "not symmetric"),
    "determinant": (manifolds.SpecialHermitianPositiveDefinite(3), 2 * E, "determinant is 8"),
    "reflection": (manifolds.SpecialOrthogonalGroup(3), np.diag([1.0, 1, -1]), "reflection"),
    "unitary": (manifolds.UnitaryGroup(3), E + 1, "off the manifold"),
    "frame": (manifolds.Grassmann(3, 2), 2 * E[:, :2], "off the manifold"),
    "zero": (manifolds.Positive(3, 3), E, "smallest entry is 0"),
    "boundary": (manifolds.PoincareBall(3), E[0], "norm is 1"),
    "rank": (manifolds.PSDFixedRank(3, 2), np.ones((3, 2)), "rank is 1, expected 2"),
    "symmetric": (manifolds.Symmetric(3), np.triu(E + 1), "not symmetric"),
    "skew": (manifolds.SkewSymmetric(3), E, "not skew-symmetric"),
    "factor": (
        manifolds.Product([manifolds.Euclidean(2), manifolds.Sphere(3)]),
        [np.ones(2), 2 * E[0]],
        "in factor 1, it is off the manifold",
    ),
    "factors": (manifolds.Product([manifolds.Euclidean(2)]), E, "expected a list of 1"),
}


@pytest.mark.parametrize("name", NO_POINTS)
def test_what_is_no_point_is_refused_by_index_and_reason(name: str) -> None:
    manifold, bad, reason = NO_POINTS[name]
    good = drawn(manifold, 2)
    state = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    with pytest.raises(RecipeError, match=rf"point 1 is no point of it: .*{reason}"):
        mean_of(manifold, [good[0], bad, good[1]])
    with pytest.raises(RecipeError, match=rf"initial_point is no point of it: .*{reason}"):
        mean_of(manifold, good, initial_point=bad)
    # A user's generator is left alone.
    assert (np.random.get_state(legacy=False)["state"]["key"] == state).all()  # noqa: NPY002


@pytest.mark.parametrize("name", COMPLETE)
def test_points_of_single_precision_are_points(name: str) -> None:
    manifold = COMPLETE[name]()
    for point in drawn(manifold, 2):
        parts = point if isinstance(point, list) else [point]
        single = [x.astype(np.complex64 if np.iscomplexobj(x) else np.float32).astype(x.dtype) for x in parts]
        assert mean_of(manifold, [single if isinstance(point, list) else single[0]] * 2).ok
