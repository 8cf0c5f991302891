"""`riemerge check`: laws with numbers, and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.runner import run


def test_laws_that_hold_are_a_table() -> None:
    ran = run("check", "sphere:4,1")
    assert ran.exit_code == 0, ran.stderr
    assert "grad d²(x, ·)/2 = -log(y, x) at y" in ran.stdout
    assert "holds" in ran.stdout
    assert "fails" not in ran.stdout


def test_a_law_that_fails_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from riemerge.losses import Loss\n\n\nclass Off(Loss):\n"
        "    def cost(self, weights, squared):\n        return (weights * squared).sum(dim=0)\n"
        "    def pull(self, weights, squared):\n        return weights\n"
    )
    (tmp_path / "lab_of_losses.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    ran = run("check", "lab_of_losses:Off", "--json")
    assert ran.exit_code == 1
    found = json.loads(ran.stdout)["loss"]
    assert found["pull"][1] == "fails"
    assert found["zero"] == [0.0, "holds"]
    assert run("check", "nothing").exit_code == 3
