"""The record of a batch is read back as it was, and has the exit code of the first failure."""

from __future__ import annotations

from riemerge.records.batch_record import BatchEntry, BatchRecord


def test_a_record_is_read_back_as_it_was() -> None:
    entry = BatchEntry(name="one", method="ties", models=("a", "b"), parameters={"density": [0.5, 1]})
    failed = entry.model_copy(update={"name": "two", "status": "failed", "code": 5, "problems": ("no mean",)})
    later = failed.model_copy(update={"name": "three", "code": 4})
    record = BatchRecord(plan="plan.yaml", version="0", merges=(entry, failed, later))
    assert BatchRecord.model_validate_json(record.to_json()) == record
    assert record.exit_code == 5
    assert (record.count("failed"), record.count("waiting"), record.count("made")) == (2, 1, 0)
    assert BatchRecord(plan="plan.yaml", version="0", merges=(entry,)).exit_code == 0
