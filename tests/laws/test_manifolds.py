"""The public checks on every manifold, and every check on a manifold that breaks its law."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from riemerge.laws import LAWS
from riemerge.manifolds import FixedRank, GeodesicManifold, QuotientManifold
from riemerge.manifolds.checks import check_action, check_manifold, check_metric
from tests.fake_cuda import fake_cuda
from tests.helpers import random_core, seeded
from tests.laws.faults import DIFFERENCES, DIFFERENTIAL, EXACT, broken, pop_worst
from tests.manifolds.subjects import QUOTIENTS, TOTAL


@pytest.mark.parametrize("scale", [1e-2, 0.5, 1.5])
@pytest.mark.parametrize("name", TOTAL)
def test_manifold(name: str, scale: float) -> None:
    defects = check_manifold(TOTAL[name](), scale=scale)
    assert defects.keys() == LAWS["manifold"].keys()
    assert defects.pop("gauss") < DIFFERENCES
    assert pop_worst(defects, DIFFERENTIAL) < DIFFERENCES / scale
    assert max(defects.values()) < EXACT / min(scale, 1), defects


@pytest.mark.parametrize("cond", [1e3, 1e6])
@pytest.mark.parametrize("name", ["spd", "fixed rank", "updates"])
def test_laws_at_ill_conditioned_points(name: str, cond: float) -> None:
    manifold = (TOTAL | QUOTIENTS)[name]()
    total = manifold.total if isinstance(manifold, QuotientManifold) else manifold
    generator = seeded(8)
    core = torch.stack([random_core(total.r, cond, generator) for _ in range(2)])
    point = core
    if isinstance(total, FixedRank):
        u, _, v = total.split(total.random_point())
        point = total.join(u, core, v)
    defects = check_manifold(manifold, scale=0.4, point=point) | check_metric(manifold, point=point)
    # Whitening by a core of this condition amplifies round-off by as much; differences divide it by their
    # step.
    assert defects.pop("gauss") < max(DIFFERENCES, 1e-11 * cond)
    assert pop_worst(defects, DIFFERENTIAL) < max(DIFFERENCES, 1e-10 * cond)
    # Entrywise random gradients have nothing of the metric's scale: Riesz is relative to cond.
    assert defects.pop("riesz") < 1e-15 * cond
    # There and back: the core's inverse on both sides, then the core.
    assert defects.pop("riesz_inverse") < 1e-13 * cond
    if name == "updates":
        assert defects.pop("isometry") < 0.1
        assert pop_worst(defects, ("log_exp", "start")) < 1e-8
    else:
        # The start of three copies is off by the round-off of log B, over the scale.
        assert defects.pop("start") < 2e-14 * cond
    assert max(defects.values()) < 1e-14 * cond, defects
    if isinstance(manifold, QuotientManifold):
        broken(total, random_point=lambda: point)
        found = check_action(manifold, scale=0.4)
        assert found.pop("vertical") < DIFFERENCES
        assert found.pop("alignment") < 1e-8
        assert max(found.values()) < 1e-14 * cond, found


@pytest.mark.parametrize("name", QUOTIENTS)
def test_quotient(name: str) -> None:
    defects = check_manifold(QUOTIENTS[name](), scale=0.4)
    assert defects.pop("gauss") < DIFFERENCES
    assert pop_worst(defects, DIFFERENTIAL) < DIFFERENCES
    # The quotient's transport is isometric only up to what turns vertical on the way; alignment is iterative,
    # so a log is horizontal to its tolerance.
    assert defects.pop("isometry") < 0.1
    assert pop_worst(defects, ("log_exp", "start")) < 1e-8
    assert max(defects.values()) < 1e-9, defects


@pytest.mark.parametrize("name", TOTAL | QUOTIENTS)
def test_metric(name: str) -> None:
    assert max(check_metric((TOTAL | QUOTIENTS)[name]()).values()) < EXACT


@pytest.mark.parametrize("name", QUOTIENTS)
def test_action(name: str) -> None:
    defects = check_action(QUOTIENTS[name](), scale=0.4)
    assert defects.pop("vertical") < DIFFERENCES
    assert defects.pop("alignment") < 1e-8
    assert max(defects.values()) < 1e-10, defects


def results(manifold: GeodesicManifold, points: Tensor, entries: Tensor) -> dict[str, Tensor]:
    """What every verb makes of points (3, K, ...) and entries like a point's (K, ...), with K along one axis
    that it comes with."""
    x, y = points[0], points[1]
    e = manifold.projection(x, entries)
    v = 0.3 * manifold.projection(x, entries.flip(-2))
    log = manifold.logarithm(x, points)
    arrival, velocity = manifold.geodesic(x, v)
    weights = torch.tensor([0.5, 0.3, 0.2], device=x.device).double()[:, None].expand(3, x.shape[0])
    return {
        "projection": e,
        "raise": manifold.euclidean_to_riemannian_gradient(x, entries),
        "lower": manifold.riemannian_to_euclidean_gradient(x, v),
        "covariant_derivative": manifold.covariant_derivative(x, v, e, entries),
        "retraction": manifold.retraction(x, v),
        "transport": manifold.transport(x, y, v),
        "arrival": arrival,
        "velocity": velocity,
        "log": log.tangent.movedim(0, 1),
        "squared": log.squared.movedim(0, 1),
        "valid": log.valid.movedim(0, 1),
        "inner_products": manifold.inner_products(x, v, e),
        "feasible": manifold.feasible(x),
        "extrinsic_mean": manifold.extrinsic_mean(points, weights),
    }


def cluster(manifold: GeodesicManifold) -> tuple[Tensor, Tensor]:
    """Three points (3, K, ...) within reach of each other, and entries like one of them."""
    x = manifold.random_point()
    points = [manifold.exp(x, 0.4 * manifold.random_tangent_vector(x)) for _ in range(2)]
    return torch.stack([x, *points]), manifold.random_ambient(x)


# Whole solves on the quotient by Orthogonal run on the fake device elsewhere; here they would take 10 s.
@pytest.mark.parametrize("name", [name for name in TOTAL | QUOTIENTS if not name.startswith("updates")])
def test_modules_devices_and_precisions_agree(name: str) -> None:
    make: Callable[[], GeodesicManifold] = (TOTAL | QUOTIENTS)[name]
    manifold = make()
    points, entries = cluster(manifold)
    both = results(manifold, points, entries)
    alone = [results(manifold.with_modules(1), points[:, i : i + 1], entries[i : i + 1]) for i in range(2)]
    single = results(manifold, points.float(), entries.float())
    with fake_cuda():
        device = results(manifold, points.to("cuda"), entries.to("cuda"))
    # Logs and averages of orbits are aligned by iteration, and float32 points are off the manifold by eps.
    loose = 1e-8 if isinstance(manifold, QuotientManifold) else 1e-12
    for verb, value in both.items():
        torch.testing.assert_close(torch.cat([x[verb] for x in alone]), value, rtol=loose, atol=loose)
        torch.testing.assert_close(device[verb].cpu(), value, rtol=loose, atol=loose)
        torch.testing.assert_close(single[verb].to(value.dtype), value, rtol=1e-4, atol=1e-4)
