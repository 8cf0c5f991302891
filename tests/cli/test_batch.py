"""`riemerge batch`: a table on stdout, progress on stderr, and an exit code that tells of failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.runner import run
from tests.folders import listing

PLAN = "models: [a, b]\nmethods: [average, tsv]\n"


@pytest.fixture
def plan(folders: list[Path], tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def test_the_table_and_where_it_is(plan: Path, tmp_path: Path) -> None:
    ran = run("batch", plan, "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    head, average, tsv, count, where = ran.stdout.splitlines()
    assert head.split() == ["merge", "models", "method", "status", "seconds", "‖dW‖"]
    assert average.split()[:5] == ["all--average", "a,", "b", "average", "made"]
    assert tsv.startswith("all--tsv ")
    assert (count, where) == ("2 merges: 2 made", f"written to {tmp_path / 'out'}")
    assert ran.stderr.splitlines() == ["batch: 2 of 2: all--tsv: made"]
    again = run("batch", plan, "-o", tmp_path / "out", "--json")
    record = json.loads(again.stdout)["record"]
    assert [entry["status"] for entry in record["merges"]] == ["kept", "kept"]
    quiet = run("batch", plan, "-o", tmp_path / "out", "-q")
    assert (quiet.stdout, quiet.stderr) == (f"{tmp_path / 'out'}\n", "")


def test_a_dry_run_writes_nothing(plan: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    ran = run("batch", plan, "-o", tmp_path / "out", "--dry-run")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "2 merges: 2 new"
    names = [
        entry["name"]
        for entry in json.loads(run("batch", plan, "--dry-run", "--json").stdout)["plan"]["merges"]
    ]
    assert names == ["all--average", "all--tsv"]
    assert listing(tmp_path) == before


def test_the_exit_code_is_that_of_the_first_that_failed(plan: Path, tmp_path: Path) -> None:
    plan.write_text(PLAN + "merges: [{name: gone, merge_method: ties, models: [nowhere, a]}]")
    ran = run("batch", plan, "-o", tmp_path / "out")
    assert ran.exit_code == 4
    *_, count, _ = ran.stdout.splitlines()
    assert "nowhere" in "".join(ran.stdout.split())
    assert count == "3 merges: 2 made, 1 failed"
    assert run("batch", plan, "-o", tmp_path / "out", "--json").exit_code == 4


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["plan.yaml"], 2, "Missing option '-o'"),
        (["plan.yaml", "-o", "out", "--workers", "0"], 2, "x>=1"),
        (["nowhere.yaml", "-o", "out"], 3, "cannot be read"),
        (
            ["plan.yaml", "-o", "out", "--workers", "2", "--scheduler", "tcp://nowhere:1"],
            3,
            "beside a scheduler",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    plan: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, text: str
) -> None:
    monkeypatch.chdir(plan.parent)
    ran = run("batch", *words)
    assert ran.exit_code == code
    assert text in ran.stderr
