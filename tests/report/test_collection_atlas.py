"""The atlas as files of a folder: all of them, and without matplotlib all but the pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from riemerge.errors import OutputError
from riemerge.records.pair_tables import PairTables
from riemerge.report import collection_atlas
from riemerge.report.collection_atlas import PAGE, write_atlas
from tests.records.collections import made_collection, write_tables

TABLES = {f"{name}.csv" for name in ("adapters", "pairs", "clusters")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tables(tmp_path)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {
        path.name for path in folder.iterdir() if path.suffix not in {".safetensors", ".jsonl", ".parquet"}
    }


def test_pictures_stand_beside_the_page_and_on_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {"pairs.png": b"\x89PNG pairs", "map.png": b"\x89PNG map"}
    monkeypatch.setattr(collection_atlas, "draw_collection", lambda record, cosine: drawn)
    assert write_atlas(made_collection(), PairTables(folder), folder) == []
    assert names(folder) == {PAGE, *drawn, *TABLES}
    assert (folder / "map.png").read_bytes() == drawn["map.png"]
    assert (folder / PAGE).read_text(encoding="utf-8").count("<figure>") == 2


def test_without_matplotlib_all_else_is_written_and_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (note,) = write_atlas(made_collection(), PairTables(folder), folder)
    assert "riemerge[plot]" in note
    assert names(folder) == {PAGE, *TABLES}
    assert "riemerge[plot]" in (folder / PAGE).read_text(encoding="utf-8")


def test_tables_are_json_lines_where_pyarrow_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    write_atlas(made_collection(), PairTables(folder), folder)
    assert {path.name for path in folder.glob("*.jsonl")} == {
        "adapters.jsonl",
        "pairs.jsonl",
        "clusters.jsonl",
    }
    assert not list(folder.glob("*.parquet"))


def test_nothing_of_an_earlier_atlas_is_left_but_what_others_wrote(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in (PAGE, "map.png", "pairs.parquet", "mine.png"):
        (folder / name).write_text("old", encoding="utf-8")
    write_atlas(made_collection(), PairTables(folder), folder)
    assert (folder / PAGE).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not {"map.png", "pairs.parquet"} & {path.name for path in folder.iterdir()}
    assert (folder / "mine.png").exists()


def test_a_folder_that_is_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OutputError, match="nowhere"):
        write_atlas(made_collection(), PairTables(folder), folder / "nowhere")
