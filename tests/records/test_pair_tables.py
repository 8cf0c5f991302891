"""Tables of pairs are read back one at a time, by measure and group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riemerge.errors import AdapterError
from riemerge.records.pair_tables import PAIRS_FILE, PairTables
from tests.records.collections import COSINES, made_collection, write_tables


def test_tables_are_read_back(tmp_path: Path) -> None:
    write_tables(tmp_path)
    tables, record = PairTables(tmp_path), made_collection()
    for group in record.groups:
        assert torch.equal(tables.pairs("cosine", group.name), COSINES)
    assert tables.per_module("singular_values").shape == (4, 3, 3)
    with pytest.raises(KeyError):
        tables.pairs("cosine", "layers.9")


def test_a_file_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=rf"{PAIRS_FILE}: is missing: run riemerge map again"):
        PairTables(tmp_path)
