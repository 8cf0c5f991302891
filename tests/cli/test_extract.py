"""`riemerge extract`: what is shown, and how faults end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riemerge.formats.dialects import read_adapter
from tests.cli.runner import run
from tests.folders import listing
from tests.merging.test_extraction import MODULES, tuned, weights, write


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base", weights())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "tuned", tuned(4))


def test_the_adapter_is_written_and_told(tmp_path: Path, base: Path, model: Path) -> None:
    ran = run("extract", base, model, "-o", tmp_path / "out", "--rank", 4)
    assert ran.exit_code == 0, ran.stderr
    first, second, last = ran.stdout.splitlines()
    assert first == "extract: base, tuned: 3 modules"
    assert second.endswith("rank and rounding leave out 0.00% of it")
    assert last == f"written to {tmp_path / 'out'}"
    assert read_adapter(tmp_path / "out").modules == tuple(MODULES)


def test_json_a_share_and_names(tmp_path: Path, base: Path, model: Path) -> None:
    words = ("--rank", "80%", "--modules", "q_proj,lm_head", "--others", "drop", "--base-name", "org/base")
    ran = run("extract", base, model, "-o", tmp_path / "out", "--json", *words)
    assert ran.exit_code == 0, ran.stderr
    record = json.loads(ran.stdout)["record"]
    assert record == json.loads((tmp_path / "out" / "riemerge.json").read_text())
    assert [row["module"] for row in record["modules"]] == [name for name in MODULES if "q_proj" in name]
    assert all(0.8 <= row["energy_kept"] < 1 for row in record["modules"])
    assert "model.layers.0.v_proj.weight by" in ran.stderr
    assert read_adapter(tmp_path / "out").config.base_model_name_or_path == "org/base"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("--rank", "x"), 3),
        (("--rank", "2", "--modules", "k_proj"), 3),
        (("--rank", "2", "--others", "keep"), 3),
        (("--rank", "2", "--device", "tpu"), 3),
        (("--rank", "2", "--modules", "v_proj"), 4),
    ],
)
def test_faults_have_the_exit_code_of_their_kind(
    tmp_path: Path, base: Path, model: Path, words: tuple[str, ...], code: int
) -> None:
    before = listing(tmp_path)
    ran = run("extract", base, model, "-o", tmp_path / "out", *words)
    assert ran.exit_code == code
    assert ran.stdout == ""
    assert listing(tmp_path) == before
