"""The problem itself: its forms, its gradients, its reduction, its screening, and what it refuses."""

from __future__ import annotations

import itertools

import autograd.numpy as anp
import numpy as np
import pymanopt
import pytest
import scipy.optimize
import torch

from riemerge import FrechetProblem, frechet_mean
from riemerge.errors import RecipeError
from riemerge.frechet.low_rank.search_space import JointManifold
from riemerge.manifolds import (
    FixedRank,
    Orthogonal,
    QuotientManifold,
    Stiefel,
    SymmetricPositiveDefinite,
    torch_function,
)
from riemerge.manifolds.checks import check_gradient, check_hessian, check_manifold
from tests.manifolds.subjects import family, matrices, relative, updates

FORMS = ["joint", "nested"]


def as_pymanopt(problem: FrechetProblem) -> pymanopt.Problem:
    """The same problem for Pymanopt's and our own checks."""
    search = problem.form.manifold
    function = pymanopt.function.numpy(search)
    return pymanopt.Problem(
        search,
        function(lambda x: float(problem.evaluate(x).cost.sum())),
        riemannian_gradient=function(lambda x: problem.evaluate(x).gradient),
        riemannian_hessian=function(problem.hessian),
    )


def away(problem: FrechetProblem, length: float = 0.3) -> torch.Tensor:
    """A point of the search manifold that is no minimum."""
    search, start = problem.form.manifold, problem.start()
    return search.retraction(start, length * search.random_tangent_vector(start))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["close", "lora_like"])
def test_analytic_autograd_and_finite_differences_agree(form: str, name: str) -> None:
    quotient, points = updates(20, 17, 4, k=2), family(name, 3, 20, 17, 4, seed=3)
    analytic = FrechetProblem(quotient, points, [0.5, 0.3, 0.2], form=form)
    autograd = FrechetProblem(quotient, points, [0.5, 0.3, 0.2], form=form, gradient="autograd")
    x = away(analytic)
    one, two = analytic.evaluate(x), autograd.evaluate(x)
    torch.testing.assert_close(one.cost, two.cost, rtol=1e-13, atol=0)
    # In nested form both see an alignment that is found to 1e-10 only.
    torch.testing.assert_close(one.gradient, two.gradient, rtol=0, atol=1e-12 if form == "joint" else 1e-9)
    assert check_gradient(as_pymanopt(analytic), point=x) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    "manifold", [Stiefel(12, 3, k=2), SymmetricPositiveDefinite(4, k=2), FixedRank(9, 8, 2, k=2)]
)
def test_gradients_agree_without_a_symmetry(manifold: Stiefel) -> None:
    points = [manifold.random_point() for _ in range(3)]
    analytic = FrechetProblem(manifold, points)
    autograd = FrechetProblem(manifold, points, gradient="autograd")
    x = away(analytic)
    torch.testing.assert_close(
        analytic.evaluate(x).gradient, autograd.evaluate(x).gradient, rtol=0, atol=1e-12
    )
    assert check_gradient(as_pymanopt(analytic), point=x) == pytest.approx(2, abs=0.1)
    found = check_hessian(as_pymanopt(analytic), point=x)
    assert found.pop("slope") == pytest.approx(3, abs=0.2)
    # Central differences: their error is the step's square.
    assert max(found.values()) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_hessian_is_symmetric_at_the_mean(form: str) -> None:
    quotient, points = updates(20, 17, 3, k=2), family("close", 3, 20, 17, 3, seed=3)
    problem = FrechetProblem(quotient, points, form=form)
    mean = frechet_mean(quotient, points, tol=1e-11).point
    start = FrechetProblem(quotient, points, form=form, initial_point=mean)
    x = start.start()
    if form == "joint":
        search = start.form.manifold
        assert isinstance(search, JointManifold)
        at, _ = search.split(x)
        x = search.join(at, search.action.nearest(search.total, start.form.points, at))
    found = check_hessian(as_pymanopt(start), point=x)
    assert found.pop("slope") == pytest.approx(3, abs=0.3)
    assert max(found.values()) < 1e-6
    assert problem.k == 2


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
        frechet_mean(manifold, points, weights, gradient=g, initial_point=points[0])
        for g in ("analytic", "autograd")
    ]
    assert all(mean.ok for mean in means)
    np.testing.assert_allclose(means[0].cost, means[1].cost, rtol=1e-10)
    alone = frechet_mean(Stiefel(8, 2), [p[1:] for p in points[:2]])
    np.testing.assert_allclose(means[0].cost[1], alone.cost[0], rtol=1e-10)


