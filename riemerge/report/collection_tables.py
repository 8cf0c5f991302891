"""Tables of a collection as files: adapters, pairs and clusters, as CSV and as Parquet or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TypeAlias

from torch import Tensor

from riemerge.records.collection_record import CollectionRecord
from riemerge.report.collection_text import Cell, repetitions

Rows: TypeAlias = list[dict[str, Cell]]

ALL_PAIRS = 200
"""Above so many adapters, the table of pairs holds the nearest ones of each adapter, not all."""

_FORMULA = ("=", "+", "-", "@", "\t")
"""How a text begins that spreadsheets take as a formula."""


def adapter_rows(record: CollectionRecord) -> Rows:
    """Return a row for each adapter, in the order of the record.

    Columns are the fields of `CollectedAdapter` but `saved`, `missing` as a number; the kind of the cluster;
    for a copy `copy_of` and `likeness`; `outlier`, what is unusual, and its score; the nearest with cosine
    and distance.
    """
    copies, rows = repetitions(record), []
    kinds = {row.label: row.kind for row in record.clusters}
    unusual = {row.name: (row.measure, row.score) for row in reversed(record.outliers)}
    for adapter, neighbours in zip(record.adapters, record.neighbours, strict=True):
        copy_of, how = copies.get(adapter.name, (None, None))
        measure, score = unusual.get(adapter.name, (None, None))
        row: dict[str, Cell] = adapter.model_dump(exclude={"sha256", "saved"})
        row |= {"ranks": " ".join(map(str, adapter.ranks)), "missing": len(adapter.missing)}
        row |= {"kind": kinds[adapter.cluster], "copy_of": copy_of, "likeness": how}
        row |= {"outlier": measure, "outlier_score": score}
        for near in neighbours[:1]:
            row |= {"nearest": near.name, "nearest_cosine": near.cosine, "nearest_distance": near.distance}
        rows.append(row)
    return rows


def pair_rows(record: CollectionRecord, tables: Mapping[str, Tensor]) -> Rows:
    """Return a row for each pair of adapters; of more than ALL_PAIRS adapters, for the nearest of each.

    Args:
        record: The collection of T adapters.
        tables: (T, T) tables over all modules, by the name of the measure, which is its column.
    """
    names = record.names
    columns = {name: table.tolist() for name, table in tables.items()}
    geodesic = {(row.metric, row.first, row.second): row.distance for row in record.distances}
    metrics = sorted({row.metric for row in record.distances})
    return [
        {
            "first": names[i],
            "second": names[j],
            **{name: column[i][j] for name, column in columns.items()},
            **{metric: geodesic.get((metric, names[i], names[j])) for metric in metrics},
        }
        for i, j in _pairs(record)
    ]


def _pairs(record: CollectionRecord) -> Iterator[tuple[int, int]]:
    if len(record.names) <= ALL_PAIRS:
        return combinations(range(len(record.names)), 2)
    places = {name: place for place, name in enumerate(record.names)}
    near = ((i, places[row.name]) for i, rows in enumerate(record.neighbours) for row in rows)
    asked = ((places[row.first], places[row.second]) for row in record.distances)
    return iter(sorted({(min(pair), max(pair)) for pair in (*near, *asked)}))


def cluster_rows(record: CollectionRecord) -> Rows:
    """Return a row for each cluster; who is in it stands in the table of adapters."""
    return [
        row.model_dump(exclude={"members", "judged"}) | {"adapters": len(row.members)}
        for row in record.clusters
    ]


def as_csv(rows: Rows) -> bytes:
    """Return rows, at least one, as CSV with a header: UTF-8, nothing for a missing value, all digits.

    A text that a spreadsheet would take as a formula has an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _as_text(cell) for key, cell in row.items()} for row in rows)
    return text.getvalue().encode()


def _as_text(cell: Cell) -> Cell:
    """Return a cell that no spreadsheet takes as a formula."""
    if isinstance(cell, str) and cell.startswith(_FORMULA):
        return f"'{cell}"
    return cell


def as_parquet(rows: Rows) -> bytes:
    """Return rows as Parquet.

    Raises:
        ImportError: pyarrow is not there.
    """
    import pyarrow as pa
    from pyarrow import parquet

    content = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


def as_jsonl(rows: Sequence[Mapping[str, Cell]]) -> bytes:
    """Return rows as JSON, a line each."""
    return "".join(f"{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n" for row in rows).encode()
