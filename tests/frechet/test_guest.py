"""Means on Pymanopt's own manifolds: by every solver, or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np
import pymanopt
import pytest
import scipy.optimize
import torch
from pymanopt import manifolds

from riemerge import Status
from riemerge.errors import RecipeError
from riemerge.manifolds import Stiefel
from tests.frechet.guests import COMPLETE, drawn, unit
from tests.frechet.problems import ITERATIVE, mean_of


def test_own_squared_distance_by_pymanopt_s_autograd() -> None:
    sphere = pymanopt.manifolds.Sphere(4)
    generator = np.random.default_rng(0)
    points = [x / np.linalg.norm(x) for x in generator.standard_normal((5, 4)) + 1]
    solution = mean_of(sphere, points, distance=lambda x, y: anp.sum((x - y) ** 2))
    average = np.mean(points, axis=0)
    np.testing.assert_allclose(solution.point, average / np.linalg.norm(average), atol=1e-7)


LACKING: dict[str, tuple[Callable[[], manifolds.manifold.Manifold], str]] = {
    "Stiefel": (lambda: manifolds.Stiefel(5, 2), "no implementation for 'log'"),
    "FixedRankEmbedded": (lambda: manifolds.FixedRankEmbedded(5, 4, 2), "no implementation for 'log'"),
    "Elliptope": (lambda: manifolds.Elliptope(5, 2), "no implementation for 'log'"),
    "ComplexCircle": (lambda: manifolds.ComplexCircle(3), "exp, log and dist contradict each other"),
}


def chordal(x: Any, y: Any) -> Any:
    return anp.sum((x - y) ** 2)


def test_all_of_pymanopts_manifolds_are_walked() -> None:
    walked = {type(make()).__name__ for make in COMPLETE.values()} | {*LACKING}
    assert walked == {*manifolds.__all__}


@pytest.mark.parametrize("solver", ITERATIVE)
@pytest.mark.parametrize("name", COMPLETE)
def test_random_points_have_a_certified_mean(name: str, solver: str) -> None:
    manifold = COMPLETE[name]()
    points = drawn(manifold)
    if solver not in ("lbfgs", "trust_regions") and name in ("PoincareBall", "Product"):
        # The cost of far points in hyperbolic space bends by more than two: unit steps overshoot, and descent
        # along gradients zigzags.
        center, far = points[0], points[1:]
        points = [center, *(manifold.exp(center, 0.2 * manifold.log(center, y)) for y in far)]
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    solution = mean_of(manifold, points, weights, solver=solver)
    assert solution.status == (Status.CONVERGED,)
    # The certificate by the manifold's own verbs: distances by arccos have half the digits.
    logs = [w * manifold.log(solution.point, y) for w, y in zip(weights, points, strict=True)]
    assert manifold.norm(solution.point, sum(logs[1:], logs[0])) < 1e-7
    assert solution.forward_error[0] < 1e-7
    apart = [manifold.dist(solution.point, y) for y in points]
    np.testing.assert_allclose(solution.distances[:, 0], apart, atol=1e-7)
    np.testing.assert_allclose(solution.cost[0], weights @ np.square(apart) / 2, rtol=1e-7)


@pytest.mark.parametrize("solver", ITERATIVE)
@pytest.mark.parametrize("name", LACKING)
def test_what_a_manifold_lacks_is_named(name: str, solver: str) -> None:
    make, words = LACKING[name]
    manifold = make()
    with pytest.raises(RecipeError, match=words) as error:
        mean_of(manifold, drawn(manifold), solver=solver)
    assert str(manifold) in str(error.value)


@pytest.mark.parametrize("solver", ITERATIVE)
def test_a_chordal_mean_on_the_sphere_is_on_the_sphere(solver: str) -> None:
    """Pymanopt's exp leaves the sphere by round-off that unit steps double: the gradient of this cost
    vanishes inside the ball, too.
    """
    for seed in (7, 8, 10):
        generator = np.random.default_rng(seed)
        points = [unit(x) for x in generator.standard_normal((3, 3 + seed % 3))]
        sphere = manifolds.Sphere(points[0].size)
        solution = mean_of(sphere, points, solver=solver, distance=chordal)
        assert solution.ok
        np.testing.assert_allclose(solution.point, unit(np.mean(points, axis=0)), atol=1e-7)


@pytest.mark.parametrize("solver", ITERATIVE)
def test_a_chordal_mean_of_frames_is_the_polar_factor(solver: str) -> None:
    points = drawn(manifolds.Stiefel(6, 2), 3)
    stiefel = manifolds.Stiefel(6, 2)
    solution = mean_of(stiefel, points, solver=solver, distance=chordal)
    left, _, right = np.linalg.svd(sum(points), full_matrices=False)
    assert solution.ok
    np.testing.assert_allclose(solution.point, left @ right, atol=1e-7)


@pytest.mark.parametrize("solver", ITERATIVE)
def test_antipodes_are_stepped_off(solver: str) -> None:
    """Pymanopt's log of the antipode is silently zero; the means of two poles are the equator."""
    sphere = manifolds.Sphere(3)
    pole = np.array([0.0, 0.0, 1.0])
    solution = mean_of(sphere, [pole, -pole], solver=solver)
    assert solution.status == (Status.CONVERGED,)
    assert solution.cost[0] == pytest.approx((np.pi / 2) ** 2 / 2, rel=1e-12)
    assert abs(solution.point[2]) < 1e-7
    # Where a user says to start, it starts.
    assert mean_of(sphere, [pole, -pole], initial_point=pole).status == (Status.UNDEFINED,)


