"""A table keeps a result under its name and key, and never holds half a line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from riemerge.errors import OutputError
from riemerge.study.result_table import ResultTable, Row


def counter() -> Callable[[], Row]:
    """Rows that say how many were made."""
    made: list[int] = []

    def make() -> Row:
        made.append(1)
        return {"value": (len(made), None)}

    return make


def test_a_result_stays_while_its_key_stays(tmp_path: Path) -> None:
    table, make = ResultTable(tmp_path / "results.jsonl"), counter()
    found = [table.keep("one", key, make, dict)["value"] for key in "aabba"]
    assert found == [[1, None], [1, None], [2, None], [2, None], [3, None]]  # as any later run reads it
    assert table.keep("two", "a", make, dict)["value"] == [4, None]
    with pytest.raises(ZeroDivisionError):
        table.keep("one", "c", lambda: {"value": 1 // 0}, dict)
    assert ResultTable(table.path).rows == {
        "one": {"name": "one", "key": "a", "value": [3, None]},
        "two": {"name": "two", "key": "a", "value": [4, None]},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_rows_that_another_process_wrote_meanwhile_stay(tmp_path: Path) -> None:
    path, make = tmp_path / "results.jsonl", counter()
    one, other = ResultTable(path), ResultTable(path)

    def slow() -> Row:
        other.keep("other", "a", make, dict)
        return make()

    one.keep("one", "a", slow, dict)
    assert list(one.rows) == ["other", "one"]


@pytest.mark.parametrize("line", ["", "{", "[1]", '{"name": "one"}', "3", "[" * 100_000])
def test_a_line_that_is_no_row_is_said_and_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    path = tmp_path / "results.jsonl"
    ResultTable(path).keep("one", "a", counter(), dict)
    path.write_text(f"{line}\n{path.read_text()}")
    table = ResultTable(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: line 1: cannot be read as a result: it is passed over"
    ]
    table.keep("two", "a", counter(), dict)
    assert list(ResultTable(path).rows) == ["one", "two"]


def test_a_row_that_cannot_be_read_as_a_result_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table, make = ResultTable(tmp_path / "results.jsonl"), counter()

    def read(row: Row) -> int:
        if row["value"][0] == 1:
            raise ValueError
        return int(row["value"][0])

    table.keep("one", "a", make, dict)
    assert table.keep("one", "a", make, read) == 2
    assert caplog.record_tuples == [
        (
            "riemerge.study.result_table",
            logging.WARNING,
            f"{table.path}: one: cannot be read as a result: it is measured again",
        )
    ]


def test_a_table_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "none" / "results.jsonl")
    with pytest.raises(OutputError):
        table.keep("one", "a", counter(), dict)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder"):
        ResultTable(tmp_path / "folder")
