"""The atlas of a collection of adapters: its page, its pictures and its tables, as files of a folder."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from riemerge.formats.files.staging import write_atomically, writing
from riemerge.records.collection_record import CollectionRecord
from riemerge.records.pair_tables import Measure, PairTables
from riemerge.report.collection_figures import PICTURES, draw_collection
from riemerge.report.collection_page import collection_page
from riemerge.report.collection_tables import (
    adapter_rows,
    as_csv,
    as_jsonl,
    as_parquet,
    cluster_rows,
    pair_rows,
)

PAGE = "atlas.html"
"""The page, in the folder of the collection."""

MEASURES: tuple[Measure, ...] = ("cosine", "distance", "left", "right")


def write_atlas(record: CollectionRecord, tables: PairTables, folder: str | Path) -> list[str]:
    """Write the page, the pictures and the tables of a collection, each file whole.

    Law: the folder has no file of an earlier atlas afterwards that is not of this one.

    Args:
        record: The collection.
        tables: The tables of all pairs of the collection.
        folder: The folder of the collection, which is there.

    Returns:
        A line for each thing that is missing, and why.

    Raises:
        OutputError: A file cannot be written.
    """
    notes: list[str] = []
    pairs: dict[str, Tensor] = {measure: tables.pairs(measure) for measure in MEASURES}
    files: dict[str, bytes] = {}
    try:
        files |= draw_collection(record, pairs["cosine"].numpy())
    except ImportError:
        notes.append("no pictures: matplotlib is not installed (pip install 'riemerge[plot]')")
    files[PAGE] = collection_page(record, files, *notes).encode()
    rows = {"adapters": adapter_rows(record), "clusters": cluster_rows(record)}
    rows["pairs"] = pair_rows(record, pairs)
    for name, table in rows.items():
        files[f"{name}.csv"] = as_csv(table)
        try:
            files[f"{name}.parquet"] = as_parquet(table)
        except ImportError:
            files[f"{name}.jsonl"] = as_jsonl(table)
    for name, content in files.items():
        write_atomically(Path(folder, name), content)
    optional = {*PICTURES, *(f"{name}.{kind}" for name in rows for kind in ("parquet", "jsonl"))}
    with writing(Path(folder)):
        for name in optional - set(files):
            Path(folder, name).unlink(missing_ok=True)
    return notes
