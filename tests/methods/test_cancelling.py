"""Whether inputs cancel to the rounding of their stored factors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from riemerge.methods import cancelling
from riemerge.methods.cancelling import Remainder
from riemerge.updates.low_rank import LowRankUpdate
from tests.helpers import random_gauge, random_update, seeded


def remainder(
    updates: Sequence[LowRankUpdate], weights: Sequence[float], stored: Sequence[torch.dtype], **asked: bool
) -> Remainder:
    norms = [update.norm() for update in updates]
    return cancelling.remainder(updates, norms, weights, stored, **asked)


def rounded(update: LowRankUpdate, dtype: torch.dtype) -> LowRankUpdate:
    return LowRankUpdate(update.B.to(dtype).double(), update.A.to(dtype).double(), update.scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("condition", [1.0, 10.0, 1000.0])
def test_the_rounding_of_factors_is_what_it_is_said_to_be(dtype: torch.dtype, condition: float) -> None:
    generator = seeded(int(condition))
    b, a = random_update(64, 48, 8, 10.0, generator)
    gauge = random_gauge(8, condition, generator)
    exact = LowRankUpdate(b @ gauge, torch.linalg.inv(gauge) @ a, 1.7)
    found = float((rounded(exact, dtype).dense() - exact.dense()).norm())
    # The bound is for numbers just above a power of two: over all numbers its square is about halved.
    assert 0.5 * exact.rounding(dtype) <= found <= exact.rounding(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("count", [2, 5])
def test_what_cancels_is_told_from_what_is_unrelated(dtype: torch.dtype, count: int) -> None:
    generator = seeded(count)
    apart = [rounded(LowRankUpdate(*random_update(40, 30, 4, 10.0, generator)), dtype) for _ in range(count)]
    stored, weights = [dtype] * (count + 1), [1.0] * (count + 1)
    left = torch.cat([-one.B for one in apart], dim=1)
    turn = random_gauge(4 * count, 3.0, generator)
    last = LowRankUpdate(left @ turn, torch.linalg.inv(turn) @ torch.cat([one.A for one in apart]))
    assert remainder([*apart, rounded(last, dtype)], weights, stored).cancels
    other = LowRankUpdate(*random_update(40, 30, 4, 10.0, generator))
    assert not remainder([*apart, rounded(other, dtype)], weights, stored).cancels


def test_directions_count_alike_between_two_and_by_weight_among_more() -> None:
    b, a = random_update(20, 15, 3, 10.0, seeded(0))
    one, opposite = LowRankUpdate(b, a), LowRankUpdate(b, a, -5.0)
    two, three = [torch.float64] * 2, [torch.float64] * 3
    assert not remainder([one, opposite], [0.9, 0.1], two).cancels
    assert remainder([one, opposite], [0.9, 0.1], two, directions=True).cancels
    assert not remainder([one, opposite], [1.0, 0.0], two, directions=True).cancels
    more = [one, one, opposite]
    assert not remainder(more, [0.3, 0.3, 0.4], three, directions=True).cancels
    assert remainder(more, [0.25, 0.25, 0.5], three, directions=True).cancels


def test_nothing_cancels_in_zeros() -> None:
    zero = LowRankUpdate(torch.zeros(4, 2).double(), torch.ones(2, 3).double())
    found = remainder([zero, zero], [0.5, 0.5], [torch.bfloat16] * 2, directions=True)
    assert (found.norm, found.size, found.cancels) == (0.0, 0.0, False)
    assert math.isfinite(found.noise)
