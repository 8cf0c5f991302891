"""The Fisher-Rao mean of diagonal Gaussians, against closed forms, geomstats, scipy and Fisher merging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.frechet.status import Status
from riemerge.methods import METHODS, compose
from riemerge.methods.data import gaussian
from riemerge.methods.data.gaussian import Gaussians, fisher_rao
from riemerge.methods.data.quadratic import fisher
from riemerge.methods.setting import Answer, Setting
from tests.helpers import import_geomstats, seeded
from tests.methods.rows import Alone
from tests.methods.spectra import normal


def solved(
    x: Tensor, information: Tensor, weights: Sequence[float], tol: float = 1e-11, budget: int = 100
) -> Answer:
    return fisher_rao(x, setting(x, information, weights, tol, budget))


def setting(
    x: Tensor, information: Tensor, weights: Sequence[float], tol: float = 1e-11, budget: int = 100
) -> Setting:
    return Setting(
        module="layer",
        weights=torch.tensor(weights, dtype=torch.float64),
        values={"floor": 0.0, "normalize_fisher": False, "tol": tol, "max_passes": budget},
        shape=tuple(x.shape[1:]),
        statistics=tuple({"fisher": one} for one in information),
    )


def random_case(
    shape: tuple[int, ...], models: int = 3, spread: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Means that lie some standard deviations apart, and informations over four orders of magnitude."""
    generator = seeded(seed)
    x = spread * torch.randn(models, *shape, generator=generator, dtype=torch.float64)
    information = 10.0 ** (4 * torch.rand(models, *shape, generator=generator, dtype=torch.float64) - 2)
    return x, information


def distance(theta: Tensor, s: Tensor, other: Tensor, other_s: Tensor) -> Tensor:
    """NUMERICS' closed form; accurate enough for costs, which are flat at the mean."""
    ratio = ((theta - other).square() / 2 + (s - other_s).square()) / (2 * s * other_s)
    return math.sqrt(2) * torch.acosh(1 + ratio)


@pytest.mark.parametrize("shape", [(3, 5), (6, 2), (1, 1), (4,)])
@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e4])
def test_it_converges_and_the_cost_is_least_there(shape: tuple[int, ...], spread: float) -> None:
    x, information = random_case(shape, spread=spread)
    weights = [0.5, 0.3, 0.2]
    answer = solved(x, information, weights, tol=1e-10)
    assert answer.ok
    assert answer.status == Status.CONVERGED
    assert answer.value.shape == shape
    assert answer.passes <= 20  # Newton's method; it is damped at the start where data are far apart
    s = information.rsqrt()

    def cost(theta: Tensor) -> Tensor:
        """Of the mean parameter alone: the least over the variances, by golden section in log s."""
        low, high = s.log().amin(0) - 25, s.log().amax(0) + 25
        golden = (math.sqrt(5) - 1) / 2

        def at(height: Tensor) -> Tensor:
            squares = distance(theta, height.exp(), x, s).square()
            return torch.tensordot(torch.tensor(weights, dtype=torch.float64), squares, dims=1)

        for _ in range(90):
            one, two = high - golden * (high - low), low + golden * (high - low)
            lower = at(one) < at(two)
            low, high = torch.where(lower, low, one), torch.where(lower, two, high)
        return at((low + high) / 2)

    least = cost(answer.value)
    for seed in range(5):
        direction = torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
        for size in (1e-2, 1.0):
            assert (cost(answer.value + size * s.amax(0) * direction) >= least * (1 - 1e-9)).all()


@pytest.mark.parametrize("share", [0.5, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_two_models_merge_on_the_geodesic_between_them(share: float, seed: int) -> None:
    """The point at that share of the way on the hyperboloid, an independent model of the plane."""
    x, information = random_case((4, 3), models=2, seed=seed)
    u, s = x / math.sqrt(2), information.rsqrt()
    # (u, s) ↦ ((1 + u² + s²)/2s, (1 - u² - s²)/2s, u/s), of Minkowski norm -1
    lift = torch.stack([(1 + u**2 + s**2) / (2 * s), (1 - u**2 - s**2) / (2 * s), u / s], dim=-1)
    a, b = lift
    angle = torch.acosh(
        (a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1] - a[..., 2] * b[..., 2]).clamp_min(1.0)
    )
    way = (
        (share * angle).sinh()[..., None] * a + ((1 - share) * angle).sinh()[..., None] * b
    ) / angle.sinh()[..., None]
    expected = math.sqrt(2) * way[..., 2] / (way[..., 0] + way[..., 1])
    found = solved(x, information, [share, 1 - share]).value
    # The hyperboloid's coordinates are as large as cosh d: about 1e3 here, squared.
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_is_the_frechet_mean_of_geomstats() -> None:
    """The cost in its distances is least at our mean, as scipy finds."""
    from scipy.optimize import minimize

    geomstats = import_geomstats("geomstats.information_geometry.normal")
    metric = geomstats.UnivariateNormalDistributions().metric
    x, information = random_case((5,), spread=3.0, seed=4)
    weights = [0.2, 0.5, 0.3]
    found = solved(x, information, weights).value
    for k in range(5):
        points = np.stack([x[:, k].numpy(), information[:, k].rsqrt().numpy()], axis=-1)

        def cost(z: np.ndarray, points: np.ndarray = points) -> float:
            base = np.array([z[0], math.exp(z[1])])
            return float(
                sum(w * metric.squared_dist(base, one) for w, one in zip(weights, points, strict=True))
            )

        start = np.array([float(np.mean(points[:, 0])), float(np.log(points[:, 1]).mean())])
        best = minimize(
            cost, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000}
        )
        # Nelder and Mead's method sees costs alone, so √eps of the scale.
        assert abs(best.x[0] - float(found[k])) < 1e-5 * max(1.0, float(x[:, k].abs().max()))


