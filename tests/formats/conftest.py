"""Fixtures: pico adapters, and the real ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.formats.pico import CONFIG, Pico, pico_tensors
from tests.helpers import ROOT


@pytest.fixture
def pico(tmp_path: Path) -> Pico:
    """Writes a folder as PEFT would: pico("law", tensors, r=3, use_rslora=True)."""

    def make(name: str = "law", tensors: Mapping[str, torch.Tensor] | None = None, **settings: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_file(dict(pico_tensors() if tensors is None else tensors), folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **settings}))
        return folder

    return make


@pytest.fixture(scope="session")
def real_adapters() -> Path:
    """The folder of real adapters that the project was built with; not part of the repository."""
    root = Path(os.environ.get("RIEMERGE_SHARED", ROOT.parent / "shared"))
    if not (root / "data" / "adapters").is_dir():
        pytest.skip("the shared adapters are not here; set RIEMERGE_SHARED")
    return root / "data" / "adapters"
