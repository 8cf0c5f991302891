"""`riemerge apply`: what is shown, and how faults end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from riemerge.formats.checkpoint import read_checkpoint
from tests.cli.runner import run
from tests.folders import listing, write_folder
from tests.merging.test_application import factors, write_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", torch.bfloat16)


@pytest.fixture
def law(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "law", factors(), dtype=torch.float32)


def test_the_model_is_written_and_told(tmp_path: Path, base: Path, law: Path) -> None:
    ran = run("apply", base, law, "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    first, second, last = ran.stdout.splitlines()
    assert first == "apply: base, law: 3 modules"
    assert second.startswith("‖dW‖ ")
    assert "rank and rounding leave out" in second
    assert last == f"written to {tmp_path / 'out'}"
    assert read_checkpoint(tmp_path / "out").names == read_checkpoint(base).names


def test_json_and_quiet(tmp_path: Path, base: Path, law: Path) -> None:
    ran = run("apply", base, law, "-o", tmp_path / "a", "--json", "--out-dtype", "float32")
    shown = json.loads(ran.stdout)
    assert shown["record"] == json.loads((tmp_path / "a" / "riemerge.json").read_text())
    assert shown["record"]["settings"]["out-dtype"] == ["float32"]
    ran = run("apply", base, law, "-o", tmp_path / "b", "-q")
    assert (ran.stdout, ran.stderr) == (f"{tmp_path / 'b'}\n", "")


def test_a_prefix_is_advised_and_taken(tmp_path: Path, base: Path) -> None:
    moved = {f"model.{module}": pair for module, pair in factors().items()}
    adapter = write_folder(tmp_path / "moved", moved, dtype=torch.float32)
    ran = run("apply", base, adapter, "-o", tmp_path / "out")
    assert ran.exit_code == 4
    assert "they are there but for the prefix: --rename model.=" in ran.stderr
    assert run("apply", base, adapter, "-o", tmp_path / "out", "--rename", "model.=").exit_code == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [((), 2), (("--out-dtype", "int8"), 3), (("--rename", "x"), 3), (("--rnk", "2"), 2)],
)
def test_faults_have_the_exit_code_of_their_kind(
    tmp_path: Path, base: Path, law: Path, words: tuple[str, ...], code: int
) -> None:
    target = ["-o", tmp_path / "out"] if words else []
    before = listing(tmp_path)
    ran = run("apply", base, law, *target, *words)
    assert ran.exit_code == code
    assert ran.stdout == ""
    assert listing(tmp_path) == before


def test_both_inputs_are_protected(tmp_path: Path, base: Path, law: Path) -> None:
    for inside in (base, law):
        ran = run("apply", base, law, "-o", inside / "out")
        assert ran.exit_code == 6
        assert "lies inside the input" in ran.stderr