def test_copies_shifts_and_scales() -> None:
    x, information = random_case((3, 4))
    weights = [0.5, 0.3, 0.2]
    one = solved(x, information, weights).value
    copies = solved(x[:1].expand(3, -1, -1), information[:1].expand(3, -1, -1), weights)
    torch.testing.assert_close(copies.value, x[0], rtol=1e-15, atol=0)
    shifted = solved(x + 2.5, information, weights).value
    torch.testing.assert_close(shifted, one + 2.5, rtol=0, atol=1e-9)
    scaled = solved(100 * x, information / 100**2, weights).value
    torch.testing.assert_close(scaled, 100 * one, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        solved(x.flip(0), information.flip(0), weights[::-1]).value, one, rtol=1e-9, atol=1e-9
    )
    heavier = solved(x, information, [10 * w for w in weights]).value
    torch.testing.assert_close(heavier, one, rtol=1e-12, atol=1e-12)


def test_blocks_change_nothing_but_round_off(monkeypatch: pytest.MonkeyPatch) -> None:
    x, information = random_case((7, 9))
    whole = solved(x, information, [0.5, 0.3, 0.2]).value
    monkeypatch.setattr(gaussian, "_BLOCK", 5)
    torch.testing.assert_close(solved(x, information, [0.5, 0.3, 0.2]).value, whole, rtol=1e-12, atol=1e-12)


def test_fisher_merging_is_its_first_order_and_root_precision_its_second() -> None:
    """Models that come near as ε: the error of Fisher merging falls as ε², that with weights w√F as ε³."""
    generator = seeded(2)
    direction, tilt = (torch.randn(3, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    errors, finer = [], []
    for size in (1e-1, 1e-2, 1e-3):
        x, information = size * direction, (-2 * size * tilt).exp()
        at = setting(x, information, weights.tolist(), tol=1e-14)
        exact = fisher_rao(x, at).value
        errors.append(float((fisher(x, at) - exact).norm()))
        root = weights[:, None] * information.sqrt()
        finer.append(float(((root * x).sum(0) / root.sum(0) - exact).norm()))
    orders = [math.log10(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([2.0, 2.0], abs=0.1)
    orders = [math.log10(a / b) for a, b in pairwise(finer)]
    assert orders == pytest.approx([3.0, 3.0], abs=0.15)


def test_equal_variances_far_apart_are_not_averaged() -> None:
    """Fisher merging averages them at any distance; on the geodesic the share is not linear."""
    ones, weights = torch.ones(2, 1, dtype=torch.float64), [0.8, 0.2]
    gaps = []
    for far in (0.01, 1.0, 100.0):
        x = torch.tensor([[0.0], [far]], dtype=torch.float64)
        at = setting(x, ones, weights)
        assert float(fisher(x, at)) == pytest.approx(0.2 * far, rel=1e-12)
        gaps.append(abs(float(fisher_rao(x, at).value) - 0.2 * far) / far)
    assert gaps[0] < 1e-5
    assert gaps[1] > 1e-3
    assert gaps[2] > 0.1


def test_what_has_no_variance_is_refused_and_a_short_budget_is_told() -> None:
    x, information = random_case((2, 3), spread=1e4)
    empty = information.clone()
    empty[1, 0, 2] = 0.0
    with pytest.raises(NumericalError, match=r"1 of 18 entries .* expected a variance"):
        solved(x, empty, [0.5, 0.3, 0.2])
    answer = solved(x, information, [0.5, 0.3, 0.2], budget=1)
    assert (answer.ok, answer.status, answer.passes) == (False, Status.BUDGET, 1)
    stalled = solved(x, information, [0.5, 0.3, 0.2], tol=1e-300)
    assert (stalled.ok, stalled.status) == (False, Status.STALLED)


def test_the_engine_finds_the_mean_that_newton_s_method_finds() -> None:
    """On a few hundred entries, as one problem; with another loss too there is a mean."""
    x = normal(3, 12, 20)
    fishers = [{"fisher": 0.5 + normal(12, 20, seed=seed).abs()} for seed in (1, 2, 3)]
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    values = {"floor": 1e-6, "tol": 1e-11, "max_passes": 200}
    at = Setting("m", weights, values, (12, 20), statistics=tuple(fishers))
    alone = Alone(METHODS["fisher_rao"])
    newton = alone(x, at)
    found = alone.settle(Gaussians().mean(x, at), at)
    assert found.ok
    assert float((found.value - newton.value).norm()) <= 1e-9 * float(newton.value.norm())
    median = Alone(compose(METHODS["fisher_rao"], loss="absolute"))(x, at)
    assert median.ok
    assert float((median.value - newton.value).norm()) > 1e-3
