"""`riemerge verify`: what it prints; each fault is in tests/study/test_verification.py."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.runner import run


def test_a_merge_is_verified_beside_its_inputs(folders: list[Path], tmp_path: Path) -> None:
    assert run("merge", *folders, "-o", tmp_path / "out").exit_code == 0
    ran = run("verify", tmp_path / "out", "--sample", 2)
    assert ran.exit_code == 0, ran.output
    files, opens, again = ran.stdout.splitlines()
    assert files.startswith("files: 2 as riemerge ")
    assert opens == "opens: adapter with the modules and shapes of its record"
    assert again.startswith("merged again: 2 of 3 modules, at most ")
    assert len(json.loads(run("verify", tmp_path / "out", "--json", "--all").stdout)["errors"]) == 3
    assert run("verify", tmp_path / "out", "-q").stdout == ""


def test_faults_are_json_too(folders: list[Path], tmp_path: Path) -> None:
    ran = run("verify", folders[0], "--json")
    assert ran.exit_code == 6
    assert json.loads(ran.stdout)["error"]["kind"] == "OutputError"
