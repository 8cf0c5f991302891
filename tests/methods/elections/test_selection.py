"""The exact order statistics, against a sort of everything."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from riemerge.methods.elections.selection import above, kth_largest, top_mask
from tests.helpers import seeded
from tests.methods.edited import SHAPES, random_updates

# The hard numbers of float64: zeros of both signs, subnormals, neighbours in the last bit, the largest.
HARD = torch.tensor(
    [0.0, -0.0, 5e-324, -5e-324, 1e-310, 1.0, -1.0, 1.0 + 2**-52, -(1.0 - 2**-53), 1.7e308, -3.0, 3.0, 2.0],
    dtype=torch.float64,
)


def expected_mask(x: Tensor, k: int) -> Tensor:
    """By a stable sort: equal magnitudes in order of flat index."""
    order = sorted(range(x.numel()), key=lambda i: (-abs(float(x.flatten()[i])), i))
    mask = torch.zeros(x.numel(), dtype=torch.bool)
    mask[order[:k]] = True
    return mask.view(x.shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_top_mask_keeps_exactly_the_largest(shape: tuple[int, ...]) -> None:
    # Rounding to a few values makes many ties, at most boundaries.
    for x in (random_updates(shape)[0], random_updates(shape, zeros=0.5)[0].round()):
        for k in range(x.numel() + 1):
            mask = top_mask(x, k)
            assert int(mask.sum()) == k
            assert torch.equal(mask, expected_mask(x, k))
            assert torch.equal(mask, top_mask(-x, k))


def test_top_mask_of_hard_numbers() -> None:
    for k in range(len(HARD) + 1):
        assert torch.equal(top_mask(HARD, k), expected_mask(HARD, k))


def test_above_counts_the_first_ties_only() -> None:
    x = torch.tensor([[2.0, -1.0, 1.0], [1.0, -3.0, 0.5]], dtype=torch.float64)
    assert above(x, x.new_tensor(1.0), 2).tolist() == [[True, True, True], [False, True, False]]
    assert above(x, x.new_tensor(1.0), 9).tolist() == [[True, True, True], [True, True, False]]
    assert above(x, x.new_tensor(1.0), 0).tolist() == [[True, False, False], [False, True, False]]


@pytest.mark.parametrize("k", [1, 6, 9, 13])
def test_kth_largest_is_that_of_a_sort(k: int) -> None:
    """Two models with many ties, as one tensor, and cut into several in the other order."""
    models = torch.stack([HARD, torch.randint(-3, 4, (13,), generator=seeded(1)).double()])
    for pieces in ((models,), models.split((1, 1, 5, 6), dim=1)[::-1]):
        # The share is a hair above k / 13, for the count rounds down.
        found, left = kth_largest(partial(iter, pieces), [(k + 1e-9) / 13] * 2)
        for model, threshold, ties in zip(models, found, left, strict=True):
            magnitudes = model.abs()
            assert torch.equal(threshold, magnitudes.sort(descending=True).values[k - 1])
            assert ties == k - int((magnitudes > threshold).sum())


def test_kth_largest_of_a_million_normal_numbers() -> None:
    x = torch.randn(3, 400_000, generator=seeded(2), dtype=torch.float64)
    shares = [0.2, 0.5, 1.0]
    found, left = kth_largest(lambda: iter(x.split(70_001, dim=1)), shares)
    for one, share, threshold, ties in zip(x, shares, found, left, strict=True):
        assert torch.equal(threshold, one.abs().sort(descending=True).values[int(share * 400_000) - 1])
        assert ties == 1


def test_the_smallest_share_is_one_entry() -> None:
    x = random_updates((2, 7), zeros=0.0)
    found, left = kth_largest(lambda: iter([x]), [1e-9, 1e-9])
    assert torch.equal(found, x.abs().amax(dim=1))
    assert left == (1, 1)
