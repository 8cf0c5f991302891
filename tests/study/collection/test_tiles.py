"""Tiles: fresh adapters first, equal ranks side by side, as many held as fit."""

from __future__ import annotations

from typing import Any

import pytest

from riemerge.study.collection import tiles
from riemerge.study.collection.tiles import Tiles
from tests.study.collection.updates import SHAPE, Held, some_updates


def test_tiles_are_of_equal_ranks_and_runs_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 2)
    adapters: Any = [Held(update) for update in some_updates((3, 2, 3, 2, 1, 1))]
    some = Tiles(adapters, "q", {0, 1, 2, 3})
    assert (some.places, some.first) == ([[1, 3], [0, 2], [4, 5]], 2)
    monkeypatch.setattr(tiles, "HELD", (4 + 2) * sum(SHAPE))
    assert some.runs(3) == [range(1), range(1, 2), range(2, 3)]
    monkeypatch.setattr(tiles, "HELD", 10 * sum(SHAPE))
    assert some.runs(3) == [range(2), range(2, 3)]
    some.hold(range(2))
    before = [adapter.reads for adapter in adapters]
    assert some[1] is some[1]
    some.hold(range(1, 3))
    assert [adapter.reads for adapter in adapters] == [*before[:4], 1, 1]
