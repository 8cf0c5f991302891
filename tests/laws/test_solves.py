"""No number leaves the device in a solve but the scalars that optimizers need, and no tensor is made on
another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
import torch

from riemerge.manifolds import Stiefel, SymmetricPositiveDefinite
from riemerge.manifolds.checks import check_metric
from tests.fake_cuda import CUDA, fake_cuda, forbid_numpy
from tests.frechet.problems import ITERATIVE, mean_of
from tests.helpers import seeded
from tests.manifolds.subjects import family, updates


@pytest.mark.parametrize("form", ["joint", "nested"])
@pytest.mark.parametrize("gradient", ["analytic", "autograd"])
@pytest.mark.parametrize("solver", ITERATIVE)
def test_no_numpy_conversion_happens_inside_a_solve(
    solver: str, gradient: Literal["analytic", "autograd"], form: Literal["joint", "nested"]
) -> None:
    quotient, points = updates(16, 14, 2, k=2), family("close", 3, 16, 14, 2, seed=5)
    with forbid_numpy():
        solution = mean_of(quotient, points, solver=solver, gradient=gradient, form=form, max_passes=80)
    assert solution.ok


def test_a_planted_numpy_conversion_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    quotient, points = updates(16, 14, 2, k=2), family("close", 3, 16, 14, 2, seed=5)
    real = SymmetricPositiveDefinite.logarithm
    monkeypatch.setattr(
        SymmetricPositiveDefinite, "logarithm", lambda self, a, b: (a.numpy(), real(self, a, b))[1]
    )
    with forbid_numpy(), pytest.raises(AssertionError):
        mean_of(quotient, points)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["joint", "nested"])
@pytest.mark.parametrize("solver", ITERATIVE)
def test_the_whole_path_stays_on_cuda_and_gives_the_same_numbers(
    solver: str, form: Literal["joint", "nested"]
) -> None:
    quotient, points = updates(16, 14, 2, k=2), family("close", 3, 16, 14, 2, seed=5)
    expected = mean_of(quotient, points, solver=solver, form=form, max_passes=40)
    with fake_cuda():
        moved = [x.to("cuda") for x in points]
        solution = mean_of(quotient, moved, solver=solver, form=form, max_passes=40)
        assert solution.point.device == CUDA
        assert torch.equal(solution.point.cpu(), expected.point)
    assert solution.status == expected.status


def test_a_planted_tensor_of_the_cpu_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    quotient, points = updates(16, 14, 2, k=2), family("close", 3, 16, 14, 2, seed=5)
    project = Stiefel.projection
    monkeypatch.setattr(
        Stiefel, "projection", lambda self, x, v: project(self, x, v) @ torch.eye(2, dtype=torch.float64)
    )
    with fake_cuda():
        moved = [x.to("cuda") for x in points]
        with pytest.raises(RuntimeError, match="same device"):
            mean_of(quotient, moved)


def test_manifolds_draw_on_their_device() -> None:
    with fake_cuda():
        manifold = Stiefel(9, 3, k=2, device="cuda", seed=4)
        point = manifold.random_point()
        assert point.device == CUDA
        assert manifold.random_tangent_vector(point).device == CUDA
        assert max(check_metric(manifold).values()) < 1e-12
        # The same seed is the same point on every device.
        assert torch.equal(point.cpu(), Stiefel(9, 3, k=2, seed=4).random_point())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    quotient, points = updates(16, 14, 2, k=2), family("close", 3, 16, 14, 2, seed=5)
    exact = mean_of(quotient, points).point
    # The logs of float32 points are exact to about eps sqrt(n).
    tol = 1e-8 if dtype == torch.float64 else 1e-5
    solution = mean_of(quotient, [x.to(dtype) for x in points], tol=tol)
    assert solution.point.dtype == dtype
    assert solution.cost.dtype == "float64"
    assert float((quotient.dists(solution.point.double(), exact)).max()) < 10 * tol


def test_hessians_of_several_threads_do_not_meet() -> None:
    """torch keeps the level of forward differentiation in one place: without a lock most of these fail."""
    manifold = SymmetricPositiveDefinite(3, seed=4)
    point = manifold.random_point()
    vectors = [manifold.random_tangent_vector(point) for _ in range(4)]
    forms = torch.randn(2, 3, 3, generator=seeded(1), dtype=torch.float64)

    def hessian(vector: torch.Tensor) -> torch.Tensor:
        return manifold.euclidean_to_riemannian_hessian(point, forms[:1], forms[1:], vector)

    expected = [hessian(vector) for vector in vectors]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(hessian, vectors * 100))
    assert all(torch.equal(one, expected[place % 4]) for place, one in enumerate(found))
