"""An inspection tells how far it is; what it finds is tested with its report."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from riemerge.formats.dialects import read_adapter
from riemerge.linalg import single_threaded
from riemerge.merging.identifiability import mean_overlap
from riemerge.methods.geodesic.quotient_mean import distances
from riemerge.progress import Progress
from riemerge.study.inspection import inspect_adapters
from tests.folders import family, write_family
from tests.pairwise_overlap import frames, overlap
from tests.study.inputs import SHAPES

TWO_ALIKE = SHAPES | {"layers.2.q": SHAPES["layers.0.q"]}


def test_every_module_is_told_and_distances_are_an_option(folders: list[Path]) -> None:
    events: list[Progress] = []
    inspection = inspect_adapters(folders[:3], progress=events.append)
    assert events == [Progress("inspect", place, 2, text) for place, text in enumerate(SHAPES, 1)]
    assert {pair.distance for pair in inspection.pairs} == {None}
    assert not any(pair.distances or pair.notes for pair in inspection.pairs)
    apart = inspect_adapters(folders[:3], distances=True)
    assert all(pair.distance and {*pair.distances} == {*SHAPES} for pair in apart.pairs)
    without = [pair.model_copy(update={"distance": None, "distances": {}}) for pair in apart.pairs]
    assert (apart.adapters, tuple(without)) == (inspection.adapters, inspection.pairs)
    assert inspect_adapters([], progress=events.append).pairs == ()
    assert inspect_adapters(folders[:1]).pairs == ()


def test_numbers_are_those_of_each_update_and_pair(tmp_path: Path) -> None:
    """The slow path, update by update and pair by pair, is the oracle."""
    folders = write_family(tmp_path, family("close", 3, shapes=TWO_ALIKE))
    inspection = inspect_adapters(folders, distances=True)
    adapters = [read_adapter(path) for path in folders]
    for adapter, found in zip(adapters, inspection.adapters, strict=True):
        for row in found.modules:
            update = adapter.update(row.module)
            assert row.norm == pytest.approx(update.norm(), rel=1e-12)
            assert row.numerical_rank == update.numerical_rank()
            assert row.singular_values == pytest.approx(update.singular_values().tolist(), rel=1e-12)
    for (first, second), pair in zip(itertools.combinations(adapters, 2), inspection.pairs, strict=True):
        overlaps = []
        for module, (m, n) in TWO_ALIKE.items():
            both = [first.update(module), second.update(module)]
            overlaps.append(overlap([frames(update) for update in both], (m, n)))
            with single_threaded():
                apart = float(distances(both[:1], both[1:]))
            assert pair.distances[module] == pytest.approx(apart, rel=1e-8)
        expected = mean_overlap(overlaps)
        assert pair.overlap
        assert expected
        flat = [
            torch.cat([one.update(name).dense().flatten() for name in TWO_ALIKE]) for one in (first, second)
        ]
        cosine = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0)
        expected = expected.model_copy(update={"cosine": float(cosine)})
        assert pair.overlap.model_dump() == pytest.approx(expected.model_dump(), rel=1e-10)
