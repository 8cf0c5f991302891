"""A geometry of one's own: what is derived, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from riemerge.frechet.status import Status
from riemerge.geometries import GEOMETRIES, Geometry
from riemerge.manifolds import Euclidean, TorchManifold
from riemerge.methods import METHODS, Method, compose
from riemerge.methods.geometries.geometry import spread
from riemerge.methods.setting import Setting
from riemerge.methods.stack import Evidence
from tests.methods.rows import Alone
from tests.methods.spectra import assert_near, normal

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


@dataclass(frozen=True)
class Entries(Geometry):
    """The least of a geometry: a manifold for updates in their joint span."""

    def manifold(self, rows: int, columns: int) -> TorchManifold:
        return Euclidean(rows, columns)


@dataclass(frozen=True)
class Nothing(Geometry):
    """A geometry that states nothing."""


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> Method:
    monkeypatch.setattr(GEOMETRIES, "_entries", {**GEOMETRIES._entries, "mine": Entries, "nothing": Nothing})
    return compose(METHODS["average"], geometry="mine")


def test_a_manifold_is_enough(mine: Method) -> None:
    x = normal(3, 5, 4)
    found = Alone(mine)(x, Setting("m", WEIGHTS, {"tol": 1e-12}, (5, 4)))
    assert found.status is Status.CONVERGED
    assert_near(found.value, torch.einsum("t,tpq->pq", WEIGHTS, x), 1e-10)


def test_what_is_missing_is_said_by_name(mine: Method) -> None:
    row = compose(mine, geometry="nothing")
    with pytest.raises(NotImplementedError, match="Nothing has no `manifold`"):
        Alone(row)(normal(3, 5, 4), Setting("m", WEIGHTS, {}, (5, 4)))


def test_distances_are_told_of_those_that_were_placed() -> None:
    known = Evidence(Status.CONVERGED, distances=(1.0, 2.0))
    assert spread(known, [0, 2], 4).distances == (1.0, None, 2.0, None)
    assert spread(Evidence(Status.EXACT), [0], 2).distances is None
