"""The geometric median and Huber's mean: optimality, limits, outliers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from riemerge import merge
from riemerge.frechet.status import Status
from riemerge.methods.setting import Answer
from riemerge.problems import adapter_family
from tests.fake_cuda import fake_cuda, forbid_numpy
from tests.folders import write_family
from tests.helpers import random_orthonormal, seeded
from tests.methods.rows import answer_of
from tests.methods.spectra import assert_near, normal

BOTH = pytest.mark.parametrize("mean", ["median", "huber"])
CASES = {
    "scattered": (normal(5, 7), [0.1, 0.2, 0.25, 0.15, 0.3]),
    "three": (normal(3, 4), [0.3, 0.4, 0.3]),
    "flat": (normal(6, 2), [1 / 6] * 6),
    "even": (normal(4, 5, seed=6), [0.25] * 4),
}


def answer(mean: str, x: Tensor, weights: list[float], **values: Any) -> Answer:
    return answer_of(mean, x @ x.mT, weights, **values)


def merged(mean: str, x: Tensor, weights: list[float], **values: Any) -> Tensor:
    found = answer(mean, x, weights, **values)
    assert found.ok
    assert found.status == Status.CONVERGED
    assert float(found.value.sum()) == pytest.approx(1.0)
    return found.value @ x


def cost(point: Tensor, x: Tensor, weights: list[float], delta: float | None = None) -> float:
    apart = (x - point).norm(dim=1)
    if delta is not None:
        apart = torch.where(apart <= delta, apart.square() / 2, delta * apart - delta**2 / 2)
    return float(torch.tensor(weights, dtype=torch.float64) @ apart)


def width(x: Tensor, weights: list[float]) -> float:
    """δ: the median of the distances, of which each counts a hundred times its weight."""
    apart = (x - merged("median", x, weights)).norm(dim=1)
    return float(np.median(np.repeat(apart.numpy(), [round(100 * weight) for weight in weights])))


@BOTH
def test_copies_give_themselves(mean: str) -> None:
    x = normal(1, 6).expand(4, 6)
    assert_near(merged(mean, x, [0.1, 0.2, 0.3, 0.4]), x[0])
    assert torch.equal(merged(mean, torch.zeros_like(x), [0.25] * 4), torch.zeros_like(x[0]))


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_two_copies_count_as_one_of_the_sum_of_their_weights(mean: str, name: str) -> None:
    x, weights = CASES[name]
    split = [*weights[:-1], weights[-1] / 3, 2 * weights[-1] / 3]
    assert_near(merged(mean, torch.cat([x, x[-1:]]), split), merged(mean, x, weights), 1e-8)


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_it_moves_with_similarities(mean: str, name: str) -> None:
    x, weights = CASES[name]
    turn, shift = random_orthonormal(x.shape[1], x.shape[1], seeded(2)), normal(x.shape[1], seed=4)
    found = merged(mean, -3.0 * x @ turn + shift, weights)
    assert_near(found, -3.0 * merged(mean, x, weights) @ turn + shift, 1e-8)


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_no_point_has_a_lower_cost_than_the_median(name: str) -> None:
    x, weights = CASES[name]
    found = merged("median", x, weights)
    best = scipy.optimize.minimize(
        lambda point: cost(torch.from_numpy(point), x, weights), np.zeros(x.shape[1]), tol=1e-14
    )
    assert cost(found, x, weights) <= best.fun * (1 + 1e-12)
    assert_near(found, torch.from_numpy(best.x), 1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["scattered", "even"])
@pytest.mark.parametrize("delta", [0.3, 0.9, 1.0])
def test_no_point_has_a_lower_cost_than_huber_s(delta: float, name: str) -> None:
    x, weights = CASES[name]
    found, at = merged("huber", x, weights, delta=delta), delta * width(x, weights)
    best = scipy.optimize.minimize(
        lambda point: cost(torch.from_numpy(point), x, weights, at), np.zeros(x.shape[1]), tol=1e-14
    )
    assert cost(found, x, weights, at) <= best.fun * (1 + 1e-12)
    assert_near(found, torch.from_numpy(best.x), 1e-4)


def test_huber_is_between_the_median_and_the_average() -> None:
    x, weights = CASES["scattered"]
    average = torch.tensor(weights, dtype=torch.float64) @ x
    assert_near(merged("huber", x, weights, delta=1e6), average)
    assert_near(merged("huber", x, weights, delta=1e-6), merged("median", x, weights), 1e-8)


def test_half_of_the_weight_decides() -> None:
    x = normal(3, 5)
    assert_near(merged("median", x, [0.6, 0.1, 0.3]), x[0])
    assert_near(merged("median", x[[0, 0, 1, 2]], [0.3, 0.3, 0.1, 0.3]), x[0])
    assert_near(merged("median", x[:2], [0.5, 0.5]), x[:2].mean(dim=0))
    line = torch.tensor([0.0, 1.0, 4.0, 9.0])[:, None].double() * x[:1] + x[1:2]
    assert_near(merged("median", line, [0.25] * 4), 2.5 * x[0] + x[1])
    assert_near(merged("median", line[:3], [1 / 3] * 3), x[0] + x[1])


def test_a_start_at_an_update_that_is_not_the_median_is_left() -> None:
    # The average is the first update, whose weight is less than the pull of the others.
    corners = torch.tensor([[0.0, 0.0], [-3.0, 0.0], [1.0, 1e-3], [1.0, -1e-3], [1.0, 0.0]]).double()
    weights = [0.04, 0.24, 0.24, 0.24, 0.24]
    found = merged("median", corners, weights)
    assert float(found[0]) >= 0.9
    assert cost(found, corners, weights) <= cost(corners[-1], corners, weights) * (1 + 1e-12)


def test_outliers_are_borne() -> None:
    close = normal(1, 8) + 0.1 * normal(4, 8, seed=3)
    apart = []
    for size in (10.0, 1e4):
        x = torch.cat([close, size * normal(1, 8, seed=9)])
        apart += [
            float((merged(mean, x, [0.2] * 5) - close.mean(dim=0)).norm()) for mean in ("median", "huber")
        ]
    # The average would be off by a fifth of the outlier: 7 and 7000.
    assert max(apart) <= 0.3
    assert apart[2:] == pytest.approx(apart[:2], abs=0.02)


@BOTH
def test_a_budget_that_ends_is_said(mean: str) -> None:
    x, weights = CASES["scattered"]
    found = answer(mean, x, weights, max_passes=1)
    assert not found.ok
    assert found.status == Status.BUDGET
    assert "Raise max_passes" in found.advice


@BOTH
def test_the_device_changes_no_bit_and_numpy_is_not_asked(mean: str) -> None:
    x, weights = CASES["scattered"]
    expected = answer(mean, x, weights).value
    with forbid_numpy():
        assert torch.equal(answer(mean, x, weights).value, expected)
    with fake_cuda():
        found = answer_of(mean, (x @ x.mT).to("cuda"), weights)
        assert torch.equal(found.value.cpu(), expected)


def test_a_sum_stays_a_sum_under_another_loss(tmp_path: Path) -> None:
    folders = write_family(tmp_path, [{"m": update} for update in adapter_family("close", 3, 9, 8, 2, 1)])
    plain, huber = (
        merge(folders, [1.0, 2.0, 1.0], method="task_arithmetic", loss=loss).updates["m"].dense()
        for loss in (None, "huber:delta=1e9")
    )
    torch.testing.assert_close(huber, plain, rtol=1e-7, atol=1e-9)
