"""Distances other than the geodesic one: what they measure, and what their means are."""

from __future__ import annotations

import autograd.numpy as anp
import numpy as np
import pytest
import torch
from pymanopt import manifolds

from riemerge.distances import DISTANCES, Chordal, FirstOrder, SquaredDistance
from riemerge.errors import RecipeError
from riemerge.frechet.distance import as_distance
from riemerge.manifolds import FixedRank, GeodesicManifold, Stiefel
from tests.frechet.guests import drawn, unit
from tests.frechet.problems import mean_of, search_of
from tests.helpers import seeded
from tests.manifolds.subjects import TOTAL, family, matrices, relative, updates


def test_the_chordal_distance_of_updates_is_that_of_their_entries() -> None:
    """In any gauge, and to the last digits of updates that are near."""
    quotient, points = updates(12, 11, 3, k=2), family("mix", 2, 12, 11, 3, seed=5)
    x, y = points
    turn = quotient.action.random_element((2,), seeded(1))
    for z in (y, quotient.action.act(quotient.total, y, turn)):
        gap = torch.linalg.matrix_norm(matrices(quotient, x) - matrices(quotient, z))
        torch.testing.assert_close(Chordal().square(quotient, x, z), gap.square(), rtol=1e-12, atol=0)
    near = quotient.exp(x, 1e-7 * quotient.random_tangent_vector(x))
    gap = torch.linalg.matrix_norm(matrices(quotient, x) - matrices(quotient, near))
    torch.testing.assert_close(Chordal().square(quotient, x, near).sqrt(), gap, rtol=1e-6, atol=0)


def test_the_chordal_mean_of_updates_is_the_truncated_svd_of_their_average() -> None:
    quotient, points = updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)
    assert search_of(quotient, points, distance="chordal").form.manifold.total.m == 9
    solution = mean_of(quotient, points, distance="chordal", tol=1e-7)
    assert solution.ok
    left, values, right = torch.linalg.svd(sum(matrices(quotient, y) for y in points) / 3)
    best = left[..., :3] * values[..., None, :3] @ right[..., :3, :]
    assert relative(matrices(quotient, solution.point), best) < 1e-5


@pytest.mark.parametrize("name", TOTAL)
def test_the_first_order_distance_is_the_length_of_the_logarithm_to_second_order(name: str) -> None:
    manifold: GeodesicManifold = TOTAL[name]()
    x = manifold.random_point()
    vector = manifold.random_tangent_vector(x)
    errors = []
    for length in (1e-2, 1e-3):
        y = manifold.exp(x, length * vector)
        error = FirstOrder().square(manifold, x, y).sqrt() - manifold.dists(x, y)
        errors.append(float(error.abs().max()) / length)
    assert errors[1] < max(0.15 * errors[0], 1e-7)
    assert errors[0] < 0.1


def test_the_first_order_mean_of_updates_is_near_the_frechet_mean_of_close_ones() -> None:
    """The representatives are those of the least distance: the gauge that was given does not matter."""
    quotient, points = updates(8, 7, 2, k=2), family("close", 3, 8, 7, 2, seed=5)
    turn = quotient.action.random_element((2,), seeded(1))
    turned = [points[0], *(quotient.action.act(quotient.total, y, turn) for y in points[1:])]
    here, there = (mean_of(quotient, data, distance="first_order") for data in (points, turned))
    assert here.ok
    assert relative(matrices(quotient, here.point), matrices(quotient, there.point)) < 1e-6
    mean = mean_of(quotient, points)
    spread = np.sqrt(2 * mean.cost.max())
    assert float(quotient.dists(here.point, mean.point).max()) < spread**2
    np.testing.assert_allclose(
        here.distances[:, 0], [quotient.dists(here.point, y)[0] for y in points], rtol=1e-8
    )
    assert np.isnan(here.forward_error).all()


def test_guests_have_chordal_means() -> None:
    points = drawn(manifolds.Sphere(4))
    found = mean_of(manifolds.Sphere(4), points, distance="chordal")
    np.testing.assert_allclose(found.point, unit(sum(points)), atol=1e-7)
    pairs = manifolds.Product([manifolds.Sphere(4), manifolds.ComplexEuclidean(2)])
    data = drawn(pairs)
    solution = mean_of(pairs, data, distance="chordal")
    assert solution.ok
    np.testing.assert_allclose(solution.point[0], unit(sum(x[0] for x in data)), atol=1e-7)
    np.testing.assert_allclose(solution.point[1], sum(x[1] for x in data) / 4, atol=1e-7)


def test_what_has_no_such_distance_is_refused_by_name() -> None:
    embedded = manifolds.FixedRankEmbedded(6, 5, 2)
    with pytest.raises(RecipeError, match="tuples, whose entries have no difference"):
        mean_of(embedded, drawn(embedded), distance="chordal")
    with pytest.raises(RecipeError, match="projects in numpy"):
        mean_of(manifolds.Sphere(3), drawn(manifolds.Sphere(3)), distance="first_order")
    with pytest.raises(RecipeError, match="unknown distance 'cordal': did you mean 'chordal'"):
        as_distance("cordal")


def test_a_distance_of_one_s_own_is_reduced_only_where_it_says_that_it_is_invariant() -> None:
    quotient, points = updates(40, 36, 2, k=2), family("close", 3, 40, 36, 2, seed=5)
    assert isinstance(quotient.total, FixedRank)

    def gap(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        total = FixedRank(*{78: (40, 36), 14: (6, 6)}[x.shape[-2]], 2)
        difference: torch.Tensor = total.matrix(x) - total.matrix(y)
        return difference.square().sum(dim=(-2, -1))

    rows = {flag: SquaredDistance(gap, invariant=flag) for flag in (False, True)}
    found = {flag: search_of(quotient, points, distance=distance) for flag, distance in rows.items()}
    assert found[False].form.manifold.total.m == 40
    assert found[True].form.manifold.total.m == 6


def test_every_kind_of_distance_is_named_or_given() -> None:
    assert as_distance(None) is None
    assert [type(as_distance(name)) for name in DISTANCES] == [Chordal, FirstOrder]
    assert as_distance("chordal") == Chordal()
    assert isinstance(as_distance(lambda x, y: anp.sum((x - y) ** 2)), SquaredDistance)
    assert FirstOrder().square(Stiefel(5, 2), *[Stiefel(5, 2).random_point()] * 2).item() == 0