def test_hessian_knows_the_connection_away_from_the_mean() -> None:
    """In directions of x alone, with aligned data: there the joint manifold's connection is the metric's."""
    quotient, points = updates(14, 12, 3, k=2), family("mix", 3, 14, 12, 3, seed=3)
    problem = FrechetProblem(quotient, points)
    search = problem.form.manifold
    assert isinstance(search, JointManifold)
    at, _ = search.split(away(problem, 1.0))
    x = search.join(at, search.action.nearest(search.total, problem.form.points, at))
    assert float(problem.evaluate(x).norms.min()) > 0.1
    v, w = (search.random_tangent_vector(x) for _ in range(2))
    v, w = (search.join(search.split(y)[0], torch.zeros_like(search.split(y)[1])) for y in (v, w))
    one = search.inner_product(x, problem.hessian(x, v), w)
    two = search.inner_product(x, v, problem.hessian(x, w))
    assert float(one) == pytest.approx(float(two), abs=1e-7)


def test_hessian_of_a_stack_is_that_of_its_modules() -> None:
    quotient, points = updates(14, 12, 3, k=2), family("mix", 3, 14, 12, 3, seed=3)
    problem = FrechetProblem(quotient, points)
    search = problem.form.manifold
    x = away(problem)
    v = search.random_tangent_vector(x)
    # A step for the stack would be a thousand times too long for one module.
    v[1] *= 1e-6
    together = problem.hessian(x, v)
    for module in range(2):
        alone = FrechetProblem(updates(14, 12, 3), [p[module : module + 1] for p in points])
        expected = alone.hessian(x[module : module + 1], v[module : module + 1])
        torch.testing.assert_close(
            together[module : module + 1], expected, rtol=1e-5, atol=1e-7 * float(v[module].norm())
        )


def test_unaligned_data_are_seen_as_such() -> None:
    quotient, points = updates(14, 12, 3, k=2), family("close", 3, 14, 12, 3, seed=3)
    problem = FrechetProblem(quotient, points)
    form = problem.form
    x, _ = form.manifold.split(problem.start())
    aligned = form.manifold.join(x, form.action.nearest(form.total, form.points, x))
    turned = away(problem)
    assert float(problem.evaluate(turned).vertical.max()) > 1e6 * float(
        problem.evaluate(aligned).vertical.max()
    )


def test_squared_distance_cannot_be_differentiated_twice() -> None:
    manifold = Stiefel(6, 2)
    a = manifold.random_point().requires_grad_()
    (gradient,) = torch.autograd.grad(
        manifold.squared_dists(a, manifold.random_point()).sum(), a, create_graph=True
    )
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


