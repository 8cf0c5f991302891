"""Pico adapters in the real file format, damage to them, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from riemerge.errors import AdapterError
from riemerge.formats.dialects import read_adapter

Pico = Callable[..., Path]

TENSORS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
PREFIX = "base_model.model."
CONFIG: Mapping[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "somebody/base",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q", "v"],
    "bias": "none",
    "init_lora_weights": True,
}
SHAPES = {"layers.0.q": (5, 4), "layers.0.v": (3, 4), "layers.1.q": (5, 4)}


def pico_tensors(
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    rank: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Factors by PEFT's key."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (m, n) in shapes.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(rank, n, generator=generator).to(dtype)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(m, rank, generator=generator).to(dtype)
    return tensors


def product(folder: Path, module: str) -> np.ndarray:
    """B @ A without the scale, straight from the file."""
    tensors = load_file(folder / TENSORS)
    b, a = (tensors[f"{PREFIX}{module}.lora_{side}.weight"].double().numpy() for side in "BA")
    return b @ a


def problems(folder: Path) -> list[str]:
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder)
    return list(caught.value.problems)


def config(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / SETTINGS).write_text(json.dumps({**CONFIG, **settings}))  # type: ignore[return-value]


def text(content: str | bytes, name: str = SETTINGS) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)  # type: ignore[return-value]


def check_refusal(folder: Path, damage: Callable[[Path], None], words: str) -> None:
    """Check that a good folder is refused after the damage, in printable words that name it."""
    read_adapter(folder)  # good before the damage
    damage(folder)
    faults = problems(folder)
    assert words in "\n".join(faults)
    for problem in faults:
        assert problem.startswith(str(folder))
        assert problem.isprintable()
        assert len(problem) < 1000
