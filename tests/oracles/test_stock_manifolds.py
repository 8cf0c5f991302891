"""Means and medians on Pymanopt's manifolds against those of geomstats, where it has the same geometry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from pymanopt import manifolds
from pymanopt.manifolds.manifold import Manifold

from riemerge.frechet import Problem, frechet_mean
from tests.frechet.guests import COMPLETE, drawn
from tests.helpers import import_geomstats

WEIGHTS = np.array([0.4, 0.3, 0.2, 0.1])


def _same(point: Any) -> Any:
    return point


def _space(module: str, name: str, metric: str | None = None, **options: Any) -> Any:
    """A space of geomstats, with a metric of its own."""
    found = import_geomstats(f"geomstats.geometry.{module}")
    space = getattr(found, name)(**options, equip=metric is None)
    if metric is not None:
        space.equip_with_metric(getattr(found, metric))
    return space


class Twin(NamedTuple):
    """A geometry of both packages: ours, a function that makes theirs, and points of ours as theirs."""

    manifold: Manifold
    space: Callable[[], Any]
    convert: Callable[[Any], Any] = _same


TWINS = {
    "Sphere": Twin(manifolds.Sphere(4), lambda: _space("hypersphere", "Hypersphere", dim=3)),
    "SymmetricPositiveDefinite": Twin(
        manifolds.SymmetricPositiveDefinite(3),
        lambda: _space("spd_matrices", "SPDMatrices", "SPDAffineMetric", n=3),
    ),
    "HermitianPositiveDefinite": Twin(
        manifolds.HermitianPositiveDefinite(3),
        lambda: _space("hpd_matrices", "HPDMatrices", "HPDAffineMetric", n=3),
    ),
    "Grassmann": Twin(
        manifolds.Grassmann(5, 2),
        lambda: _space("grassmannian", "Grassmannian", n=5, p=2),
        lambda frame: frame @ frame.T,
    ),
    "SpecialOrthogonalGroup": Twin(
        manifolds.SpecialOrthogonalGroup(3),
        lambda: _space("special_orthogonal", "SpecialOrthogonal", n=3),
    ),
    "PoincareBall": Twin(manifolds.PoincareBall(3), lambda: _space("poincare_ball", "PoincareBall", dim=3)),
}


# Of geomstats' medians these two take seconds, ours hundredths.
SLOW = {("Grassmann", "absolute"), ("SpecialOrthogonalGroup", "absolute")}
CASES = [
    pytest.param(name, loss, marks=[pytest.mark.slow] * ((name, loss) in SLOW))
    for name in TWINS
    for loss in ("square", "absolute")
]


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "loss"), CASES)
def test_means_and_medians_are_those_of_geomstats(name: str, loss: str) -> None:
    manifold, space, convert = TWINS[name]
    center, *far = drawn(manifold)
    points = [center, *(manifold.exp(center, 0.4 * manifold.log(center, y)) for y in far)]
    if loss == "square":
        learning = import_geomstats("geomstats.learning.frechet_mean")
        theirs = learning.FrechetMean(space()).set(max_iter=2000, epsilon=1e-13)
    else:
        learning = import_geomstats("geomstats.learning.geometric_median")
        theirs = learning.GeometricMedian(space(), max_iter=2000, epsilon=1e-9)
    expected = theirs.fit(np.stack([convert(x) for x in points]), weights=WEIGHTS).estimate_
    found = frechet_mean(Problem(manifold, points, WEIGHTS, loss=loss))
    assert found.ok
    np.testing.assert_allclose(convert(found.point), expected, atol=1e-6)


def test_twins_are_geometries_that_every_solver_is_tested_on() -> None:
    """Others of Pymanopt's have none in geomstats; their certificates are in tests/frechet/test_guest.py."""
    assert {*TWINS} < {*COMPLETE}