def test_joint_manifold_obeys_the_laws() -> None:
    quotient, points = updates(8, 7, 3, k=2), family("close", 3, 8, 7, 3, seed=1)
    search = FrechetProblem(quotient, points).form.manifold
    assert isinstance(search, JointManifold)
    defects = check_manifold(search)
    assert defects.keys() >= {"projection", "symmetry", "norm", "dimension"}
    assert max(defects.values()) < 1e-12
    x = search.random_point()
    v, w = search.random_tangent_vector(x), search.random_tangent_vector(x)
    assert float(search.inner_product(x, v, w)) == pytest.approx(
        float(search.inner_product(x, w, v)), abs=1e-14
    )

    # Riesz, for a function that does not see the common gauge.
    @torch_function(search)
    def cost(point: torch.Tensor) -> torch.Tensor:
        at, turns = search.split(point)
        turned = search.action.act(search.total, search.form_points, turns)
        return (
            search.total.matrix(at) * search.total.matrix(turned)
        ).sin().sum() + search.total.squared_dists(at, turned).sum()

    search.form_points = torch.stack(points)
    assert check_gradient(pymanopt.Problem(search, cost)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("name", ["close", "mix", "lora_like", "independent"])
def test_reduction_is_exact(name: str) -> None:
    quotient, points = updates(60, 50, 4, k=2), family(name, 3, 60, 50, 4, seed=5)
    full = FrechetProblem(quotient, points, reduce=False)
    small = FrechetProblem(quotient, points)
    assert small.form.manifold.total.m == 12
    starts = small.start(), full.start()
    torch.testing.assert_close(
        *(p.evaluate(x).cost for p, x in zip((small, full), starts, strict=True)), rtol=1e-12, atol=0
    )
    assert (
        relative(matrices(quotient, small.solution(starts[0])), matrices(quotient, full.solution(starts[1])))
        < 1e-12
    )
    # Both begin in single precision, so they agree as far as they are solved.
    reduced = frechet_mean(quotient, points, max_passes=200, tol=1e-12)
    trivial_reduction = frechet_mean(quotient, points, max_passes=200, tol=1e-12, reduce=False)
    assert relative(matrices(quotient, reduced.point), matrices(quotient, trivial_reduction.point)) < 1e-10


def test_a_start_outside_the_span_is_kept() -> None:
    quotient, points = updates(40, 30, 2), family("close", 2, 40, 30, 2, seed=5, k=1)
    outside = quotient.random_point()
    problem = FrechetProblem(quotient, points, initial_point=outside)
    assert (
        relative(matrices(quotient, problem.solution(problem.start())), matrices(quotient, outside)) < 1e-12
    )


def test_one_bad_module_costs_infinity_and_leaves_the_others_alone() -> None:
    quotient, points = updates(12, 11, 3, k=3), family("close", 3, 12, 11, 3, seed=5, k=3)
    for form in FORMS:
        problem = FrechetProblem(quotient, points, form=form)
        x = problem.start()
        before = problem.evaluate(x)
        for damage in (torch.nan, torch.inf, -1.0):
            bad = x.clone()
            total = problem.form.manifold.total
            bad[1, total.m : total.m + 3] = damage * torch.eye(3, dtype=torch.float64)
            after = problem.evaluate(bad)
            assert after.cost[1] == torch.inf
            assert not after.gradient[1].any()
            assert torch.isfinite(after.gradient).all()
            torch.testing.assert_close(after.cost[[0, 2]], before.cost[[0, 2]], rtol=1e-13, atol=0)


def test_two_passes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    quotient, points = updates(12, 11, 3), family("close", 3, 12, 11, 3, seed=5, k=1)
    problem = FrechetProblem(quotient, points)
    x, y, z = problem.start(), away(problem), away(problem, 0.2)
    problem = FrechetProblem(quotient, points)
    for point in (x, y, x, y):
        problem.evaluate(point)
    assert problem.passes == 2
    problem.evaluate(z)
    problem.evaluate(y)
    assert problem.passes == 3
    assert problem.evaluate(y) is problem.evaluate(y)
    # Another tensor of the same numbers is another point: nothing is compared.
    problem.evaluate(y.clone())
    assert problem.passes == 4


BAD_WEIGHTS = {
    "negative": ([0.5, -0.1, 0.6], "negative"),
    "not finite": ([0.5, float("nan"), 0.5], "finite"),
    "infinite": ([0.5, float("inf"), 0.5], "finite"),
    "all zero": ([0.0, 0.0, 0.0], "positive"),
    "too few": ([0.5, 0.5], "shape"),
    "of another module count": (torch.ones(3, 7), "shape"),
    "too large and negative": ([1e308, 1e308, -1.0], "negative"),
    "zero in one module": (torch.tensor([[1.0, 0], [1, 0], [1, 0]]), "positive"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused(case: str) -> None:
    weights, words = BAD_WEIGHTS[case]
    with pytest.raises(RecipeError, match=words):
        FrechetProblem(updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5), weights)


def test_weights_are_normalised_and_may_differ_by_module() -> None:
    quotient, points = updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)
    whole = frechet_mean(quotient, points, [5, 3, 2])
    shares = frechet_mean(quotient, points, [0.5, 0.3, 0.2])
    assert torch.equal(whole.point, shares.point)
    mixed = frechet_mean(quotient, points, torch.tensor([[1.0, 0], [1, 1], [0, 1]]))
    left = frechet_mean(quotient, points[:2])
    right = frechet_mean(quotient, points[1:])
    merged = matrices(quotient, mixed.point)
    assert relative(merged[:1], matrices(quotient, left.point)[:1]) < 1e-7
    assert relative(merged[1:], matrices(quotient, right.point)[1:]) < 1e-7


REFUSED = {
    "form": ({"form": "primal"}, "'primal'"),
    "gradient": ({"gradient": "numeric"}, "'numeric'"),
    "squared_dist without autograd": ({"squared_dist": lambda x, y: x}, "autograd"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused(case: str) -> None:
    options, words = REFUSED[case]
    with pytest.raises(RecipeError, match=words):
        FrechetProblem(updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5), **options)


def test_bad_points_are_refused() -> None:
    with pytest.raises(RecipeError, match="no points"):
        FrechetProblem(Stiefel(5, 2), [])
    with pytest.raises(RecipeError, match=r"point 0 is of shape \(1, 5, 2\); expected \(2, 5, 2\)"):
        FrechetProblem(Stiefel(5, 2, k=2), [Stiefel(5, 2).random_point()])
    with pytest.raises(RecipeError, match=r"initial_point is of shape \(1, 6, 2\)"):
        FrechetProblem(
            Stiefel(5, 2), [Stiefel(5, 2).random_point()], initial_point=Stiefel(6, 2).random_point()
        )
    with pytest.raises(RecipeError, match="squared_dist"):
        FrechetProblem(pymanopt.manifolds.Sphere(3), [np.eye(3)[0]], gradient="autograd")
    joint = FrechetProblem(updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)).form.manifold
    with pytest.raises(RecipeError, match="no logarithm"):
        FrechetProblem(joint, [joint.random_point()])


@pytest.mark.parametrize("damage", ["nan", "indefinite core", "frame not orthonormal"])
def test_data_off_the_manifold_is_refused_by_point_and_module(damage: str) -> None:
    quotient, points = updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)
    bad = points[1].clone()
    u, b, _ = quotient.total.split(bad[1])
    if damage == "nan":
        u[0, 0] = torch.nan
    elif damage == "indefinite core":
        b.neg_()
    else:
        u.mul_(2)
    with pytest.raises(RecipeError, match="point 1 is no point of the manifold in module 1"):
        FrechetProblem(quotient, [points[0], bad, points[2]])


