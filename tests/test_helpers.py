"""The data of the tests has the structure that its names promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers import FAMILIES, adapter_family, random_gauge, random_update, seeded

M, N, R = 40, 30, 4


def cosines(frame: Tensor, other: Tensor) -> Tensor:
    """Cosines of the principal angles between the spans of two (., r) matrices."""
    (q, _), (p, _) = torch.linalg.qr(frame), torch.linalg.qr(other)
    return torch.linalg.svdvals(q.mT @ p)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_follows_from_its_seed_and_has_the_asked_shapes_and_condition(name: str) -> None:
    family = adapter_family(name, 3, M, N, R, seed=1, cond=1e4)
    for (left, right), (left_again, right_again) in zip(
        family, adapter_family(name, 3, M, N, R, seed=1, cond=1e4), strict=True
    ):
        assert left.shape == (M, R)
        assert right.shape == (R, N)
        assert torch.equal(left, left_again)
        assert torch.equal(right, right_again)
        values = torch.linalg.svdvals(left @ right)[:R]
        # noise of the core in `close` is multiplicative, exp(E) with |E| about 0.1
        assert 0.5e4 < values[0] / values[-1] < 2e4
    assert not torch.allclose(family[0][0], adapter_family(name, 1, M, N, R, seed=2)[0][0])


# Random subspaces of these widths have cosines of about sqrt(r/n) = 0.3 to 0.4, at most about 0.8.
@pytest.mark.parametrize(
    ("name", "common_columns", "common_rows"),
    [
        ("close", R, R),
        ("mix", R // 2, R // 2),
        ("shared_subspace", R, R),
        ("lora_like", 0, R),
        ("independent", 0, 0),
    ],
)
def test_a_family_shares_the_directions_that_it_promises(
    name: str, common_columns: int, common_rows: int
) -> None:
    (left, right), (other_left, other_right) = adapter_family(name, 2, M, N, R, seed=3, noise=0.1)
    assert int((cosines(left, other_left) > 0.95).sum()) == common_columns
    assert int((cosines(right.mT, other_right.mT) > 0.95).sum()) == common_rows


def test_only_close_adapters_are_close() -> None:
    for name in FAMILIES:
        (left, right), (other_left, other_right) = adapter_family(name, 2, M, N, R, seed=4, noise=0.01)
        difference = torch.linalg.norm(left @ right - other_left @ other_right) / torch.linalg.norm(
            left @ right
        )
        assert (difference < 0.1) == (name == "close")


def test_an_update_has_norm_one_and_the_asked_condition() -> None:
    left, right = random_update(M, N, R, 1e6, seeded(0))
    values = torch.linalg.svdvals(left @ right)[:R]
    # the smallest singular value of a product of norm 1 is known to eps = 2e-16, here 1e-6 of it
    torch.testing.assert_close(values[[0, -1]], torch.tensor([1.0, 1e-6]).double(), rtol=1e-8, atol=0)
    assert torch.linalg.matrix_rank(left @ right) == R


def test_gauges_have_the_asked_condition_and_both_determinants() -> None:
    gauges = [random_gauge(R, 1e3, seeded(seed)) for seed in range(8)]
    assert {float(torch.linalg.det(gauge).sign()) for gauge in gauges} == {-1.0, 1.0}
    for gauge in gauges:
        assert abs(float(torch.linalg.cond(gauge)) / 1e3 - 1) < 1e-9  # 1e3 eps, with room
    for sign in (-1, 1):
        assert all(
            torch.linalg.det(random_gauge(R, 10.0, seeded(seed), sign)) * sign > 0 for seed in range(8)
        )
