"""Pico adapters in the real file format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Pico = Callable[..., Path]

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
