"""Tensors that are read by rows are the whole ones in all that is asked of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riemerge.updates import BlockMap, DenseBlocks, DenseRows
from tests.helpers import seeded

SHAPE = (7, 3, 2)
WHOLE = torch.randn((3, *SHAPE), generator=seeded(5), dtype=torch.float64)


def rows(count: int) -> DenseRows:
    return DenseRows(3, SHAPE, lambda run: WHOLE[:, run.start : run.stop], count)


EVERY = pytest.mark.parametrize("count", [1, 3, 7, 100])


@EVERY
def test_blocks_one_after_the_other_are_the_whole(count: int) -> None:
    given = rows(count)
    assert torch.equal(given.whole().stacked, WHOLE)
    blocks = given.blocks()
    assert max(block.shape[1] for block in blocks.stream()) == min(count, 7)
    for _ in range(2):  # each pass starts anew
        assert torch.equal(torch.cat([*blocks.stream()], dim=1), WHOLE)


@EVERY
def test_inner_products_and_combinations_are_those_of_the_whole(count: int) -> None:
    blocks, flattened = rows(count).blocks(), WHOLE.flatten(start_dim=1)
    torch.testing.assert_close(blocks.gram(), flattened @ flattened.mT, rtol=1e-14, atol=1e-14)
    coefficients = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    combined = torch.cat([*blocks.combine(coefficients).stream()])
    torch.testing.assert_close(combined, torch.tensordot(coefficients, WHOLE, dims=1), rtol=1e-14, atol=1e-14)


def test_what_changes_the_blocks_of_a_pass_starts_anew_in_the_next() -> None:
    def start() -> BlockMap:
        seen = 0

        def number(block: Tensor) -> Tensor:
            nonlocal seen
            seen += 1
            return torch.full_like(block, seen)

        return number

    changed = rows(3).blocks().change(start)
    for _ in range(2):
        assert [float(block.mean()) for block in changed.stream()] == [1.0, 2.0, 3.0]


@EVERY
def test_an_update_in_blocks_is_the_update(count: int) -> None:
    update = DenseBlocks(SHAPE, rows(count).blocks().combine(torch.tensor([0.0, 1.0, 0.0])).stream)
    assert update.rank is None
    assert torch.equal(update.dense(), WHOLE[1])
    assert torch.equal(update.times(-0.5).dense(), -0.5 * WHOLE[1])
    assert torch.equal(update.absorb_scale().dense(), WHOLE[1])
    assert update.norm() == pytest.approx(float(WHOLE[1].norm()), rel=1e-14)