CUT: dict[str, tuple[manifolds.manifold.Manifold, list[Any]]] = {
    "orthogonal subspaces": (manifolds.Grassmann(4, 2), [np.eye(4)[:, :2], np.eye(4)[:, 2:]]),
    "half a turn": (manifolds.SpecialOrthogonalGroup(3), [np.eye(3), np.diag([-1.0, -1, 1])]),
    "columns": (manifolds.Oblique(2, 2), [np.eye(2), -np.eye(2)]),
    "one factor": (
        manifolds.Product([manifolds.Sphere(3), manifolds.Euclidean(2)]),
        [[np.eye(3)[0], np.zeros(2)], [-np.eye(3)[0], np.ones(2)]],
    ),
}


@pytest.mark.parametrize("name", CUT)
def test_data_at_each_others_cut_locus_have_a_mean(name: str) -> None:
    """Of two points: half way, whichever of the geodesics it is on."""
    manifold, points = CUT[name]
    solution = mean_of(manifold, points)
    assert solution.status == (Status.CONVERGED,)
    one, other = solution.distances
    np.testing.assert_allclose(one, other, rtol=1e-7)


def test_distances_are_the_manifolds_whatever_the_loss() -> None:
    """A median minimises Σ w d: as a squared distance, 2 d."""
    sphere = manifolds.Sphere(4)
    generator = np.random.default_rng(0)
    points = [unit(x) for x in generator.standard_normal((4, 4)) + 1]

    def loss(x: np.ndarray, y: np.ndarray) -> Any:
        return 2 * anp.arccos(anp.clip(anp.sum(x * y), -1, 1))

    solution = mean_of(sphere, points, distance=loss, initial_point=unit(sum(points)), tol=1e-5)
    apart = [sphere.dist(solution.point, y) for y in points]
    np.testing.assert_allclose(solution.distances[:, 0], apart, rtol=1e-12)
    assert solution.cost[0] == pytest.approx(np.mean(apart), rel=1e-12)
    # Ours, the same.
    ours = Stiefel(9, 2)
    frames = [ours.random_point() for _ in range(3)]
    found = mean_of(
        ours,
        frames,
        distance=lambda x, y: (x - y).square().sum(dim=(-2, -1)).sqrt(),
        initial_point=ours.extrinsic_mean(torch.stack(frames), torch.full((3, 1), 1 / 3).double()),
        max_passes=20,
    )
    np.testing.assert_allclose(found.distances[:, 0], [ours.dist(found.point, y) for y in frames], rtol=1e-10)


