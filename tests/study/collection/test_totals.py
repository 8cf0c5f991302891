"""Totals: a group of modules counts as one block-diagonal module; spaces by the smaller rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riemerge.formats.dialects import read_adapter
from riemerge.records.collection_record import CollectionRecord
from riemerge.records.pair_tables import PairTables
from riemerge.study.collection import map_adapters
from tests.folders import family, write_folder
from tests.planted_collection import Planted
from tests.study.inputs import SHAPES


def test_spaces_of_several_modules_overlap_by_their_smaller_ranks(tmp_path: Path) -> None:
    wide, narrow = family("mix", 2, shapes=SHAPES)
    cut = {module: (b[:, :2], a[:2]) for module, (b, a) in narrow.items()}
    paths = [write_folder(tmp_path / "a", wide), write_folder(tmp_path / "b", cut)]
    map_adapters(paths, tmp_path / "atlas")
    tables = PairTables(tmp_path / "atlas")
    adapters = [read_adapter(path) for path in paths]
    for measure, side in (("left", 0), ("right", 2)):
        square, most = 0.0, 0
        for module in SHAPES:
            frames = []
            for adapter in adapters:
                update = adapter.update(module)
                svd = torch.linalg.svd(update.dense())
                frames.append((svd.U, svd.S, svd.Vh.mT)[side][:, : update.rank])
            square += float((frames[0].mT @ frames[1]).square().sum())
            most += 2
        table = tables.pairs("left" if measure == "left" else "right")
        assert float(table[0, 1]) == pytest.approx((square / most) ** 0.5, rel=1e-6)
        assert torch.allclose(table.diagonal(), torch.ones(2, dtype=torch.float64), atol=1e-6)


def test_what_is_kept_of_each_module_is_what_adapters_say(
    planted: Planted, atlas: tuple[Path, CollectionRecord]
) -> None:
    folder, record = atlas
    paths, tables = {path.name: path for path in planted.paths}, PairTables(folder)
    values = tables.per_module("singular_values")
    for place in (0, 31):
        adapter = read_adapter(paths[record.names[place]])
        for k, module in enumerate(record.modules):
            update = adapter.update(module.name)
            assert float(tables.per_module("norms")[place, k]) == pytest.approx(update.norm())
            assert int(tables.per_module("numerical_ranks")[place, k]) == update.numerical_rank(torch.float32)
            assert torch.allclose(values[place, k].double(), update.singular_values(), rtol=1e-6)
