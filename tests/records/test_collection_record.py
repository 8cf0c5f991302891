"""The record of a collection is read back as it was written."""

from __future__ import annotations

from riemerge.records.collection_record import CollectionRecord
from tests.records.collections import NAMES, made_collection


def test_a_record_is_read_back_as_it_was() -> None:
    record = made_collection()
    assert CollectionRecord.model_validate_json(record.to_json()) == record
    assert record.names == NAMES
