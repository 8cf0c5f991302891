"""Pairs compared by tiles are those of dense matrices, whatever the tiles and what is held."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch

from riemerge.study.collection import pairs, tiles
from riemerge.study.collection.pairs import Facts, compare_fresh
from riemerge.study.collection.tiles import Tiles
from riemerge.updates.low_rank import LowRankUpdate
from tests.study.collection.updates import Held, some_updates


def facts_of(updates: list[LowRankUpdate], fresh: Collection[int]) -> Facts:
    adapters: Any = [Held(update) for update in updates]
    return compare_fresh(Tiles(adapters, "q", fresh))


def dense_facts(updates: list[LowRankUpdate]) -> tuple[torch.Tensor, torch.Tensor]:
    flat = torch.stack([update.dense().flatten() for update in updates])
    frames = [torch.linalg.svd(update.dense()).U[:, : update.rank] for update in updates]
    left = torch.tensor([[float((u.mT @ v).square().sum()) for v in frames] for u in frames])
    return flat @ flat.mT, left


@pytest.mark.parametrize("tile", [2, 3, 64])
def test_pairs_are_those_of_dense_matrices(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", tile)
    updates = some_updates()
    facts, (inner, left) = facts_of(updates, range(len(updates))), dense_facts(updates)
    assert (facts.inner - inner).abs().max() < 1e-10 * inner.abs().max()
    assert (facts.left - left).abs().max() < 1e-6  # kept in float32
    assert torch.allclose(facts.inner, facts.inner.mT, rtol=1e-12)
    for place, update in enumerate(updates):
        assert torch.allclose(facts.values[place, : update.rank], update.singular_values(), rtol=1e-9)
        assert facts.rounding[place] == update.rounding(torch.float32)


def test_only_pairs_of_fresh_adapters_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 2)
    products: list[Any] = []
    compare = pairs._compare

    def count(*some: Any) -> Any:
        products.append(some)
        return compare(*some)

    monkeypatch.setattr(pairs, "_compare", count)
    updates, (inner, _) = some_updates(), dense_facts(some_updates())
    facts_of(updates, range(7))
    assert len(products) == 4 * 5 // 2  # of four tiles
    products.clear()
    facts = facts_of(updates, {5, 6})
    assert len(products) == 1 + 3  # the fresh tile with itself, and with three of the five others
    assert torch.allclose(facts.inner[5:], inner[5:], rtol=1e-10, atol=1e-10 * float(inner.max()))
    assert not facts.inner[:5, :5].any()


def test_what_is_held_changes_no_bit_and_bounds_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 2)
    updates = some_updates()
    whole = facts_of(updates, range(7))
    monkeypatch.setattr(tiles, "HELD", 1)  # one tile at a time
    for one, other in zip(whole, facts_of(updates, range(7)), strict=True):
        assert torch.equal(one, other)


def test_an_adapter_that_cannot_be_read_is_zero_and_named() -> None:
    updates = some_updates()
    adapters: Any = [Held(update) for update in updates]
    adapters[2] = Held(None)
    some = Tiles(adapters, "q", range(7))
    facts = compare_fresh(some)
    assert some.faults == {2: ("broken: lora_A holds 1 NaN or Inf",)}
    assert not facts.inner[2].any()
    assert torch.allclose(facts.inner[0, 1], dense_facts(updates)[0][0, 1])
    alone: Any = [*adapters[:2], adapters[2]]
    compare_fresh(Tiles(alone, "q", {2}))
    assert [adapter.reads for adapter in alone] == [1, 1, 2]  # nothing to compare it with is read for it
