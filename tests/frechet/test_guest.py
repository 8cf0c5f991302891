"""Means on Pymanopt's own manifolds: by every solver, or refused with a reason."""

from __future__ import annotations

import autograd.numpy as anp
import numpy as np
import pymanopt
import pytest
import scipy.optimize
import torch
from pymanopt import manifolds
from pymanopt.optimizers import ConjugateGradient, SteepestDescent, TrustRegions

from riemerge import Status, frechet_mean
from riemerge.errors import RecipeError
from riemerge.frechet import SOLVERS
from riemerge.frechet.solvers import FixedPoint
from riemerge.manifolds import Stiefel
from riemerge.manifolds.guests.guarded import guarded

FRAME = np.linalg.qr(np.random.default_rng(3).standard_normal((6, 3)))[0]

# All of Pymanopt's manifolds, by the verbs that they have.
COMPLETE = {
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
LACKING = {
    "Stiefel": (lambda: manifolds.Stiefel(5, 2), "no implementation for 'log'"),
    "FixedRankEmbedded": (lambda: manifolds.FixedRankEmbedded(5, 4, 2), "no implementation for 'log'"),
    "Elliptope": (lambda: manifolds.Elliptope(5, 2), "no implementation for 'log'"),
    "ComplexCircle": (lambda: manifolds.ComplexCircle(3), "exp, log and dist contradict each other"),
}


def drawn(manifold: pymanopt.manifolds.manifold.Manifold, count: int = 4, seed: int = 2) -> list:
    np.random.seed(seed)  # noqa: NPY002 - Pymanopt draws from the global generator
    return [manifold.random_point() for _ in range(count)]


def unit(vector) -> np.ndarray:
    return np.asarray(vector) / np.linalg.norm(vector)


def chordal(x, y):
    return anp.sum((x - y) ** 2)


def test_all_of_pymanopts_manifolds_are_walked() -> None:
    walked = {type(make()).__name__ for make in COMPLETE.values()} | {*LACKING}
    assert walked == {*manifolds.__all__}


@pytest.mark.parametrize("solver", SOLVERS)
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
    solution = frechet_mean(manifold, points, weights, solver=solver)
    assert solution.status == (Status.CONVERGED,)
    # The certificate by the manifold's own verbs: distances by arccos have half the digits.
    logs = [w * manifold.log(solution.point, y) for w, y in zip(weights, points, strict=True)]
    assert manifold.norm(solution.point, sum(logs[1:], logs[0])) < 1e-7
    assert solution.forward_error[0] < 1e-7
    apart = [manifold.dist(solution.point, y) for y in points]
    np.testing.assert_allclose(solution.distances[:, 0], apart, atol=1e-7)
    np.testing.assert_allclose(solution.cost[0], weights @ np.square(apart) / 2, rtol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", LACKING)
def test_what_a_manifold_lacks_is_named(name: str, solver: str) -> None:
    make, words = LACKING[name]
    manifold = make()
    with pytest.raises(RecipeError, match=words) as error:
        frechet_mean(manifold, drawn(manifold), solver=solver)
    assert str(manifold) in str(error.value)


def test_a_manifold_that_can_only_retract_is_enough() -> None:
    class Retracting(manifolds.manifold.Manifold):
        """The sphere without exp, transport and to_tangent_space."""

        def __init__(self) -> None:
            super().__init__("Sphere by retraction", 3)
            self._sphere = manifolds.Sphere(4)
            for verb in ("dist", "log", "retraction"):
                setattr(self, verb, getattr(self._sphere, verb))

        def inner_product(self, point, tangent_vector_a, tangent_vector_b):
            return self._sphere.inner_product(point, tangent_vector_a, tangent_vector_b)

        def projection(self, point, vector):
            return self._sphere.projection(point, vector)

        def norm(self, point, tangent_vector):
            return self._sphere.norm(point, tangent_vector)

        def random_point(self):
            return self._sphere.random_point()

        def random_tangent_vector(self, point):
            return self._sphere.random_tangent_vector(point)

        def zero_vector(self, point):
            return self._sphere.zero_vector(point)

    points = drawn(manifolds.Sphere(4))
    expected = frechet_mean(manifolds.Sphere(4), points).point
    for solver in SOLVERS:
        solution = frechet_mean(Retracting(), points, solver=solver)
        assert solution.ok
        np.testing.assert_allclose(solution.point, expected, atol=1e-7)


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("length", [1e-8, 1e-6, 1e-4])
def test_points_next_to_each_other_obey_the_laws(name: str, length: float) -> None:
    """Round-off of a distance by arccos is 1e-8 there, and no fault of the manifold."""
    manifold = COMPLETE[name]()
    point = drawn(manifold, 1)[0]
    vector = manifold.random_tangent_vector(point)
    safe = guarded(manifold)
    other = safe.exp(point, length / safe.norm(point, vector) * vector)
    assert frechet_mean(manifold, [point, other]).ok


# --- points that stay on the manifold -----------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_chordal_mean_on_the_sphere_is_on_the_sphere(solver: str) -> None:
    """Pymanopt's exp leaves the sphere by round-off that unit steps double: the gradient of this cost
    vanishes inside the ball, too.
    """
    for seed in (7, 8, 10):
        generator = np.random.default_rng(seed)
        points = [unit(x) for x in generator.standard_normal((3, 3 + seed % 3))]
        sphere = manifolds.Sphere(points[0].size)
        solution = frechet_mean(sphere, points, solver=solver, gradient="autograd", squared_dist=chordal)
        assert solution.ok
        np.testing.assert_allclose(solution.point, unit(np.mean(points, axis=0)), atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_chordal_mean_of_frames_is_the_polar_factor(solver: str) -> None:
    points = drawn(manifolds.Stiefel(6, 2), 3)
    stiefel = manifolds.Stiefel(6, 2)
    solution = frechet_mean(stiefel, points, solver=solver, gradient="autograd", squared_dist=chordal)
    left, _, right = np.linalg.svd(sum(points), full_matrices=False)
    assert solution.ok
    np.testing.assert_allclose(solution.point, left @ right, atol=1e-7)


def test_a_fixed_point_by_itself_stays_on_the_manifold_and_logs() -> None:
    generator = np.random.default_rng(8)
    points = [unit(x) for x in generator.standard_normal((3, 5))]
    sphere = manifolds.Sphere(5)

    @pymanopt.function.autograd(sphere)
    def cost(x):
        return sum(anp.sum((x - y) ** 2) for y in points) / 6

    found = FixedPoint(max_iterations=300, log_verbosity=1, verbosity=0).run(
        pymanopt.Problem(sphere, cost), initial_point=points[0]
    )
    np.testing.assert_allclose(found.point, unit(np.mean(points, axis=0)), atol=1e-5)
    entries = found.log["iterations"]
    assert entries["iteration"] == [*range(1, found.iterations + 1)]
    assert entries["cost"][-1] == found.cost
    assert entries["gradient_norm"][-1] == found.gradient_norm


# --- starts and trials without a cost -----------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_antipodes_are_stepped_off(solver: str) -> None:
    """Pymanopt's log of the antipode is silently zero; the means of two poles are the equator."""
    sphere = manifolds.Sphere(3)
    pole = np.array([0.0, 0.0, 1.0])
    solution = frechet_mean(sphere, [pole, -pole], solver=solver)
    assert solution.status == (Status.CONVERGED,)
    assert solution.cost[0] == pytest.approx((np.pi / 2) ** 2 / 2, rel=1e-12)
    assert abs(solution.point[2]) < 1e-7
    # Where a user says to start, it starts.
    assert frechet_mean(sphere, [pole, -pole], initial_point=pole).status == (Status.UNDEFINED,)


CUT = {
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
    solution = frechet_mean(manifold, points)
    assert solution.status == (Status.CONVERGED,)
    np.testing.assert_allclose(*solution.distances, rtol=1e-7)


def test_equal_columns_have_a_logarithm() -> None:
    """Pymanopt's is arccos(1 + eps) there."""
    a, b = np.array([[1, 0.6], [1, 0], [1, 0.8]]), np.array([[1, 0], [1, 0.6], [1, 0.8]])
    a, b = (x / np.linalg.norm(x, axis=0) for x in (a, b))
    solution = frechet_mean(manifolds.Oblique(3, 2), [a, b])
    assert solution.status == (Status.CONVERGED,)
    middle = (a + b) / np.linalg.norm(a + b, axis=0)
    np.testing.assert_allclose(solution.point, middle, atol=1e-7)


def ill_conditioned(condition: float) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    frames = [np.linalg.qr(generator.standard_normal((4, 4)))[0] for _ in range(3)]
    spectrum = np.logspace(0, -np.log10(condition), 4)
    return [(q * spectrum) @ q.T for q in frames]


@pytest.mark.parametrize("condition", [1e6, 1e10])
@pytest.mark.parametrize(
    "solver",
    [*SOLVERS, *(x(verbosity=0) for x in (SteepestDescent, ConjugateGradient, TrustRegions))],
    ids=str,
)
def test_trial_points_out_of_the_set_cost_infinity(solver, condition: float) -> None:
    """Steps between cores of such condition end at matrices that are none to round-off."""
    points = [(x + x.T) / 2 for x in ill_conditioned(condition)]
    spd = manifolds.SymmetricPositiveDefinite(4)
    solution = frechet_mean(spd, points, solver=solver, max_passes=60)
    assert np.isfinite(solution.cost).all()
    costs = [x.cost[0] for x in solution.trace]
    if solver != "fixed_point":  # which has no line search
        assert costs[-1] <= costs[0]


# --- what is refused ----------------------------------------------------------------------------------------

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
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(RecipeError, match=rf"point 1 is no point of it: .*{reason}"):
        frechet_mean(manifold, [good[0], bad, good[1]])
    with pytest.raises(RecipeError, match=rf"initial_point is no point of it: .*{reason}"):
        frechet_mean(manifold, good, initial_point=bad)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002 - a user's generator is left alone


@pytest.mark.parametrize("name", COMPLETE)
def test_points_of_single_precision_are_points(name: str) -> None:
    manifold = COMPLETE[name]()
    for point in drawn(manifold, 2):
        parts = point if isinstance(point, list) else [point]
        single = [x.astype(np.complex64 if np.iscomplexobj(x) else np.float32).astype(x.dtype) for x in parts]
        assert frechet_mean(manifold, [single if isinstance(point, list) else single[0]] * 2).ok


# --- a distance of one's own --------------------------------------------------------------------------------


def test_distances_are_the_manifolds_whatever_the_loss() -> None:
    """A median minimises Σ w d: as a squared distance, 2 d."""
    sphere = manifolds.Sphere(4)
    generator = np.random.default_rng(0)
    points = [unit(x) for x in generator.standard_normal((4, 4)) + 1]

    def loss(x, y):
        return 2 * anp.arccos(anp.clip(anp.sum(x * y), -1, 1))

    solution = frechet_mean(
        sphere, points, gradient="autograd", squared_dist=loss, initial_point=unit(sum(points)), tol=1e-5
    )
    apart = [sphere.dist(solution.point, y) for y in points]
    np.testing.assert_allclose(solution.distances[:, 0], apart, rtol=1e-12)
    assert solution.cost[0] == pytest.approx(np.mean(apart), rel=1e-12)
    # Ours, the same.
    ours = Stiefel(9, 2)
    frames = [ours.random_point() for _ in range(3)]
    found = frechet_mean(
        ours,
        frames,
        gradient="autograd",
        squared_dist=lambda x, y: (x - y).square().sum(dim=(-2, -1)).sqrt(),
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

    def apart(x, y):
        return anp.sum((x[0] * x[1] @ x[2] - y[0] * y[1] @ y[2]) ** 2)

    solution = frechet_mean(manifold, points, solver=solver, gradient="autograd", squared_dist=apart)
    assert solution.status == (Status.CONVERGED,)
    u, s, vt = np.linalg.svd(sum(x.u * x.s @ x.vt for x in points) / 3)
    best = u[:, :2] * s[:2] @ vt[:2]
    np.testing.assert_allclose(solution.point.u * solution.point.s @ solution.point.vt, best, atol=1e-7)
    assert np.isnan(solution.distances).all()  # the manifold has none


def test_a_gradient_that_is_none_is_refused() -> None:
    """Pymanopt's UnitaryGroup projects complex gradients as if they were real."""
    unitary = manifolds.UnitaryGroup(2)
    with pytest.raises(RecipeError, match="what Pymanopt says is its gradient"):
        frechet_mean(
            unitary,
            drawn(unitary, 3),
            gradient="autograd",
            squared_dist=lambda x, y: anp.sum(anp.abs(x - y) ** 2),
        )


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_cost_may_be_negative(solver: str) -> None:
    """A tolerance by the root of the cost would be no number, and nothing would ever be converged."""
    sphere = manifolds.Sphere(4)
    generator = np.random.default_rng(0)
    points = [unit(x) for x in generator.standard_normal((4, 4)) + 1]
    solution = frechet_mean(
        sphere, points, solver=solver, gradient="autograd", squared_dist=lambda x, y: -2 * anp.sum(x * y)
    )
    assert solution.status == (Status.CONVERGED,)
    np.testing.assert_allclose(solution.point, unit(sum(points)), atol=1e-7)
    flat = frechet_mean(
        sphere,
        points,
        solver="steepest_descent",
        gradient="autograd",
        squared_dist=lambda x, y: -2 * anp.sum(x * y),
        tol=0.0,
        cost_tol=1e-3,
    )
    assert flat.status == (Status.FLAT,)


def test_a_cost_that_is_not_smooth_where_it_starts_is_no_fault() -> None:
    """The largest of distances has a kink where two are equal."""
    line = manifolds.Euclidean(2)
    points = [np.array([1.0, 1]), np.array([-1.0, -1])]
    solution = frechet_mean(
        line,
        points,
        gradient="autograd",
        squared_dist=lambda x, y: anp.max((x - y) ** 2),
        initial_point=np.array([0.5, 0.5]),
        max_passes=200,
    )
    assert solution.cost[0] == pytest.approx(0.5, abs=1e-3)


def test_a_manifold_without_gradients_is_refused() -> None:
    class Nothing(manifolds.Sphere):
        def euclidean_to_riemannian_gradient(self, point, euclidean_gradient):
            raise NotImplementedError("no euclidean_to_riemannian_gradient")

    points = drawn(manifolds.Sphere(3), 2)
    with pytest.raises(RecipeError, match="no euclidean_to_riemannian_gradient"):
        frechet_mean(Nothing(3), points, gradient="autograd", squared_dist=chordal)


def test_the_cost_of_ones_own_is_minimised_on_the_numpy_manifold() -> None:
    sphere = manifolds.Sphere(3)
    points = drawn(sphere, 3)
    solution = frechet_mean(
        sphere, points, gradient="autograd", squared_dist=lambda x, y: anp.sum((x - y) ** 4)
    )

    def cost(x):
        return sum(((unit(x) - y) ** 4).sum() for y in points) / 6

    best = scipy.optimize.minimize(cost, solution.point + 0.1, tol=1e-12)
    assert solution.ok
    assert solution.cost[0] == pytest.approx(cost(solution.point), rel=1e-12)
    assert solution.cost[0] <= best.fun + 1e-9
