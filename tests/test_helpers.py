"""The gauges of the tests are what their names promise."""

from __future__ import annotations

import torch

from tests.helpers import random_gauge, seeded

R = 4


def test_gauges_have_the_asked_condition_and_both_determinants() -> None:
    gauges = [random_gauge(R, 1e3, seeded(seed)) for seed in range(8)]
    assert {float(torch.linalg.det(gauge).sign()) for gauge in gauges} == {-1.0, 1.0}
    for gauge in gauges:
        assert abs(float(torch.linalg.cond(gauge)) / 1e3 - 1) < 1e-9  # 1e3 eps, with room
    for sign in (-1, 1):
        assert all(
            torch.linalg.det(random_gauge(R, 10.0, seeded(seed), sign)) * sign > 0 for seed in range(8)
        )
