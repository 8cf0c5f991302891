"""`riemerge sweep`: progress on stderr, the result on stdout."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from riemerge.study.sweeps import sweep
from tests.cli.runner import run


def test_every_step_has_its_line_on_stderr(folders: list[Path], tmp_path: Path) -> None:
    words = ("sweep", *folders, "--scorer", "sh -c 'echo 1' {}", "--steps", 2)
    ran = run(*words, "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stderr.splitlines() == ["sweep: 0.00", "sweep: 1.00"]
    assert ran.stdout.splitlines()[0].startswith("0.00  ‖dW‖ ")
    quiet = run(*words, "-o", tmp_path / "quiet", "-q")
    assert (quiet.stdout, quiet.stderr) == (f"{tmp_path / 'quiet'}\n", "")


def test_a_parameter_is_given_by_p(folders: list[Path], tmp_path: Path) -> None:
    words = ("-p", "density=0.5", "--method", "ties", "--json", "--scorer", "sh -c 'echo 1' {}", "--steps", 2)
    ran = run("sweep", *folders, "-o", tmp_path / "out", *words)
    assert json.loads(ran.stdout)["record"]["method"] == "ties"


def test_help_says_the_default() -> None:
    method = inspect.signature(sweep).parameters["method"].default
    assert f"[default: {method}]" in " ".join(run("sweep", "--help").stdout.split())
