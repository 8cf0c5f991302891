"""Geodesic distances in batches are those of each pair; answers are kept, and say why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from riemerge.study.collection import geodesics
from riemerge.study.collection.frames import decompose
from riemerge.study.collection.geodesics import measure_frames, measure_pairs
from riemerge.study.collection.work import Work
from tests.study.collection.updates import Held, some_updates

RANKS = (3, 3, 2, 3)


def test_angles_are_those_of_scipy() -> None:
    updates = some_updates(RANKS)
    frames = decompose(updates, [torch.float32] * 4)
    (apart,) = measure_frames("grassmann", frames, RANKS, [(0, 3)])
    dense = [np.asarray(updates[place].dense()) for place in (0, 3)]
    bases = [[scipy.linalg.orth(matrix, rcond=1e-9) for matrix in (x, x.T)] for x in dense]
    angles = [scipy.linalg.subspace_angles(bases[0][side], bases[1][side]) for side in range(2)]
    assert apart == pytest.approx(np.linalg.norm(np.concatenate(angles)), rel=1e-9)
    (same,) = measure_frames("grassmann", frames, RANKS, [(0, 0)])
    assert isinstance(same, float)
    assert same < 1e-7


def test_what_has_no_distance_says_why() -> None:
    updates = [*some_updates(RANKS), some_updates(RANKS)[0].times(0.0)]
    frames = decompose(updates, [torch.float32] * 5)
    stored = [*RANKS, 3]
    pairs = [(0, 2), (0, 4)]
    assert measure_frames("quotient", frames, stored, pairs) == [
        "ranks 3 and 2 differ",
        "numerical rank 0 of 3",
    ]
    assert measure_frames("grassmann", frames, stored, pairs) == [
        "numerical ranks 3 and 2",
        "numerical ranks 3 and 0",
    ]


def test_answers_are_kept_and_only_new_ones_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geodesics, "BATCH", 2)
    work = Work(tmp_path)
    adapters: dict[str, Any] = {
        name: Held(update) for name, update in zip("abcd", some_updates(RANKS), strict=True)
    }
    pairs = [("a", "b"), ("a", "c"), ("a", "d")]
    first = measure_pairs(work, "quotient", {"q": pairs[:2]}, adapters)
    computed: list[Any] = []
    batch = geodesics._measure_batch

    def watch(metric: Any, some: Any, wanted: Any) -> Any:
        computed.extend(wanted)
        return batch(metric, some, wanted)

    monkeypatch.setattr(geodesics, "_measure_batch", watch)
    second = measure_pairs(work, "quotient", {"q": pairs}, adapters)
    assert computed == [("q", ("a", "d"))]
    assert {pair: second["q"][pair] for pair in pairs[:2]} == first["q"]
    assert first["q"]["a", "c"] == "ranks 3 and 2 differ"
    work.path("q", ".quotient.json").write_bytes(b'[["a", "b", 1.')  # not whole: nothing is kept
    assert measure_pairs(work, "quotient", {"q": pairs}, adapters) == second