def test_own_squared_distance_by_torch() -> None:
    """The chordal mean of frames is the polar factor of their average: a closed form."""
    manifold = Stiefel(12, 3, k=2)
    points = [manifold.random_point() for _ in range(4)]
    weights = [0.4, 0.3, 0.2, 0.1]
    solution = frechet_mean(
        manifold,
        points,
        weights,
        gradient="autograd",
        squared_dist=lambda x, y: (x - y).square().sum(dim=(-2, -1)),
        initial_point=points[0],
    )
    assert solution.ok
    closed = manifold.extrinsic_mean(
        torch.stack(points), torch.tensor(weights).double()[:, None].expand(4, 2)
    )
    torch.testing.assert_close(solution.point, closed, rtol=0, atol=1e-7)


def test_own_squared_distance_by_pymanopt_s_autograd() -> None:
    sphere = pymanopt.manifolds.Sphere(4)
    generator = np.random.default_rng(0)
    points = [x / np.linalg.norm(x) for x in generator.standard_normal((5, 4)) + 1]
    solution = frechet_mean(
        sphere, points, gradient="autograd", squared_dist=lambda x, y: anp.sum((x - y) ** 2)
    )
    average = np.mean(points, axis=0)
    np.testing.assert_allclose(solution.point, average / np.linalg.norm(average), atol=1e-7)


def quartic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A squared distance that no rotation of both points leaves as it is."""
    return ((x - y) ** 4).sum(dim=(-2, -1)) + 0.1 * ((x - y) ** 2).sum(dim=(-2, -1))


@pytest.mark.parametrize("solver", ["lbfgs", "trust_regions", "fixed_point"])
def test_own_distance_is_minimised_where_the_data_are(solver: str) -> None:
    """Reduced to the span of the data, which is turned, the cost would be another function."""
    manifold = Stiefel(20, 2)
    points = [manifold.random_point() for _ in range(3)]
    points[1:] = [manifold.exp(points[0], 0.5 * manifold.log(points[0], y)) for y in points[1:]]
    solution = frechet_mean(manifold, points, gradient="autograd", squared_dist=quartic, solver=solver)
    assert solution.ok

    def cost(x: np.ndarray) -> float:
        left, _, right = torch.linalg.svd(torch.from_numpy(x).reshape(20, 2), full_matrices=False)
        return float(sum(quartic((left @ right)[None], y) for y in points) / 6)

    here = float(sum(quartic(solution.point, y) for y in points) / 6)
    assert float(solution.cost[0]) == pytest.approx(here, rel=1e-12)
    # An independent minimisation, from another start, without gradients of ours.
    best = scipy.optimize.minimize(cost, points[0].flatten().numpy(), method="BFGS", options={"gtol": 1e-7})
    assert here == pytest.approx(best.fun, rel=1e-6)
    # The manifold's own distances, whatever was minimised.
    apart = [manifold.dist(solution.point, y) for y in points]
    np.testing.assert_allclose(solution.distances[:, 0], apart, rtol=1e-10)


def test_own_distance_needs_no_logarithm() -> None:
    """The joint manifold of a mean and its alignments has none; and data may be at each other's cut locus."""
    joint = FrechetProblem(updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)).form.manifold
    points = [joint.random_point() for _ in range(3)]
    solution = frechet_mean(
        joint, points, gradient="autograd", squared_dist=lambda x, y: (x - y).square().sum(dim=(-2, -1))
    )
    assert solution.ok
    costs = torch.stack([(solution.point - y).square().sum(dim=(-2, -1)) for y in points]).sum(dim=0) / 6
    np.testing.assert_allclose(solution.cost, costs, rtol=1e-12)
    assert np.isnan(solution.distances).all()
    assert np.isnan(solution.forward_error).all()
    pole = Stiefel(6, 2).random_point()
    antipodes = frechet_mean(
        Stiefel(6, 2),
        [pole, -pole],
        gradient="autograd",
        squared_dist=lambda x, y: (x - y).square().sum(dim=(-2, -1)),
        initial_point=pole,
    )
    assert antipodes.ok
    assert float(antipodes.cost[0]) == pytest.approx(2, rel=1e-12)  # of every frame: (0 + 8) / 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", ["lbfgs", "trust_regions"])
