"""The text of a dry run names every input, and counts every module once."""

from __future__ import annotations

import re
from pathlib import Path

from riemerge.merging.dry_run import describe_plan
from riemerge.merging.plan import plan
from riemerge.recipes.recipe import read_recipe
from riemerge.report.plan_text import plan_lines, size
from tests.merging.merges import served


def test_kinds_of_modules_are_counted_and_inputs_named(tmp_path: Path) -> None:
    sources = served(tmp_path)
    described = describe_plan(plan(read_recipe([*map(str, sources)], {"rank": "90%"})))
    lines = plan_lines(described)
    assert all(any(line.startswith(f"  {source.name}: weight 1") for line in lines) for source in sources)
    counts = [int(match[1]) for line in lines if (match := re.match(r"  (\d+) of \d", line))]
    assert sum(counts) == len(described.modules)
    assert any("→ rank at most " in line for line in lines)
    assert any(line.startswith("writes: adapter as float64, at most ") for line in lines)


def test_names_from_outside_are_shown_as_escapes(tmp_path: Path) -> None:
    described = describe_plan(plan(read_recipe([*map(str, served(tmp_path))])))
    text = "\n".join(plan_lines(described.model_copy(update={"warnings": ("\x1b[31m",)})))
    assert "\x1b" not in text
    assert "\\x1b[31m" in text


def test_sizes_have_the_unit_that_fits() -> None:
    assert [size(count) for count in (0, 1023, 1024, 3 * 2**29, 2**50)] == [
        *("0 B", "1.02e+03 B", "1 KiB", "1.5 GiB", "1.02e+03 TiB")
    ]
