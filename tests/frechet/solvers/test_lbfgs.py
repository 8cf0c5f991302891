"""L-BFGS: on Pymanopt's own manifolds, and module by module on stacks."""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
import pymanopt
import pytest
import torch
from pymanopt.optimizers import ConjugateGradient, SteepestDescent

from riemerge import Status
from riemerge.frechet.solvers import lbfgs
from riemerge.frechet.solvers.lbfgs import LBFGSOptimizer
from riemerge.manifolds import Euclidean
from tests.frechet.problems import mean_of
from tests.manifolds.subjects import family, matrices, relative, updates

R, T, M, N = 8, 6, 120, 100


def rayleigh(manifold: pymanopt.manifolds.manifold.Manifold, matrix: np.ndarray) -> pymanopt.Problem:
    """Minus the sum of the leading eigenvalues, as a problem."""

    @pymanopt.function.autograd(manifold)
    def cost(x: np.ndarray) -> Any:
        return -anp.trace(anp.dot(x.T, anp.dot(matrix, x)))

    return pymanopt.Problem(manifold, cost)


@pytest.mark.parametrize("space", [pymanopt.manifolds.Stiefel(20, 3), pymanopt.manifolds.Grassmann(20, 3)])
def test_finds_leading_eigenspaces_on_stock_manifolds(space: pymanopt.manifolds.manifold.Manifold) -> None:
    generator = np.random.default_rng(1)
    root = generator.standard_normal((20, 20))
    matrix = root @ root.T
    start = np.linalg.qr(generator.standard_normal((20, 3)))[0]
    result = LBFGSOptimizer(min_gradient_norm=1e-7, max_iterations=400, verbosity=0).run(
        rayleigh(space, matrix), initial_point=start
    )
    best = -np.sort(np.linalg.eigvalsh(matrix))[-3:].sum()
    assert result.cost == pytest.approx(best, rel=1e-10)
    plain = SteepestDescent(min_gradient_norm=1e-7, max_iterations=4000, verbosity=0).run(
        rayleigh(space, matrix), initial_point=start
    )
    # What it is for.
    assert result.iterations < plain.iterations / 2


def nearest_of_rank_three(
    start: tuple[np.ndarray, ...], matrix: np.ndarray
) -> tuple[pymanopt.Problem, tuple[np.ndarray, ...]]:
    """The matrix of rank 3 nearest to another, as a problem; and a start."""
    space = pymanopt.manifolds.FixedRankEmbedded(20, 15, 3)

    @pymanopt.function.autograd(space)
    def cost(u: np.ndarray, s: np.ndarray, vt: np.ndarray) -> Any:
        return anp.sum((anp.dot(u * s, vt) - matrix) ** 2) / 2

    return pymanopt.Problem(space, cost), start


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tangent_vectors_may_be_factors(seed: int) -> None:
    """On FixedRankEmbedded `projection` wants ambient matrices, and `to_tangent_space` tangent vectors. The
    minimum is the truncated SVD's (Eckart, Young).
    """
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((20, 15))
    left, right = (np.linalg.qr(generator.standard_normal((n, 3)))[0] for n in (20, 15))
    problem, start = nearest_of_rank_three((left, np.array([3.0, 2, 1]), right.T), matrix)
    found = LBFGSOptimizer(min_gradient_norm=1e-6, max_iterations=500, verbosity=0).run(
        problem, initial_point=start
    )
    values = np.linalg.svd(matrix, compute_uv=False)
    assert "min grad norm" in found.stopping_criterion
    assert found.cost == pytest.approx((values[3:] ** 2).sum() / 2, rel=1e-9)


