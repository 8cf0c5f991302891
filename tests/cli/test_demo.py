"""`riemerge demo`: the shipped adapters merged and explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riemerge.methods import DEFAULT_METHOD
from tests.cli.runner import TENSORS, run


@pytest.mark.slow
def test_demo_merges_the_real_adapters(tmp_path: Path) -> None:
    ran = run("demo", "-o", tmp_path / "out", "--json")
    assert ran.exit_code == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["record"]["recipe"]["merge_method"] == DEFAULT_METHOD
    record = document["geomerge"]
    assert [row["name"] for row in record["inputs"]] == ["snli", "mnli", "qnli", "scitail"]
    assert record["totals"]["modules"] == 36
    assert set(record["totals"]["statuses"]) <= {"CONVERGED", "FLAT"}
    # They share their initialisation of A, and in most modules something beside it, which tells nothing.
    assert record["totals"]["determined"] == "open"
    assert (tmp_path / "out" / TENSORS).exists()


def test_demo_without_its_adapters_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("riemerge.cli.demo.__file__", str(tmp_path / "riemerge" / "cli" / "demo.py"))
    ran = run("demo")
    assert ran.exit_code == 7
    assert "the example adapters are missing" in ran.stderr


@pytest.mark.slow
def test_demo_ends_with_three_lines_on_geomerge() -> None:
    ran = run("demo", "-q")
    assert (ran.exit_code, len(ran.stdout.splitlines())) == (0, 1)
    ran = run("demo")
    answer, _, last = ran.stdout.rstrip().rpartition("\n\n")
    assert answer.startswith(f"4 adapters merged by {DEFAULT_METHOD}: snli, mnli, qnli, scitail")
    assert len(last.splitlines()) == 3
    assert last.startswith("geomerge (mean on the quotient) keeps snli ")
