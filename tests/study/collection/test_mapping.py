"""A map finds all that was planted, whatever the order, the threads, and however often it was broken off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from riemerge.errors import AdapterError, OutputError, RecipeError
from riemerge.formats.dialects import read_adapter
from riemerge.progress import Progress
from riemerge.records.collection_record import CollectionRecord
from riemerge.records.pair_tables import PairTables
from riemerge.study.collection import map_adapters, mapping, work
from tests.folders import family, write_family, write_folder
from tests.planted_collection import FACTOR, LOUD, Planted
from tests.study.inputs import SHAPES


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_that_was_planted_is_found(planted: Planted, atlas: tuple[Path, CollectionRecord]) -> None:
    record = atlas[1]
    found = {
        (frozenset({group.kept, one.name}), one.likeness)
        for group in record.copies
        for one in group.repetitions
    }
    for likeness in ("copy", "refactored", "scaled"):
        pairs = {"copy": planted.copies}.get(likeness, getattr(planted, likeness, {}))
        assert {pair for pair, kind in found if kind == likeness} == {
            frozenset(pair) for pair in pairs.items()
        }
    (scaled,) = {
        round(max(one.factor, 1 / one.factor), 5)
        for group in record.copies
        for one in group.repetitions
        if one.likeness == "scaled"
    }
    assert scaled == FACTOR
    repeated = planted.copies | planted.refactored | planted.scaled
    families = {
        frozenset({*members, *(name for name, origin in repeated.items() if origin in members)})
        for members in planted.families
    }
    clusters = {frozenset(cluster.members) for cluster in record.clusters if cluster.kind == "family"}
    assert clusters == families
    outliers = {(outlier.name, outlier.measure) for outlier in record.outliers}
    directions = {(name, "direction") for name in planted.strangers | planted.loud}
    assert outliers == directions | {(name, "norm") for name in planted.loud}
    (loud,) = planted.loud
    assert dict(zip(record.names, record.adapters, strict=True))[loud].norm == pytest.approx(LOUD)
    repeating = [advice for advice in record.advice if advice.action in {"drop", "choose"}]
    assert {name for advice in repeating for name in advice.adapters} == {
        one.name for group in record.copies for one in group.repetitions
    }


def test_tables_are_those_of_dense_matrices(planted: Planted, atlas: tuple[Path, CollectionRecord]) -> None:
    folder, record = atlas
    paths = {path.name: path for path in planted.paths}
    some = [0, 7, 30, 59]
    dense = []
    for place in some:
        adapter = read_adapter(paths[record.names[place]])
        dense.append([adapter.update(module).dense() for module in adapter.modules])
    tables = PairTables(folder)
    for group in record.groups:
        places = [k for k, module in enumerate(record.modules) if module.name in group.modules]
        flat = torch.stack([torch.cat([each[k].flatten() for k in places]) for each in dense])
        cosine = torch.nn.functional.normalize(flat) @ torch.nn.functional.normalize(flat).mT
        exact = 1e-10 if group.kind == "total" else 1e-6  # other groups are kept in float32
        assert (tables.pairs("cosine", group.name)[some][:, some] - cosine).abs().max() < exact
        apart = torch.cdist(flat, flat)
        # Of inner products: half of the digits.
        error = (tables.pairs("distance", group.name)[some][:, some] - apart).abs().max()
        assert error < max(exact, 1e-7) * flat.norm(dim=1).max()


def test_neither_order_nor_threads_nor_a_break_changes_a_bit(
    planted: Planted, atlas: tuple[Path, CollectionRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[str] = []
    store = work.Work.store

    def break_off(self: Any, module: str, *rest: Any) -> None:
        if stored:
            raise KeyboardInterrupt
        stored.append(module)
        store(self, module, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(work.Work, "store", break_off)
        with pytest.raises(KeyboardInterrupt):
            map_adapters(planted.paths[::-1], tmp_path / "atlas", threads=1)
    assert len(stored) == 1
    record = map_adapters(planted.paths[::-1], tmp_path / "atlas", threads=1)
    assert record == atlas[1]
    assert files(tmp_path / "atlas") == files(atlas[0])
    events: list[Progress] = []
    with monkeypatch.context() as patch:
        patch.setattr(work, "compare_fresh", None)  # nothing is computed again
        again = map_adapters(planted.paths, tmp_path / "atlas", progress=events.append)
    assert again == record
    assert {event.stage for event in events} == {"map", "directions", "clusters"}


def test_adapters_more_or_less_agree_with_a_map_from_scratch(planted: Planted, tmp_path: Path) -> None:
    names = sorted(path.name for path in planted.paths)
    paths = {path.name: path for path in planted.paths}
    first, all_of_them = ([paths[name] for name in names[:count]] for count in (9, 12))
    scratch = map_adapters(all_of_them, tmp_path / "scratch")
    map_adapters(first, tmp_path / "grown")
    grown = map_adapters(all_of_them, tmp_path / "grown")
    shrunk = map_adapters(all_of_them[3:], tmp_path / "grown")
    assert shrunk.names == scratch.names[3:]
    tables = [PairTables(tmp_path / name).pairs("cosine") for name in ("scratch", "grown")]
    assert torch.allclose(tables[0][3:, 3:], tables[1], atol=1e-12)
    assert grown.names == scratch.names
    assert [row.kept for row in grown.kept] == [pytest.approx(row.kept, abs=1e-10) for row in scratch.kept]
    assert [one.sha256 for one in grown.adapters] == [one.sha256 for one in scratch.adapters]


def test_other_names_compute_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_family(tmp_path, family("close", 3, shapes=SHAPES))
    first = map_adapters(paths, tmp_path / "atlas")
    before = PairTables(tmp_path / "atlas").pairs("cosine")
    paths[0] = paths[0].rename(tmp_path / "z")
    monkeypatch.setattr(work, "compare_fresh", None)
    monkeypatch.setattr(mapping, "keep_common", None)
    second = map_adapters(paths, tmp_path / "atlas")
    assert second.names == ("b", "c", "z")
    order = [1, 2, 0]
    assert torch.equal(PairTables(tmp_path / "atlas").pairs("cosine"), before[order][:, order])
    assert [row.kept for row in second.kept] == [row.kept for row in first.kept]


def test_copies_alone_are_a_collection_too(tmp_path: Path) -> None:
    (one,) = family("close", 1, shapes=SHAPES)
    paths = [write_folder(tmp_path / name, one) for name in "ab"]
    record = map_adapters(paths, tmp_path / "atlas", distances=["quotient"])
    assert [cluster.kind for cluster in record.clusters] == ["copies"]
    assert [advice.action for advice in record.advice] == ["drop"]
    assert (record.distances, record.adapters[0].mean_cosine) == ((), None)


def test_equal_files_count_as_often_as_they_are_there(tmp_path: Path) -> None:
    one, other = family("mix", 2, shapes=SHAPES)
    turned = {module: (2 * b, a / 2) for module, (b, a) in one.items()}
    every = {"a": one, "b": one, "c": turned, "d": other}
    paths = {name: write_folder(tmp_path / name, factors) for name, factors in every.items()}
    kept = [
        map_adapters([paths[name] for name in names], tmp_path / names).kept[0].kept[:3]
        for names in ("abd", "acd", "ad")
    ]
    assert kept[0] == pytest.approx(kept[1], rel=1e-12)
    assert kept[0] != pytest.approx(kept[2], rel=1e-3)


def test_bad_adapters_are_left_out_and_said(tmp_path: Path) -> None:
    paths = write_family(tmp_path, family("close", 6, shapes=SHAPES))
    expected = map_adapters(paths[:3], tmp_path / "good")
    broken = load_file(paths[3] / "adapter_model.safetensors")
    next(iter(broken.values()))[0, 0] = float("nan")
    save_file(broken, paths[3] / "adapter_model.safetensors")
    shutil.rmtree(paths[4])
    write_folder(
        paths[4], family("close", 1, shapes={name: (m + 1, n) for name, (m, n) in SHAPES.items()})[0]
    )
    (paths[5] / "adapter_config.json").write_text("{")
    zero = write_folder(
        tmp_path / "zero", {name: (0 * b, a) for name, (b, a) in family("close", 1, shapes=SHAPES)[0].items()}
    )
    other = write_folder(
        tmp_path / "other", family("close", 1, shapes=SHAPES)[0], base_model_name_or_path="somebody/else"
    )
    record = map_adapters([*paths, zero, other, paths[0], tmp_path / "nothing"], tmp_path / "atlas")
    reasons = {one.name: "\n".join(one.reasons) for one in record.left_out}
    for name, reason in {
        "a": "is given twice, first as a: it counts once",
        "d": "holds 1 NaN or Inf",
        "e": "2 of 2 modules are not as in most adapters",
        "f": "adapter_config.json",
        "nothing": "no such folder",
        "other": "--same-base takes these as one",
        "zero": "dW is zero in every module",
    }.items():
        assert reason in reasons.pop(name)
    assert not reasons
    assert str(tmp_path) not in record.to_json()
    assert record.names == expected.names
    again = map_adapters([*paths, zero, other, paths[0], tmp_path / "nothing"], tmp_path / "atlas")
    assert again == record
    with pytest.raises(AdapterError, match="1 adapter can be compared: expected at least 2"):
        map_adapters([paths[0], paths[3]], tmp_path / "atlas")


def test_ranks_targets_and_dtypes_may_differ_and_what_is_missing_counts_as_zero(tmp_path: Path) -> None:
    wide, narrow = family("close", 2, shapes=SHAPES)
    first = write_folder(tmp_path / "a", wide)
    (_, kept) = SHAPES
    second = write_folder(
        tmp_path / "b", {kept: (narrow[kept][0][:, :2], narrow[kept][1][:2])}, dtype=torch.float32
    )
    record = map_adapters([first, second], tmp_path / "atlas")
    assert [adapter.missing for adapter in record.adapters] == [(), (min(SHAPES),)]
    flat = []
    for path in (first, second):
        adapter = read_adapter(path)
        zero = torch.zeros(SHAPES[min(SHAPES)], dtype=torch.float64)
        updates = {name: adapter.update(name).dense() for name in adapter.modules}
        flat.append(torch.cat([updates.get(name, zero).flatten() for name in SHAPES]))
    cosine = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0)
    assert float(PairTables(tmp_path / "atlas").pairs("cosine")[0, 1]) == pytest.approx(float(cosine))
    assert [note.partition(":")[0] for note in record.notes] == [
        "1 adapter lacks modules that others have, where the update counts as zero",
        "ranks differ",
        "dtypes differ",
    ]


def test_a_folder_of_other_files_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    paths = write_family(tmp_path / "adapters", family("close", 2, shapes=SHAPES))
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("adapters.csv", "pairs.jsonl"):
        (mine / name).write_text("mine", encoding="utf-8")
    before = files(mine)
    with pytest.raises(OutputError, match=r"mine: holds adapters.csv, pairs.jsonl, and no collection.json"):
        map_adapters(paths, mine)
    assert files(mine) == before
    (tmp_path / "empty").mkdir()
    assert map_adapters(paths, tmp_path / "empty").names == ("a", "b")


def test_distances_are_measured_on_request(tmp_path: Path) -> None:
    paths = write_family(tmp_path, family("close", 3, shapes=SHAPES))
    record = map_adapters(paths, tmp_path / "atlas", distances=["quotient", "grassmann"])
    assert {row.metric for row in record.distances} == {"quotient", "grassmann"}
    chosen = map_adapters(paths, tmp_path / "atlas", distances=["quotient"], pairs=[("c", "a")])
    (pair,) = chosen.distances
    assert (pair.first, pair.second) == ("a", "c")
    assert pair.distance is not None
    with pytest.raises(RecipeError, match="pairs: x: no such adapter takes part: expected a, b, c"):
        map_adapters(paths, tmp_path / "atlas", pairs=[("a", "x")])
    with pytest.raises(RecipeError, match="pairs: a,a: expected two different adapters"):
        map_adapters(paths, tmp_path / "atlas", pairs=[("a", "a")])
    wrong: Any = ["angle"]
    with pytest.raises(RecipeError, match="distances: angle: expected quotient or grassmann"):
        map_adapters(paths, tmp_path / "atlas", distances=wrong)
    with pytest.raises(OutputError, match="is, contains or lies inside the input"):
        map_adapters(paths, tmp_path)
    assert json.loads((tmp_path / "atlas" / "collection.json").read_text())["format"] == 1
