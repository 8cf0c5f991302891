"""The log-Euclidean, the Bures-Wasserstein and the Euclidean metric of positive definite matrices: laws at
ill-conditioned points, oracles by scipy, and where geodesics end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from riemerge.manifolds.checks import check_manifold, check_metric
from riemerge.manifolds.spd import SymmetricPositiveDefinite
from riemerge.manifolds.spd_base import PositiveDefinite
from riemerge.manifolds.spd_metrics import SpdBuresWasserstein, SpdEuclidean, SpdLogEuclidean
from tests.helpers import random_core, seeded
from tests.laws.faults import DIFFERENCES

METRICS: dict[str, type[PositiveDefinite]] = {
    "affine_invariant": SymmetricPositiveDefinite,
    "log_euclidean": SpdLogEuclidean,
    "bures_wasserstein": SpdBuresWasserstein,
    "euclidean": SpdEuclidean,
}


def cores(cond: float, r: int = 4) -> Tensor:
    return torch.stack([random_core(r, cond, seeded(8 + i)) for i in range(2)])


def reach(manifold: PositiveDefinite, point: Tensor) -> float:
    """A length well inside the set along any geodesic: the last two metrics are incomplete."""
    least = float(torch.linalg.eigvalsh(point).min())
    lengths = {SpdBuresWasserstein: 0.1 * least**0.5, SpdEuclidean: 0.1 * least}
    return lengths.get(type(manifold), 0.4)


@pytest.mark.parametrize("cond", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", METRICS)
def test_laws(name: str, cond: float) -> None:
    manifold, point = METRICS[name](4, k=2, seed=1), cores(cond)
    scale = reach(manifold, point)
    defects = check_manifold(manifold, scale=scale, point=point) | check_metric(manifold, point=point)
    # A step is known to the round-off of the point, which is cond times its share of the least eigenvalue;
    # and differences divide that by their step.
    assert defects.pop("gauss") < max(DIFFERENCES, 1e-10 * cond)
    assert defects.pop("compatibility") < max(DIFFERENCES, 1e-7 * cond)
    if cond > 1 and name == "bures_wasserstein":
        # Membership and starts are checked by steps of length one, which leave this set near its boundary.
        del defects["feasible"], defects["start"]
    assert defects.pop("riesz_inverse") < max(1e-12, 1e-13 * cond)
    assert max(defects.values()) < max(1e-12, 1e-13 * cond), defects


@pytest.mark.parametrize("name", METRICS)
def test_geodesics_have_no_acceleration(name: str) -> None:
    """Differentiating the velocity along the geodesic gives zero, and the connection is symmetric."""
    manifold = METRICS[name](4, k=2, seed=1)
    x, step = manifold.random_point(), 1e-4
    v = 0.1 * manifold.random_tangent_vector(x)
    middle, velocity = manifold.geodesic(x, v)
    ahead, behind = (manifold.geodesic(x, (1 + t) * v)[1] / (1 + t) for t in (step, -step))
    change = manifold.covariant_derivative(middle, velocity, velocity, (ahead - behind) / (2 * step))
    assert manifold.norm(middle, change) < 1e-7 * manifold.norm(x, v)
    a, b = (manifold.random_tangent_vector(x) for _ in range(2))
    zero = torch.zeros_like(x)
    one, other = (manifold.covariant_derivative(x, *pair, zero) for pair in ((a, b), (b, a)))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_turns(name: str) -> None:
    """What the gauge equation and alignment ask for, against the metric and the distance themselves."""
    manifold = METRICS[name](4, k=2, seed=1)
    values = torch.tensor([[0.3, 0.5, 0.5, 2.0], [0.05, 0.1, 0.2, 3.0]], dtype=torch.float64)
    point, other = torch.diag_embed(values), torch.diag_embed(values * (1 + values))
    vector = manifold.random_tangent_vector(point)
    for j, k in ((0, 1), (1, 2), (0, 3)):
        skew = torch.zeros(4, 4, dtype=torch.float64)
        skew[j, k], skew[k, j] = 1, -1
        turn = point @ skew - skew @ point
        assert manifold.orbit_metric(values, 0.0)[:, j, k] == pytest.approx(
            manifold.inner_products(point, turn, turn) / 2, rel=1e-12, abs=1e-13
        )
        paired = (manifold.momentum(values, vector) * skew).sum(dim=(-2, -1))
        assert paired == pytest.approx(manifold.inner_products(point, vector, turn), rel=1e-10, abs=1e-13)
        step = 3e-4
        turned = torch.linalg.matrix_exp(step * skew)
        ahead, here = (manifold.logarithm(point, x).squared for x in (turned.mT @ other @ turned, other))
        bend = 2 * (ahead - here) / step**2 / 4
        torch.testing.assert_close(
            manifold.bend(values, values * (1 + values))[:, j, k], bend, rtol=1e-3, atol=1e-5
        )


def test_log_euclidean_is_the_matrix_logarithm() -> None:
    a, b = cores(1e3)
    manifold = SpdLogEuclidean(4)
    logs = [scipy.linalg.logm(x.numpy()) for x in (a, b)]
    assert manifold.dist(a[None], b[None]) == pytest.approx(np.linalg.norm(logs[0] - logs[1]), rel=1e-10)
    v = manifold.random_tangent_vector(a[None])
    _, frechet = scipy.linalg.expm_frechet(logs[0], v[0].numpy())
    pulled = manifold.riemannian_to_euclidean_gradient(a[None], torch.from_numpy(frechet)[None])
    # ⟨D exp(S) v, .⟩ at exp S, pulled back once more, is v.
    _, again = scipy.linalg.expm_frechet(logs[0], pulled[0].numpy())
    np.testing.assert_allclose(again, v[0].numpy(), atol=1e-9)
    weights = torch.tensor([[0.3], [0.7]], dtype=torch.float64)
    mean = scipy.linalg.expm(0.3 * logs[0] + 0.7 * logs[1])
    np.testing.assert_allclose(
        manifold.closed_mean(torch.stack((a, b))[:, None], weights)[0], mean, rtol=1e-9
    )


@pytest.mark.parametrize("cond", [10.0, 1e6])
def test_bures_wasserstein_is_the_textbook_formula(cond: float) -> None:
    a, b = cores(cond)
    manifold = SpdBuresWasserstein(4)
    root = scipy.linalg.sqrtm(a.numpy())
    cross = scipy.linalg.sqrtm(root @ b.numpy() @ root)
    squared = float(torch.trace(a) + torch.trace(b)) - 2 * np.trace(cross)
    assert manifold.dist(a[None], b[None]) ** 2 == pytest.approx(squared, rel=1e-9)
    product = scipy.linalg.sqrtm((a @ b).numpy()).real
    tangent = product + product.T - 2 * a.numpy()
    np.testing.assert_allclose(manifold.log(a[None], b[None])[0], tangent, atol=1e-10)


@pytest.mark.parametrize(
    ("manifold", "step"),
    [(SpdBuresWasserstein(3), lambda x: -2.1 * x), (SpdEuclidean(3), lambda x: -1.1 * x)],
)
def test_geodesics_that_leave_the_set_are_no_points(
    manifold: PositiveDefinite, step: Callable[[Tensor], Tensor]
) -> None:
    """Along -B both metrics reach the singular matrices in finite time; beyond, nothing is feasible."""
    x = manifold.random_point()
    assert not bool(manifold.feasible(manifold.exp(x, step(x))))
    assert bool(manifold.feasible(manifold.exp(x, step(x) / 3)))


@pytest.mark.parametrize("name", METRICS)
def test_sizes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="r is 0"):
        METRICS[name](0)
