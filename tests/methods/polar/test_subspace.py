"""Mean subspaces: the chordal mean, the geodesic mean, and what has neither."""

from __future__ import annotations

import numpy as np
import pymanopt
import pytest
import torch

from riemerge.errors import NumericalError
from riemerge.methods.polar.subspace import chordal
from tests.helpers import random_orthonormal, seeded
from tests.methods.polar.polar_cases import (
    CASES,
    WEIGHTS,
    average,
    orthogonal_updates,
    positive,
    setting,
    subspace,
    value,
)
from tests.methods.spectra import assert_near, low_rank, normal


def test_the_chordal_mean_leads_the_mean_projection() -> None:
    frames = [random_orthonormal(9, 3, seeded(i)) for i in range(3)]
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    found = chordal(torch.cat([w.sqrt() * one for w, one in zip(weights, frames, strict=True)], dim=1), 3)
    mean = sum(w * one @ one.mT for w, one in zip(WEIGHTS, frames, strict=True))
    assert float((found.mT @ mean @ found).trace()) == pytest.approx(
        float(torch.linalg.eigvalsh(mean)[-3:].sum())
    )


@pytest.mark.oracle
def test_the_geodesic_mean_balances_the_logarithms_of_pymanopt() -> None:
    base = normal(9, 3)
    frames = torch.linalg.qr(base + 0.4 * normal(3, 9, 3, seed=2)).Q
    x = frames @ positive(3, 3) @ normal(3, 3, 8)
    found = torch.linalg.svd(value(subspace(x, setting(WEIGHTS, frames="grassmann")))).U[:, :3]
    manifold = pymanopt.manifolds.Grassmann(9, 3)
    logs = [manifold.log(found.numpy(), one.numpy()) for one in frames]
    assert np.linalg.norm(sum(w * log for w, log in zip(WEIGHTS, logs, strict=True))) <= 2e-6
    u = torch.linalg.svd(value(subspace(x, setting(WEIGHTS, frames="chordal")))).U[:, :3]
    assert float((u @ u.mT - found @ found.mT).norm()) >= 1e-3


def test_subspace_with_averaged_cores_is_the_average_seen_in_the_mean_subspaces() -> None:
    x = CASES["close"]
    found = value(subspace(x, setting(WEIGHTS, core_mean="average")))
    u, _, vh = torch.linalg.svd(found)
    onto = u[:, :2] @ u[:, :2].mT @ average(x, WEIGHTS) @ vh[:2].mT @ vh[:2]
    assert_near(found, onto)


def test_subspaces_that_have_no_mean_are_refused() -> None:
    with pytest.raises(NumericalError, match="singular values 2 and 3 are equal"):
        subspace(orthogonal_updates(), setting([1 / 3] * 3))
    mixed = torch.cat([low_rank(1, 6, 7, 2), low_rank(1, 6, 7, 3)])
    with pytest.raises(NumericalError, match="mean of their own dimension only"):
        subspace(mixed, setting([0.5, 0.5], frames="grassmann"))