@pytest.mark.parametrize("solver", ["lbfgs", "trust_regions"])
def test_fixed_rank_matrices_by_their_entries(solver: str) -> None:
    """The nearest of one rank to the average is its truncated SVD. Tangent vectors are triples in frames of
    their point: fields at two points are compared after a transport.
    """
    manifold = manifolds.FixedRankEmbedded(6, 5, 2)
    points = drawn(manifold, 3)

    def apart(x: Any, y: Any) -> Any:
        return anp.sum((x[0] * x[1] @ x[2] - y[0] * y[1] @ y[2]) ** 2)

    solution = mean_of(manifold, points, solver=solver, distance=apart)
    assert solution.status == (Status.CONVERGED,)
    u, s, vt = np.linalg.svd(sum(x.u * x.s @ x.vt for x in points) / 3)
    best = u[:, :2] * s[:2] @ vt[:2]
    np.testing.assert_allclose(solution.point.u * solution.point.s @ solution.point.vt, best, atol=1e-7)
    assert np.isnan(solution.distances).all()  # the manifold has none


def test_a_gradient_that_is_none_is_refused() -> None:
    """Pymanopt's UnitaryGroup projects complex gradients as if they were real."""
    unitary = manifolds.UnitaryGroup(2)
    with pytest.raises(RecipeError, match="what Pymanopt says is its gradient"):
        mean_of(
            unitary,
            drawn(unitary, 3),
            distance=lambda x, y: anp.sum(anp.abs(x - y) ** 2),
        )


@pytest.mark.parametrize("solver", ITERATIVE)
def test_a_cost_may_be_negative(solver: str) -> None:
    """A tolerance by the root of the cost would be no number, and nothing would ever be converged."""
    sphere = manifolds.Sphere(4)
    generator = np.random.default_rng(0)
    points = [unit(x) for x in generator.standard_normal((4, 4)) + 1]
    solution = mean_of(sphere, points, solver=solver, distance=lambda x, y: -2 * anp.sum(x * y))
    assert solution.status == (Status.CONVERGED,)
    np.testing.assert_allclose(solution.point, unit(sum(points)), atol=1e-7)
    flat = mean_of(
        sphere,
        points,
        solver="steepest_descent",
        distance=lambda x, y: -2 * anp.sum(x * y),
        tol=0.0,
        cost_tol=1e-3,
    )
    assert flat.status == (Status.FLAT,)


def test_a_cost_that_is_not_smooth_where_it_starts_is_no_fault() -> None:
    """The largest of distances has a kink where two are equal."""
    line = manifolds.Euclidean(2)
    points = [np.array([1.0, 1]), np.array([-1.0, -1])]
    solution = mean_of(
        line,
        points,
        distance=lambda x, y: anp.max((x - y) ** 2),
        initial_point=np.array([0.5, 0.5]),
        max_passes=200,
    )
    assert solution.cost[0] == pytest.approx(0.5, abs=1e-3)


def test_a_manifold_without_gradients_is_refused() -> None:
    class Nothing(manifolds.Sphere):
        def euclidean_to_riemannian_gradient(self, point: Any, euclidean_gradient: Any) -> Any:
            raise NotImplementedError("no euclidean_to_riemannian_gradient")

    points = drawn(manifolds.Sphere(3), 2)
    with pytest.raises(RecipeError, match="no euclidean_to_riemannian_gradient"):
        mean_of(Nothing(3), points, distance=chordal)


def test_the_cost_of_ones_own_is_minimised_on_the_numpy_manifold() -> None:
    sphere = manifolds.Sphere(3)
    points = drawn(sphere, 3)
    solution = mean_of(sphere, points, distance=lambda x, y: anp.sum((x - y) ** 4))

    def cost(x: np.ndarray) -> Any:
        return sum(((unit(x) - y) ** 4).sum() for y in points) / 6

    best = scipy.optimize.minimize(cost, solution.point + 0.1, tol=1e-12)
    assert solution.ok
    assert solution.cost[0] == pytest.approx(cost(solution.point), rel=1e-12)
    assert solution.cost[0] <= best.fun + 1e-9