def test_tangent_vectors_may_be_of_the_algebra() -> None:
    """On rotations a tangent vector is a skew matrix, no ambient one. The minimum of -tr(XᵀA X N) pairs the
    eigenvalues in order (Brockett 1991).
    """
    generator = np.random.default_rng(1)
    space = pymanopt.manifolds.SpecialOrthogonalGroup(8)
    root = generator.standard_normal((8, 8))
    matrix, order = root + root.T, np.arange(1.0, 9)

    @pymanopt.function.autograd(space)
    def cost(x: np.ndarray) -> Any:
        return -anp.sum(order * anp.sum(x * anp.dot(matrix, x), axis=0))

    start = np.linalg.qr(generator.standard_normal((8, 8)))[0]
    start[:, 0] *= np.sign(np.linalg.det(start))
    found = LBFGSOptimizer(min_gradient_norm=1e-6, max_iterations=500, verbosity=0).run(
        pymanopt.Problem(space, cost), initial_point=start
    )
    assert "min grad norm" in found.stopping_criterion
    assert found.cost == pytest.approx(-(order * np.linalg.eigvalsh(matrix)).sum(), rel=1e-9)
    assert found.iterations < 150  # projected as if they were ambient it does not converge in 500


@pytest.mark.parametrize("space", [pymanopt.manifolds.UnitaryGroup(4), pymanopt.manifolds.PoincareBall(4)])
def test_inner_products_may_be_complex_and_transport_missing(
    space: pymanopt.manifolds.manifold.Manifold,
) -> None:
    generator = np.random.default_rng(2)
    if isinstance(space, pymanopt.manifolds.UnitaryGroup):
        start, target = (
            np.linalg.qr(generator.standard_normal((4, 4)) + 1j * generator.standard_normal((4, 4)))[0]
            for _ in range(2)
        )
    else:
        start, target = 0.9 * np.eye(4)[0], -0.5 * np.eye(4)[1]
    function = pymanopt.function.numpy(space)
    problem = pymanopt.Problem(
        space,
        function(lambda x: space.dist(x, target) ** 2 / 2),
        riemannian_gradient=function(lambda x: -space.log(x, target)),
    )
    found = LBFGSOptimizer(min_gradient_norm=1e-7, max_iterations=100, verbosity=0).run(
        problem, initial_point=start
    )
    assert float(space.dist(found.point, target)) < 1e-6


def test_a_trial_out_of_the_set_is_taken_back() -> None:
    """A user's own cost by a factorisation, which fails where a first step of one ends."""
    space = pymanopt.manifolds.Euclidean(2, 2)
    function = pymanopt.function.numpy(space)
    failed = []

    def cost(x: np.ndarray) -> Any:
        try:
            return float(np.trace(x) - 2 * np.log(np.diag(np.linalg.cholesky(x))).sum())
        except np.linalg.LinAlgError:
            failed.append(x)
            raise

    problem = pymanopt.Problem(
        space, function(cost), riemannian_gradient=function(lambda x: np.eye(2) - np.linalg.inv(x))
    )
    found = LBFGSOptimizer(min_gradient_norm=1e-8, verbosity=0).run(
        problem, initial_point=np.diag([9.0, 0.2])
    )
    assert failed
    np.testing.assert_allclose(found.point, np.eye(2), atol=1e-7)


@pytest.mark.parametrize("log_verbosity", [0, 1])
def test_logs_as_pymanopts_own_optimizers_do(log_verbosity: int) -> None:
    matrix = np.diag(np.arange(6.0))
    problem = rayleigh(pymanopt.manifolds.Stiefel(6, 2), matrix)
    start = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 2)))[0]
    ours, theirs = (
        kind(verbosity=0, log_verbosity=log_verbosity).run(problem, initial_point=start)
        for kind in (LBFGSOptimizer, ConjugateGradient)
    )
    if log_verbosity == 0:
        assert ours.log["iterations"] is None
        return
    entries = ours.log["iterations"]
    assert entries.keys() == theirs.log["iterations"].keys()
    assert entries["iteration"] == [*range(1, ours.iterations + 1)]
    assert entries["cost"][-1] == ours.cost
    assert entries["gradient_norm"][-1] == ours.gradient_norm
    np.testing.assert_array_equal(entries["point"][0], start)
    np.testing.assert_array_equal(entries["point"][-1], ours.point)


