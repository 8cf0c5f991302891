"""`riemerge soup`: progress on stderr, the result on stdout."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from riemerge.study.soups import greedy_soup
from tests.cli.runner import run


def test_every_step_has_its_line_on_stderr(folders: list[Path], tmp_path: Path) -> None:
    words = ("soup", *folders, "--scorer", "sh -c 'echo 1' {}")
    ran = run(*words, "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stderr.splitlines()[0] == "soup: a: score 1"
    assert len(ran.stderr.splitlines()) == 3
    assert ran.stdout.startswith("2 of 2: a + b: score 1\n")
    quiet = run(*words, "-o", tmp_path / "quiet", "-q")
    assert (quiet.stdout, quiet.stderr) == (f"{tmp_path / 'quiet'}\n", "")


def test_a_parameter_is_given_by_p(folders: list[Path], tmp_path: Path) -> None:
    words = ("-p", "density=0.5", "--method", "ties", "--json", "--scorer", "sh -c 'echo 1' {}")
    ran = run("soup", *folders, "-o", tmp_path / "out", *words)
    assert json.loads(ran.stdout)["record"]["method"] == "ties"


def test_help_says_the_default() -> None:
    method = inspect.signature(greedy_soup).parameters["method"].default
    assert f"[default: {method}]" in " ".join(run("soup", "--help").stdout.split())
