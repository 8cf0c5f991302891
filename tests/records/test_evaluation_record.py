"""An evaluation is found again by its names, and reads back as it was written."""

from __future__ import annotations

import pytest

from riemerge.records.evaluation_record import Evaluation
from tests.report.samples import NOTHING, evaluation


def test_an_entry_is_found_by_its_name() -> None:
    found = evaluation(NOTHING)
    assert [found.entry(entry.name) for entry in found.entries] == [*found.entries]
    with pytest.raises(StopIteration):
        found.entry("no such entry")


def test_an_evaluation_reads_back_as_it_was_written() -> None:
    found = evaluation(NOTHING)
    text = found.to_json()
    assert text.endswith("}\n")
    assert Evaluation.model_validate_json(text) == found