def test_own_distance_on_a_quotient_is_of_orbits(form: str, solver: str) -> None:
    """Of the updates' entries: its minimum among rank r is the truncated SVD of their average. One that moves
    with the gauge has no gradient on orbits, and is refused.
    """
    quotient, points = updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)
    matrix = quotient.total.matrix

    def apart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (matrix(x) - matrix(y)).square().sum(dim=(-2, -1))

    solution = frechet_mean(
        quotient,
        points,
        form=form,
        solver=solver,
        gradient="autograd",
        squared_dist=apart,
        tol=1e-6,
        max_passes=3000,
    )
    assert solution.ok
    left, values, right = torch.linalg.svd(sum(matrix(y) for y in points) / 3)
    best = left[..., :3] * values[..., None, :3] @ right[..., :3, :]
    costs = [(best - matrix(y)).square().sum(dim=(-2, -1)) for y in points]
    np.testing.assert_allclose(solution.cost, torch.stack(costs).sum(dim=0) / 6, rtol=1e-8)
    # Copies in other gauges, whose distances are nothing but round-off, are their own mean.
    turn = quotient.action.random_element((2,), torch.Generator().manual_seed(1))
    copies = [points[0], quotient.action.act(quotient.total, points[0], turn)]
    same = frechet_mean(quotient, copies, gradient="autograd", squared_dist=apart)
    assert same.ok
    assert float(same.cost.max()) < 1e-24
    with pytest.raises(RecipeError, match="changes with the representative"):
        FrechetProblem(quotient, points, form=form, gradient="autograd", squared_dist=quartic)


def test_own_distance_must_be_a_number_for_each_module_that_torch_follows() -> None:
    manifold = Stiefel(6, 2, k=2)
    points = [manifold.random_point() for _ in range(2)]
    for wrong, words in (
        (lambda x, y: (x - y).square().sum(), r"returned \(\) .* expected one number for each module"),
        (lambda x, y: (x - y).square().sum(dim=-1), r"returned \(2, 6\)"),
        (lambda x, y: 1.0, "returned float"),
        (lambda x, y: (x.detach() - y).square().sum(dim=(-2, -1)), "cannot be differentiated"),
    ):
        with pytest.raises(RecipeError, match=words):
            frechet_mean(manifold, points, gradient="autograd", squared_dist=wrong)


def test_geometry_of_the_quotient_alone() -> None:
    """Every gauge of every point gives the same cost: the joint start aligns them."""
    quotient, points = updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)
    generator = torch.Generator().manual_seed(0)
    action, total = quotient.action, quotient.total
    assert isinstance(action, Orthogonal)
    turned = [action.act(total, x, action.random_element((2,), generator)) for x in points]
    for a, b in itertools.product((points, turned), repeat=2):
        one, two = FrechetProblem(quotient, a), FrechetProblem(quotient, b)
        costs = [p.evaluate(p.start()).cost for p in (one, two)]
        torch.testing.assert_close(*costs, rtol=1e-9, atol=0)
    assert isinstance(quotient, QuotientManifold)
