"""The mean of balanced factors: closed forms, costs, ranks."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from riemerge.frechet.status import Status
from riemerge.methods.geometries.geometry import Steps
from riemerge.methods.polar.balanced import place_factors
from riemerge.methods.setting import Answer
from tests.helpers import random_orthonormal, seeded
from tests.methods.polar.polar_cases import (
    CASES,
    WEIGHTS,
    average,
    balanced,
    orthogonal_updates,
    setting,
    value,
)
from tests.methods.spectra import assert_near, normal


def test_balanced_orthogonal_updates_have_each_side_averaged() -> None:
    x = orthogonal_updates()
    found = value(balanced(x, setting(WEIGHTS, rank="sum")))
    assert_near(found, average(x, [weight**2 for weight in WEIGHTS]))


def test_balanced_updates_that_the_iterate_does_not_meet_add_nothing() -> None:
    left, right = random_orthonormal(7, 2, seeded(1)), random_orthonormal(6, 2, seeded(2))
    x = torch.stack([3.0 * torch.outer(left[:, 0], right[:, 0]), torch.outer(left[:, 1], right[:, 1])])
    assert_near(value(balanced(x, setting([0.6, 0.4], rank=1))), 0.36 * x[0])


@pytest.mark.oracle
def test_balanced_two_updates_are_on_the_geodesic_of_bures_and_wasserstein() -> None:
    x, share = CASES["full"][:2], 0.3
    lifted = []
    for one in x.numpy():
        u, s, vh = np.linalg.svd(one)
        lifted.append(np.concatenate([u, vh.T]) * s**0.5)
    rotation, _ = scipy.linalg.polar(lifted[1].T @ lifted[0])
    point = (1 - share) * lifted[0] + share * lifted[1] @ rotation
    expected = point[:5] @ point[5:].T
    found = value(balanced(x, setting([1 - share, share], cost_tol=0.0)))
    assert_near(found, torch.from_numpy(expected), 1e-8)


@pytest.mark.oracle
@pytest.mark.parametrize("rank", [None, 4])
def test_balanced_nothing_near_has_a_lower_cost(rank: int | None) -> None:
    x, weights = CASES["close"], torch.tensor(WEIGHTS, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    roots = s[:, None, :2].sqrt()
    factors = torch.cat([u[..., :2] * roots, vh.mT[..., :2] * roots], dim=1)
    size = rank or 2
    start = normal(20, size)
    balance = setting(WEIGHTS, cost_tol=0.0, tol=1e-9, max_passes=5000)
    found = balanced.settle(_steps(factors, start), balance)

    def cost(point: np.ndarray) -> float:
        inner = torch.linalg.svdvals(factors.mT @ torch.from_numpy(point)).sum(dim=1)
        sizes = (weights * factors.square().sum(dim=(1, 2))).sum()
        return float((sizes + float(np.sum(point**2))) / 2 - (weights * inner).sum())

    turned = torch.stack([scipy_polar(one.mT @ found.value) for one in factors])
    gradient = found.value - torch.einsum("t,tnr,trc->nc", weights, factors, turned)
    # F is flat to round-off where its gradient is below the root of eps.
    assert float(gradient.norm()) <= 1e-7 * float(found.value.norm())
    best, here = cost(found.value.numpy()), found.value.numpy()
    for place in range(20):
        assert cost(here + 1e-2 * normal(20, size, seed=place).numpy()) >= best - 1e-12


def _steps(factors: Tensor, start: Tensor) -> Steps:
    solved = yield place_factors(factors, start)
    return solved._replace(value=solved.value[:, : start.shape[1]])


def scipy_polar(matrix: Tensor) -> Tensor:
    return torch.from_numpy(scipy.linalg.polar(matrix.numpy())[0])


def test_balanced_is_not_moved_by_a_longer_wait_where_it_is_determined() -> None:
    x = CASES["close"]
    rough, fine = (value(balanced(x, setting(WEIGHTS, cost_tol=tol))) for tol in (1e-6, 1e-14))
    assert_near(rough, fine, 1e-3)
    stopped = balanced(x, setting(WEIGHTS, cost_tol=0.0, tol=1e-15, max_passes=1))
    assert isinstance(stopped, Answer)
    assert (stopped.ok, stopped.status) == (False, Status.BUDGET)


def test_balanced_has_the_rank_that_is_asked_for() -> None:
    x = CASES["independent"]
    for rank, expected in ((None, 2), (1, 2), (4, 4), ("sum", 6)):  # what is less is cut later
        found = balanced(x, setting(WEIGHTS, rank=rank, max_passes=2)).value
        assert int(torch.linalg.matrix_rank(found, rtol=1e-9)) == expected


def test_balanced_starts_at_the_average_and_ends_at_the_rank_of_the_updates_whatever_the_rank() -> None:
    x = CASES["independent"]
    start = balanced(x, setting(WEIGHTS, rank="sum", max_passes=1, cost_tol=0.0))
    assert isinstance(start, Answer)
    assert_near(start.value, average(x, WEIGHTS))
    end = value(balanced(x, setting(WEIGHTS, rank="sum", cost_tol=1e-12, max_passes=10000)))
    assert int(torch.linalg.matrix_rank(end, rtol=1e-3)) == 2
    assert_near(end, value(balanced(x, setting(WEIGHTS, cost_tol=1e-14))), 1e-4)
