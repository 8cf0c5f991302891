"""Descriptions are what their words say, counted from the tables and the adapters themselves."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from riemerge.formats.dialects import read_adapter
from riemerge.merging.identifiability import judge_modules, judge_overlap
from riemerge.records.collection_record import CollectionRecord
from riemerge.records.pair_tables import PairTables
from riemerge.study.collection.description import judge
from riemerge.study.collection.members import open_members
from tests.folders import family, write_family
from tests.pairwise_overlap import frames, overlap
from tests.planted_collection import Planted


def test_clusters_are_described_by_their_pairs(
    planted: Planted, atlas: tuple[Path, CollectionRecord]
) -> None:
    folder, record = atlas
    cosine = PairTables(folder).pairs("cosine")
    places = {name: place for place, name in enumerate(record.names)}
    copies = {one.name for group in record.copies for one in group.repetitions}
    for cluster in record.clusters:
        some = [places[name] for name in cluster.members if name not in copies]
        rest = [place for name, place in places.items() if name not in copies and place not in some]
        pairs = [float(cosine[i, j]) for i, j in combinations(some, 2)]
        assert cluster.cosine == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)
        assert cluster.cosine_outside == pytest.approx(float(cosine[some][:, rest].mean()))
        assert cluster.kind == ("family" if len(some) > 1 else "alone")
        assert all(record.adapters[places[name]].cluster == cluster.label for name in cluster.members)


def test_families_are_judged_as_the_slow_path_judges_them(
    planted: Planted, atlas: tuple[Path, CollectionRecord]
) -> None:
    paths = {path.name: path for path in planted.paths}
    cluster = atlas[1].clusters[0]
    adapters = [read_adapter(paths[name]) for name in cluster.judged]
    assert cluster.judged[0] == cluster.medoid
    answers = [
        judge_overlap(
            overlap(
                [frames(adapter.update(module), torch.float32) for adapter in adapters],
                adapters[0].shape(module),
            )
        )
        for module in adapters[0].modules
    ]
    assert cluster.determined == judge_modules(answers)


def test_all_that_are_judged_must_share_their_spaces(tmp_path: Path) -> None:
    adapters = [*family("close", 2), *family("independent", 1, seed=7)]
    members = open_members(write_family(tmp_path, adapters))
    assert (judge(members, [0, 1]), judge(members, [0, 1, 2])) == ("yes", "open")


def test_spectra_and_adapters_are_those_of_their_singular_values(
    atlas: tuple[Path, CollectionRecord],
) -> None:
    folder, record = atlas
    values = PairTables(folder).per_module("singular_values").double()
    shares = (values / values[:, :, :1]).flatten(end_dim=1)
    median = record.spectra[0].median
    assert torch.tensor(median) == pytest.approx(shares.median(dim=0).values, abs=0.02)
    energy = values.square().sum(dim=(1, 2)) / values[:, :, 0].square().sum(dim=1)
    assert [adapter.stable_rank for adapter in record.adapters] == pytest.approx(energy.tolist(), rel=1e-5)
