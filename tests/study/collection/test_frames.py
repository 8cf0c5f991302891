"""Frames of many updates are those of each; overlaps of many pairs are those of the slow path."""

from __future__ import annotations

import itertools

import pytest
import torch

from riemerge.study.collection.frames import decompose, overlap_pairs
from riemerge.updates.low_rank import LowRankUpdate
from tests.pairwise_overlap import frames as frames_of
from tests.pairwise_overlap import overlap
from tests.study.collection.updates import RANKS, SHAPE, some_updates

STORAGE = [torch.float32] * (len(RANKS) + 2)


def updates_with_degenerate_ones() -> list[LowRankUpdate]:
    updates = some_updates()
    flat = updates[0].B[:, :1].expand(-1, 3).contiguous()
    return [*updates, LowRankUpdate(flat, updates[0].A), updates[0].times(0.0)]


def test_the_frames_multiply_to_the_updates_and_have_their_numerical_ranks() -> None:
    updates = updates_with_degenerate_ones()
    frames = decompose(updates, STORAGE)
    dense = torch.einsum("rtm,rt,rtn->tmn", frames.left, frames.values, frames.right)
    for place, update in enumerate(updates):
        # Gauges of condition 1e3 cost some digits of 16.
        assert torch.allclose(dense[place], update.dense(), rtol=0, atol=1e-9)
        assert frames.ranks[place] == update.numerical_rank(torch.float32)
    assert frames.ranks[-2:].tolist() == [1, 0]
    assert torch.equal(decompose(updates[3:5], STORAGE[3:5]).left[:, 0], frames.left[:5, 3])


def test_overlaps_are_those_of_each_pair() -> None:
    updates = updates_with_degenerate_ones()
    pairs = list(itertools.combinations(range(len(updates)), 2))
    records = overlap_pairs(decompose(updates, STORAGE), pairs)
    for (i, j), record in zip(pairs, records, strict=True):
        expected = overlap([frames_of(updates[k], torch.float32) for k in (i, j)], SHAPE)
        assert (record is None) == (expected is None)
        if record and expected:
            assert record.model_dump() == pytest.approx(expected.model_dump(), abs=1e-9)
