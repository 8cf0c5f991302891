"""Markdown shows what it is given, and nothing that it could mean."""

from __future__ import annotations

import yaml

from riemerge.report.markdown import as_yaml, escape, table


def test_a_table_has_a_line_for_each_row() -> None:
    assert table(("a", "b"), [("1", "2"), ("3", "4")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"


def test_yaml_reads_back_in_order() -> None:
    data = {"z": "Müller: #1", "a": ["x", 2], "long": "word " * 50}
    assert yaml.safe_load(as_yaml(data)) == data
    assert [*yaml.safe_load(as_yaml(data))] == [*data]


def test_nothing_from_outside_is_markup() -> None:
    assert escape("a|b*c<d>\n`e`") == "a\\|b\\*c\\<d\\>\\\\n\\`e\\`"


def test_what_stands_in_two_places_is_written_twice() -> None:
    shared = [1.0, 2.0]
    text = as_yaml({"a": {"t": shared}, "b": {"t": shared}, "c": (shared, shared)})
    assert "&" not in text
    assert yaml.safe_load(text)["b"] == {"t": shared}