def test_needs_about_as_many_steps_as_dimensions_on_a_quadratic() -> None:
    """Without curvature pairs this takes hundreds: the condition is 1e4."""
    space = pymanopt.manifolds.Euclidean(12)
    scales = np.logspace(0, 4, 12)

    @pymanopt.function.autograd(space)
    def cost(x: np.ndarray) -> Any:
        return anp.sum(scales * x**2) / 2

    found = LBFGSOptimizer(min_gradient_norm=1e-8, max_iterations=200, verbosity=0).run(
        pymanopt.Problem(space, cost), initial_point=np.ones(12)
    )
    assert np.abs(found.point).max() < 1e-7
    assert found.iterations < 120


def test_stops_at_once_at_a_minimum_and_by_its_own_rules() -> None:
    space = pymanopt.manifolds.Sphere(4)
    scales = np.array([3.0, 2, 1, 0])

    @pymanopt.function.autograd(space)
    def cost(x: np.ndarray) -> Any:
        return -anp.sum(scales * x**2)

    problem = pymanopt.Problem(space, cost)
    found = LBFGSOptimizer(verbosity=0).run(problem, initial_point=np.eye(4)[0])
    assert found.iterations == 1
    found = LBFGSOptimizer(max_iterations=3, min_gradient_norm=0, verbosity=0).run(
        problem, initial_point=np.ones(4) / 2
    )
    assert "max iterations" in found.stopping_criterion
    with pytest.raises(ValueError, match="memory is 0"):
        LBFGSOptimizer(memory=0)


def two_loops(pairs: list[tuple[np.ndarray, np.ndarray]], gradient: np.ndarray, size: float) -> np.ndarray:
    """H grad by Nocedal and Wright 2006, alg. 7.4: the oracle of all inner products at once."""
    vector, shares = gradient, []
    for step, change in reversed(pairs):
        shares.append(step @ vector / (step @ change))
        vector = vector - shares[-1] * change
    vector = size * vector
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        vector = vector + (share - change @ vector / (step @ change)) * step
    return vector


@pytest.mark.parametrize("batched", [False, True])
def test_the_inverse_hessian_is_that_of_the_two_loop_recursion(batched: bool) -> None:
    """More steps than are kept, two of them without curvature in the first module; the second stays behind
    when the batch is narrowed.
    """
    generator, size, memory = np.random.default_rng(3), 5, 3
    stack: Any = Euclidean(size, 1, k=2) if batched else pymanopt.manifolds.Euclidean(size)
    shape = (2, size, 1) if batched else (size,)

    def give(vector: np.ndarray) -> Any:
        return torch.from_numpy(vector.reshape(shape)) if batched else vector

    point, gradient = np.zeros(shape), generator.standard_normal(shape)
    inverse = lbfgs.InverseHessian(
        stack, lambda _, v: v / 2, give(point), give(gradient), memory=memory, rescale=False
    )
    pairs: list[list[tuple[np.ndarray, np.ndarray]]] = [[], []]
    found = gradient
    for number in range(7):
        step, change = generator.standard_normal((2, *shape))
        step = step * np.sign((step * change).reshape(-1, size).sum(axis=1)).reshape(
            -1, *(1,) * (step.ndim - 1)
        )
        if number in (1, 4):
            step.reshape(-1, size)[0] *= -1
        arrival = point + step
        gradient = gradient + change
        inverse.advance(give(point), give(step), give(arrival), give(gradient))
        for known, s, y in zip(pairs, step.reshape(-1, size), change.reshape(-1, size), strict=False):
            known.append((s, y))
        point = arrival
        found = np.asarray(inverse.apply(give(point))).reshape(-1, size)
        for known, g, h in zip(pairs, gradient.reshape(-1, size), found, strict=False):
            curved = [(s, y) for s, y in known[-memory:] if s @ y > 0]
            np.testing.assert_allclose(h, two_loops(curved, g, 0.5), rtol=1e-9)
    if batched:
        alone = inverse.narrow(torch.tensor([1]), stack.with_modules(1)).apply(give(point)[1:])
        np.testing.assert_allclose(np.asarray(alone).ravel(), found[1], rtol=1e-12)


