"""`riemerge evaluate`: what its options take."""

from __future__ import annotations

from pathlib import Path

import pytest

from riemerge.study.evaluation import DEFAULT_METHODS
from riemerge.study.paired_differences import RESAMPLES
from tests.cli.runner import run


@pytest.mark.parametrize("said", [["a=b", "a=c"], ["=b"], ["a=b", "a="], ["b"]])
def test_a_task_has_one_specialist_and_a_name(folders: list[Path], tmp_path: Path, said: list[str]) -> None:
    words = [word for one in said for word in ("--specialist", one)]
    ran = run("evaluate", *folders, "-o", tmp_path / "out", "--scorer", "true {} {part}", *words)
    assert ran.exit_code == 2
    assert "expected" in ran.stderr


def test_help_says_the_defaults() -> None:
    text = "".join(run("evaluate", "--help").stdout.split())
    assert f"[default:{','.join(DEFAULT_METHODS)}]" in text
    assert f"[default:{RESAMPLES}]" in text


def test_methods_are_split_at_commas_but_not_within_a_list(folders: list[Path], tmp_path: Path) -> None:
    words = ("--methods", "ties:density=[0.3,0.7],nothing", "--scorer", "echo 1 {} {part}")
    ran = run("evaluate", *folders, "-o", tmp_path / "out", *words)
    assert ran.exit_code == 3
    assert "unknown method 'nothing'" in ran.stderr
