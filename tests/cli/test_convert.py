"""`riemerge convert`: what it prints, and how it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from tests.cli.runner import run
from tests.formats.image_files import write_kohya

MODULE = "lora_unet_mid_block_attentions_0_proj_in"


def test_a_conversion_says_what_was_done(tmp_path: Path) -> None:
    write_kohya(tmp_path / "a.safetensors", {MODULE: (6, 5, 2)})
    ran = run("convert", tmp_path / "a.safetensors", tmp_path / "b", "--to", "diffusers")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert "1 modules: kohya to diffusers" in ran.stdout
    ran = run("convert", tmp_path / "b", tmp_path / "c", "--to", "peft", "--json")
    done = json.loads(ran.stdout)
    assert done == {
        "output": str(tmp_path / "c"),
        "source": "diffusers",
        "target": "peft",
        "modules": 1,
        "rounding": 0.0,
        "warnings": [],
    }
    ran = run("convert", tmp_path / "c", tmp_path / "d", "--to", "kohya", "-q")
    assert ran.stdout == f"{tmp_path / 'd'}\n"
    assert "warning: c: the names of modules fit SD 1.5 and SDXL" in ran.stderr


class Mischief:
    """What a pickle may do as it is opened: here it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_does_nothing_and_is_refused(tmp_path: Path) -> None:
    torch.save({"a": Mischief(tmp_path / "made")}, tmp_path / "adapter_model.bin")
    asked = ["convert", tmp_path / "adapter_model.bin", tmp_path / "out", "--to", "peft"]
    ran = run(*asked)
    assert ran.exit_code == 4
    assert "--allow-pickle" in ran.stderr
    ran = run(*asked, "--allow-pickle")
    assert ran.exit_code == 4
    assert "nothing in it was executed" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_model.bin"]
    # Opened as usual, it would have been done.
    torch.load(tmp_path / "adapter_model.bin", weights_only=False)
    assert (tmp_path / "made").exists()
