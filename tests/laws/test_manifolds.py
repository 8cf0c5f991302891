"""The public checks on every manifold, and every check on a manifold that breaks its law."""

from __future__ import annotations

import pytest
import torch

from riemerge.manifolds import FixedRank, QuotientManifold
from riemerge.manifolds.checks import check_action, check_manifold, check_metric
from riemerge.laws import LAWS
from tests.helpers import random_core, seeded
from tests.laws.faults import DIFFERENCES, DIFFERENTIAL, EXACT, broken, pop_worst
from tests.manifolds.subjects import QUOTIENTS, TOTAL


@pytest.mark.parametrize("scale", [1e-2, 0.5, 1.5])
@pytest.mark.parametrize("name", TOTAL)
def test_manifold(name: str, scale: float) -> None:
    defects = check_manifold(TOTAL[name](), scale=scale)
    assert defects.keys() == LAWS["manifold"].keys()
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
    defects = check_manifold(manifold, scale=0.4, point=point, pairs=1) | check_metric(manifold, point=point)
    # Whitening by a core of this condition amplifies round-off by as much; differences divide it by their
    # step.
    assert pop_worst(defects, DIFFERENTIAL) < max(DIFFERENCES, 1e-10 * cond)
    # Entrywise random gradients have nothing of the metric's scale: Riesz is relative to cond.
    assert defects.pop("riesz") < 1e-15 * cond
    # There and back: the core's inverse on both sides, then the core.
    assert defects.pop("riesz_inverse") < 1e-13 * cond
    if name == "updates":
        assert defects.pop("isometry") < 0.1
        assert pop_worst(defects, ("log_exp", "start")) < 1e-8
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
    assert pop_worst(defects, DIFFERENTIAL) < DIFFERENCES
    # The quotient's transport is isometric only up to what turns vertical on the way; alignment is iterative,
    # so a log is horizontal to its tolerance.
    assert defects.pop("isometry") < 0.1
    assert defects.pop("log_exp") < 1e-8
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
