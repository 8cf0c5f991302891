"""Tables of a collection as files: what is written reads back, of many adapters the nearest pairs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from riemerge.records.pair_tables import PairTables
from riemerge.report import collection_tables
from riemerge.report.collection_tables import (
    adapter_rows,
    as_csv,
    as_jsonl,
    as_parquet,
    cluster_rows,
    pair_rows,
)
from tests.records.collections import COSINES, NAMES, made_collection, write_tables


def test_adapters_have_their_copy_their_outlier_and_their_nearest() -> None:
    rows = {str(row["name"]): row for row in adapter_rows(made_collection())}
    assert tuple(rows) == NAMES
    assert rows["law_again"]["copy_of"] == "law"
    assert rows["law"]["copy_of"] is None
    assert (rows["odd"]["outlier"], rows["odd"]["missing"]) == ("norm", 1)
    assert (rows["med"]["nearest"], rows["med"]["nearest_cosine"]) == ("law", 0.6)


def test_pairs_are_all_or_the_nearest_and_those_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tables(tmp_path)
    record, tables = made_collection(), {"cosine": PairTables(tmp_path).pairs("cosine")}
    rows = pair_rows(record, tables)
    assert len(rows) == 6
    assert {(row["first"], row["second"]): row["cosine"] for row in rows}["law_again", "med"] == COSINES[1, 2]
    assert [row["quotient"] for row in rows if row["quotient"] is not None] == [1.7]
    monkeypatch.setattr(collection_tables, "ALL_PAIRS", 3)
    asked = record.distances[0].model_copy(update={"first": "med", "second": "odd"})
    nearest = {"neighbours": tuple(near[:1] for near in record.neighbours), "distances": (asked,)}
    rows = pair_rows(record.model_copy(update=nearest), tables)
    pairs = [("law", "law_again"), ("law", "med"), ("law", "odd"), ("med", "odd")]  # each once
    assert [(row["first"], row["second"]) for row in rows] == pairs


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-dash", "@x", "\tx"])
def test_a_spreadsheet_takes_no_name_as_a_formula(name: str) -> None:
    rows = [*adapter_rows(made_collection())]
    rows[0] |= {"name": name, "norm": -1.5}
    (read, *_) = csv.DictReader(io.StringIO(as_csv(rows).decode(), newline=""))
    assert (read["name"], read["norm"]) == (f"'{name}", "-1.5")
    assert json.loads(as_jsonl(rows).splitlines()[0])["name"] == name


def test_csv_and_json_lines_read_back_with_all_digits() -> None:
    rows = [*adapter_rows(made_collection())]
    rows[0] |= {"name": 'a,"b"\n', "norm": 0.1 + 0.2}
    read = list(csv.DictReader(io.StringIO(as_csv(rows).decode(), newline="")))
    assert read[0]["name"] == 'a,"b"\n'
    assert float(read[0]["norm"]) == 0.1 + 0.2
    assert read[0]["copy_of"] == ""
    assert [json.loads(line) for line in as_jsonl(rows).splitlines()] == rows


def test_parquet_reads_back_with_its_types() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = cluster_rows(made_collection())
    assert parquet.read_table(io.BytesIO(as_parquet(rows))).to_pylist() == rows