def test_each_module_runs_as_if_alone() -> None:
    """A stack of an easy and a hard module takes the iterates that each takes by itself."""
    quotient = updates(40, 36, 4, k=2)
    close, far = (family(name, 4, 40, 36, 4, seed=11, k=1) for name in ("close", "independent"))
    points = [torch.cat(pair) for pair in zip(close, far, strict=True)]
    together = mean_of(quotient, points, tol=1e-6)
    for index, alone in enumerate((close, far)):
        single = mean_of(updates(40, 36, 4), alone, tol=1e-6)
        assert single.status[0] is together.status[index]
        assert relative(
            matrices(quotient, together.point)[index : index + 1],
            matrices(updates(40, 36, 4), single.point),
        ) < (1e-9 if index == 0 else 1e-5)  # round-off grows along the flat directions of the far one


def test_steps_without_curvature_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a concave stretch <s, y> is negative; taken in, such a pair would turn the direction uphill."""
    space = pymanopt.manifolds.Euclidean(1)

    @pymanopt.function.autograd(space)
    def cost(x: np.ndarray) -> Any:
        return anp.sum(1 - anp.exp(-((x / 4) ** 2)))

    def slopes() -> list[float]:
        seen: list[float] = []
        search = lbfgs._Backtracking.search

        def watched(self: Any, f: Any, m: Any, x: Any, d: np.ndarray, f0: float, df0: float) -> Any:
            seen.append(df0 / np.abs(d).max())
            return search(self, f, m, x, d, f0, df0)

        with monkeypatch.context() as patch:
            patch.setattr(
                lbfgs._Backtracking,
                "search",
                watched,
            )
            LBFGSOptimizer(max_iterations=12, verbosity=0).run(
                pymanopt.Problem(space, cost), initial_point=np.array([12.0])
            )
        return seen

    assert max(slopes()) < 0


def test_an_optimizer_used_again_knows_nothing_of_its_last_run() -> None:
    """The way out of a solve is an exception: what it leaves on the object must not enter the next run."""
    quotient = updates(24, 20, 3, k=2)
    first, second = (family(name, 3, 24, 20, 3, seed=5, k=2) for name in ("lora_like", "close"))
    fresh = mean_of(quotient, second, solver=LBFGSOptimizer(verbosity=0), max_passes=40)
    used = LBFGSOptimizer(verbosity=0)
    assert mean_of(quotient, first, solver=used, max_passes=10).status[0] is Status.BUDGET
    again = mean_of(quotient, second, solver=used, max_passes=40)
    assert torch.equal(fresh.point, again.point)
    single = mean_of(updates(24, 20, 3), family("close", 3, 24, 20, 3, seed=5, k=1), solver=used)
    assert single.point.shape[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("close", 15), ("lora_like", 150), ("shared_subspace", 150)])
def test_passes_to_eight_digits(name: str, most: int) -> None:
    """Rank 8, six adapters: the gradient norm 1e-8."""
    for seed in (2001, 2002):
        points = family(name, T, M, N, R, seed, k=2)
        solution = mean_of(updates(M, N, R, k=2), points, tol=1e-9, max_passes=most)
        assert float(solution.gradient_norm.max()) < 1e-8
        assert float(solution.forward_error.max()) < 1e-11
        assert float(solution.horizontality.max()) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["close", "lora_like", "shared_subspace"])
def test_trust_regions_find_the_same_cost(name: str) -> None:
    """From one start in the basin of a minimum: from far away the two may end in different ones."""
    points = family(name, T, M, N, R, 2001, k=1)
    near = mean_of(updates(M, N, R), points, tol=1e-2, max_passes=150).point
    one, two = (
        mean_of(updates(M, N, R), points, solver=solver, tol=1e-7, max_passes=1500, initial_point=near)
        for solver in ("lbfgs", "trust_regions")
    )
    assert one.status == two.status == (Status.CONVERGED,)
    assert one.cost == pytest.approx(two.cost, rel=1e-9)
