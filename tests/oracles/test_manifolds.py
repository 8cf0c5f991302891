"""Independent implementations: geomstats, Pymanopt's SPD manifold, scipy's matrix functions."""

from __future__ import annotations

import numpy as np
import pymanopt
import pytest
import scipy.linalg
import torch

from riemerge.linalg import exp_skew, log_so, log_so_by_products, skew
from riemerge.manifolds import Stiefel, SymmetricPositiveDefinite
from riemerge.manifolds.low_rank.factors import CORES
from tests.helpers import import_geomstats, random_core, seeded

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(("n", "p", "length"), [(12, 3, 0.3), (12, 3, 2.0), (7, 3, 1.0), (40, 8, 2.5)])
def test_stiefel_logarithm_is_that_of_geomstats(n: int, p: int, length: float) -> None:
    geomstats = import_geomstats("geomstats.geometry.stiefel")
    manifold = Stiefel(n, p, k=1, seed=n)
    a = manifold.random_point()
    b = manifold.exp(a, length * manifold.random_tangent_vector(a))
    metric = geomstats.StiefelCanonicalMetric(geomstats.Stiefel(n, p))
    theirs = metric.log(b[0].numpy(), a[0].numpy())
    # geomstats stops its iteration at 1e-8.
    np.testing.assert_allclose(manifold.log(a, b)[0].numpy(), theirs, atol=1e-6)
    np.testing.assert_allclose(manifold.exp(a, torch.from_numpy(theirs)[None])[0], b[0], atol=1e-6)
    inner = metric.inner_product(theirs, theirs, a[0].numpy())
    assert manifold.dist(a, b) == pytest.approx(np.sqrt(inner), abs=1e-6)


@pytest.mark.parametrize(("n", "p", "length"), [(12, 3, 0.3), (12, 3, 2.0), (5, 3, 1.0), (40, 8, 4.0)])
def test_euclidean_frames_are_those_of_pymanopt(n: int, p: int, length: float) -> None:
    """Pymanopt has no logarithm of frames; its exponential leads from ours back to the second point."""
    theirs = pymanopt.manifolds.Stiefel(n, p)
    manifold = Stiefel(n, p, beta=1.0, seed=n)
    a = manifold.random_point()
    v = length * manifold.random_tangent_vector(a)
    assert manifold.norm(a, v) == pytest.approx(float(theirs.norm(a[0].numpy(), v[0].numpy())))
    b = manifold.exp(a, v)
    np.testing.assert_allclose(b[0], theirs.exp(a[0].numpy(), v[0].numpy()), atol=1e-12)
    np.testing.assert_allclose(theirs.exp(a[0].numpy(), manifold.log(a, b)[0].numpy()), b[0], atol=1e-12)
    gradient = manifold.random_ambient(a)
    np.testing.assert_allclose(
        manifold.euclidean_to_riemannian_gradient(a, gradient)[0],
        theirs.euclidean_to_riemannian_gradient(a[0].numpy(), gradient[0].numpy()),
        atol=1e-12,
    )


@pytest.mark.parametrize("cond", [1.0, 10.0, 1e6])
def test_spd_is_that_of_pymanopt(cond: float) -> None:
    generator = seeded(5)
    a, b = (random_core(4, cond, generator) for _ in range(2))
    v = random_core(4, 10.0, generator) - random_core(4, 10.0, generator)
    theirs = pymanopt.manifolds.SymmetricPositiveDefinite(4)
    ours = SymmetricPositiveDefinite(4)
    v = v * 0.3 / ours.norm(a[None], v[None])
    # W = C^-1 b C^-T carries the rounding of b, magnified by cond(a): that is what either can know.
    rtol = 1e-13 * cond
    assert ours.dist(a[None], b[None]) == pytest.approx(float(theirs.dist(a.numpy(), b.numpy())), rel=rtol)
    assert ours.inner_product(a[None], v[None], v[None]) == pytest.approx(
        float(theirs.inner_product(a.numpy(), v.numpy(), v.numpy())), rel=rtol
    )
    np.testing.assert_allclose(
        ours.exp(a[None], v[None])[0], theirs.exp(a.numpy(), v.numpy()), rtol=rtol, atol=rtol
    )
    np.testing.assert_allclose(
        ours.log(a[None], b[None])[0], theirs.log(a.numpy(), b.numpy()), rtol=rtol, atol=rtol
    )


