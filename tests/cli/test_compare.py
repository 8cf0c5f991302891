"""`riemerge compare`: the table on stdout, files in the folder, and a comparison that goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from riemerge.study.solver_comparison import DEFAULT_SOLVERS
from tests.cli.runner import run
from tests.folders import content
from tests.frechet.problems import ITERATIVE

WORDS = "--solvers", "lbfgs,conjugate_gradient:beta=LiuStorey"


def test_a_comparison_is_shown_written_and_goes_on(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "matplotlib", None
    )  # pictures take seconds, and have a test of their own
    out = tmp_path / "out"
    ran = run("compare", *folders, "-o", out, *WORDS)
    assert ran.exit_code == 0, ran.stderr
    assert "2 of 2 solvers reach the same certified cost" in ran.stdout
    assert ran.stdout.splitlines()[-1] == f"written to {out}/comparison.html"
    assert "No pictures: matplotlib is not installed" in ran.stderr
    names = {"comparison.json", "comparison.csv", "comparison.html", "runs"}
    assert names == {path.name for path in out.iterdir()}
    files = content(out)
    again = run("compare", *folders, "-o", out, *WORDS, "--json", "-q")
    assert content(out) == files  # seconds included: nothing ran
    record = json.loads(again.stdout)["record"]
    assert record == json.loads(files["comparison.json"])
    assert {row["solver"] for row in record["runs"]} == {"lbfgs", "conjugate_gradient:beta=LiuStorey"}


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--solvers", "lbfg"), "did you mean 'lbfgs'"), (("--losses", "squar"), "did you mean 'square'")],
)
def test_unknown_names_are_refused(
    folders: list[Path], tmp_path: Path, words: tuple[str, str], message: str
) -> None:
    ran = run("compare", *folders, "-o", tmp_path / "out", *words)
    assert ran.exit_code == 3
    assert message in ran.stderr


def test_every_solver_of_the_package_is_compared_by_default() -> None:
    assert {solver.partition(":")[0] for solver in DEFAULT_SOLVERS} == set(ITERATIVE)
    assert len(DEFAULT_SOLVERS) >= 9
