"""What a merged update says of its distances, with factors and without."""

from __future__ import annotations

import math

import pytest
import torch

from riemerge.frechet.status import Status
from riemerge.methods.stack import Apart, Evidence, Merged, constant, resolve
from riemerge.updates import Dense, JointSpan, LowRankUpdate
from tests.helpers import seeded

INPUTS = ((3.0, -1.0, 0.5), (0.2, 2.0, 1.0), (0.0, 0.0, 0.0))
MERGED = (1.1, 0.4, 0.7)
SCALES = (-2.0, 0.0, 0.5, 1.0, 7.0)


def apart(scale: float, size: float) -> Apart:
    """Norms and distances by direct computation, of vectors of any size: `math` divides by the largest."""
    x = [size * scale * entry for entry in MERGED]
    inputs = [[size * entry for entry in one] for one in INPUTS]
    return Apart(
        math.hypot(*x), tuple(math.hypot(*one) for one in inputs), tuple(math.dist(x, one) for one in inputs)
    )


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("scale", SCALES)
def test_distances_at_a_scale_follow_from_those_at_one(scale: float, size: float) -> None:
    found, expected = apart(1.0, size).times(scale), apart(scale, size)
    assert found.norm == pytest.approx(expected.norm, rel=1e-14, abs=0)
    assert found.inputs == expected.inputs
    # In units of the largest: a square that cancels keeps half of the digits.
    unit = max(expected.norm, *expected.inputs)
    assert [x / unit for x in found.distances] == pytest.approx(
        [x / unit for x in expected.distances], abs=1e-7
    )


def test_copies_stay_at_no_distance_and_zeros_at_zero() -> None:
    assert Apart(2.0, (2.0, 2.0), (0.0, 0.0)).times(1.0).distances == (0.0, 0.0)
    assert Apart(2.0, (2.0,), (0.0,)).times(-1.0).distances == (4.0,)
    assert Apart(0.0, (0.0,), (0.0,)).times(3.0) == Apart(0.0, (0.0,), (0.0,))


@pytest.mark.parametrize("scale", SCALES)
def test_factors_and_dense_updates_measure_alike(scale: float) -> None:
    generator = seeded(4)
    updates = [
        LowRankUpdate(
            torch.randn(6, 2, generator=generator, dtype=torch.float64),
            torch.randn(2, 5, generator=generator, dtype=torch.float64),
        )
        for _ in range(3)
    ]
    small, *inputs = JointSpan(updates).updates
    evidence = Evidence(Status.EXACT)
    factored = Merged(constant(updates[0]), evidence, tuple(inputs), small)
    whole, *others = (update.dense() for update in updates)
    apart = Apart(
        float(whole.norm()),
        tuple(float(x.norm()) for x in others),
        tuple(float((whole - x).norm()) for x in others),
    )
    dense = Merged(constant(Dense(whole)), evidence, (), None, apart)
    for found, expected in zip(dense.measure(scale), factored.measure(scale), strict=True):
        assert found == pytest.approx(expected, rel=1e-7)
    for found, expected in zip(dense.norms, factored.norms, strict=True):
        assert found == pytest.approx(expected, rel=1e-12)
    assert torch.equal(dense.update.dense(), whole)


def test_a_dotted_name_is_resolved() -> None:
    assert resolve("math:hypot") is math.hypot