@pytest.mark.parametrize("size", [2, 3, 8, 32])
@pytest.mark.parametrize("largest", [0.0, 1e-8, 0.1, 2.0, 3.1])
def test_exponential_and_logarithm_of_rotations_are_scipy_s(size: int, largest: float) -> None:
    generator = torch.Generator().manual_seed(size)
    generator_matrix = skew(torch.randn(size, size, generator=generator, dtype=torch.float64))
    top = np.abs(np.linalg.eigvals(generator_matrix.numpy())).max()
    matrix = generator_matrix * largest / top
    rotation = exp_skew(matrix)
    np.testing.assert_allclose(rotation, scipy.linalg.expm(matrix.numpy()), atol=1e-13)
    # The logarithm loses eps / (pi - angle) near a half turn.
    found, _ = log_so(rotation)
    np.testing.assert_allclose(found, scipy.linalg.logm(rotation.numpy()).real, atol=1e-12)
    np.testing.assert_allclose(found, matrix, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 5, 32])
def test_logarithm_of_rotations_by_products(size: int, dtype: torch.dtype) -> None:
    """To single precision wherever it says so, which is up to a right angle at least and never from 127
    degrees on.
    """
    drawn = skew(
        torch.randn(40, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    )
    top = torch.linalg.matrix_norm(drawn, 2)[:, None, None].clamp_min(1e-300)
    angles = torch.linspace(0, np.pi, 40, dtype=torch.float64)
    matrix = drawn / top * angles[:, None, None]
    found, known = log_so_by_products(exp_skew(matrix).to(dtype))
    assert found.dtype is dtype
    error = torch.linalg.matrix_norm(found - matrix)
    # Angles below the precision of the rotation itself have its error.
    assert bool(
        (error <= 3e-7 * torch.linalg.matrix_norm(matrix) + 1e-14 * (dtype == torch.float64))[known].all()
    )
    assert bool(known[angles < np.pi / 2].all())
    assert not bool(known[angles > np.radians(127)].any()) or size == 1
    assert bool((found == -found.mT).all())


@pytest.mark.parametrize("name", ["log_euclidean", "bures_wasserstein"])
def test_metrics_of_spd_are_those_of_geomstats(name: str) -> None:
    spd = import_geomstats("geomstats.geometry.spd_matrices")
    space = spd.SPDMatrices(4, equip=False)
    kinds = {"log_euclidean": spd.SPDLogEuclideanMetric, "bures_wasserstein": spd.SPDBuresWassersteinMetric}
    metric, ours = kinds[name](space), CORES[name](4)
    generator = seeded(5)
    a, b = (random_core(4, 10.0, generator) for _ in range(2))
    v = ours.log(a[None], b[None])
    np.testing.assert_allclose(v[0], metric.log(b.numpy(), a.numpy()), atol=1e-10)
    np.testing.assert_allclose(
        ours.exp(a[None], v / 2)[0], metric.exp(v[0].numpy() / 2, a.numpy()), atol=1e-10
    )
    assert ours.dist(a[None], b[None]) == pytest.approx(float(metric.dist(a.numpy(), b.numpy())), rel=1e-9)
    assert ours.inner_product(a[None], v, v) == pytest.approx(
        float(metric.inner_product(v[0].numpy(), v[0].numpy(), a.numpy())), rel=1e-9
    )


def test_transport_on_spd_is_parallel() -> None:
    # Schild's ladder: the parallelogram of geodesics approximates parallel transport to second order in its
    # side.
    manifold = SymmetricPositiveDefinite(3, seed=2)
    a = manifold.random_point()
    v, w = (manifold.random_tangent_vector(a) for _ in range(2))
    errors = []
    for step in (0.1, 0.05):
        b = manifold.exp(a, step * v)
        middle = manifold.pair_mean(manifold.exp(a, step * w), b)
        ladder = manifold.log(b, manifold.exp(a, 2 * manifold.log(a, middle))) / step
        errors.append(float(manifold.norm(b, ladder - manifold.transport(a, b, w))))
    assert errors[1] < errors[0] / 3.5
