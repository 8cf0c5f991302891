"""Laws of all three polar rows: symmetries, copies, scales, devices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riemerge.methods.setting import Answer, Mean
from tests.fake_cuda import CUDA, fake_cuda, forbid_numpy
from tests.helpers import random_orthonormal, seeded
from tests.methods.polar.polar_cases import (
    CASES,
    EACH_CASE,
    POLAR,
    WEIGHTS,
    balanced,
    setting,
    shared_private,
    subspace,
    value,
)
from tests.methods.spectra import assert_near, low_rank

MEANS: dict[str, Mean] = {"shared_private": shared_private, "balanced": balanced, "subspace": subspace}
EVERY = pytest.mark.parametrize("name", MEANS)


@EVERY
@POLAR
@EACH_CASE
def test_isometries_of_both_spaces_commute(name: str, kind: str, x: Tensor) -> None:
    _, p, q = x.shape
    at = setting(WEIGHTS, core_mean=kind)
    found = MEANS[name](x, at)
    left, right = random_orthonormal(p + 3, p, seeded(1)), random_orthonormal(q + 4, q, seeded(2))
    moved = MEANS[name](left @ x @ right.mT, at)
    assert isinstance(found, Answer)
    assert isinstance(moved, Answer)
    assert_near(moved.value, left @ found.value @ right.mT, 1e-8)


@EVERY
@POLAR
def test_copies_give_themselves(name: str, kind: str) -> None:
    x = low_rank(1, 9, 7, 3).expand(4, 9, 7)
    assert_near(value(MEANS[name](x, setting([0.1, 0.2, 0.3, 0.4], core_mean=kind))), x[0], 1e-9)


@EVERY
@EACH_CASE
def test_scales_and_signs_commute_and_so_does_transposition(name: str, x: Tensor) -> None:
    found = value(MEANS[name](x, setting(WEIGHTS)))
    for factor in (-1.0, 1e-9, 1e6):
        assert_near(value(MEANS[name](factor * x, setting(WEIGHTS))), factor * found, 1e-8)
    assert_near(value(MEANS[name](x.mT, setting(WEIGHTS, (300, 400)))), found.mT, 1e-8)


@EVERY
def test_two_copies_count_as_one_of_the_sum_of_their_weights(name: str) -> None:
    x = CASES["close"][:2]
    split = value(MEANS[name](x[[0, 1, 1]], setting([0.5, 0.2, 0.3], (10**9, 10**9))))
    assert_near(split, value(MEANS[name](x, setting([0.5, 0.5], (10**9, 10**9)))), 1e-4)


@EVERY
def test_updates_of_zero(name: str) -> None:
    x = torch.zeros(2, 4, 5, dtype=torch.float64)
    assert torch.equal(value(MEANS[name](x, setting([0.5, 0.5]))), x[0])


@EVERY
def test_the_device_changes_no_bit_and_numpy_is_not_asked(name: str) -> None:
    x = CASES["close"]
    expected = value(MEANS[name](x, setting(WEIGHTS)))
    with forbid_numpy():
        assert torch.equal(value(MEANS[name](x, setting(WEIGHTS))), expected)
    with fake_cuda():
        found = value(MEANS[name](x.to("cuda"), setting(WEIGHTS)))
        assert found.device == CUDA
        assert torch.equal(found.cpu(), expected)
