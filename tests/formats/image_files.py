"""Adapters of image models in single files, from seeds, with dW by the rule of their dialect written anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import seeded

Updates = dict[str, Tensor]


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(*shape, generator=seeded(seed), dtype=torch.float64) / math.sqrt(shape[-1])).to(dtype)


def write_kohya(
    path: Path,
    modules: Mapping[str, tuple[int, int, int]],
    *,
    alpha: float | None = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    extra: Mapping[str, Tensor] | None = None,
    **header: str,
) -> Updates:
    """Write a kohya file of linear modules {name: (m, n, r)}, and return its dW."""
    tensors, updates = dict(extra or {}), {}
    for place, (module, (m, n, r)) in enumerate(sorted(modules.items())):
        down, up = (
            random(100 * seed + 2 * place + i, *s, dtype=dtype) for i, s in enumerate([(r, n), (m, r)])
        )
        tensors |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(alpha, dtype=dtype)
        updates[module] = (1.0 if alpha is None else alpha / r) * up.double() @ down.double()
    save_file(tensors, path, metadata=header or None)
    return updates


def write_diffusers(
    path: Path,
    modules: Mapping[str, tuple[int, int, int]],
    suffixes: Sequence[str] = ("lora_A.weight", "lora_B.weight"),
    *,
    seed: int = 0,
    extra: Mapping[str, Tensor] | None = None,
    **header: str,
) -> Updates:
    """Write a diffusers file of linear modules {start of a key: (m, n, r)}, and return dW of scale 1."""
    tensors, updates = dict(extra or {}), {}
    for place, (module, (m, n, r)) in enumerate(sorted(modules.items())):
        down, up = random(100 * seed + 2 * place, r, n), random(100 * seed + 2 * place + 1, m, r)
        tensors |= dict(zip((f"{module}.{suffix}" for suffix in suffixes), (down, up), strict=True))
        updates[module] = up.double() @ down.double()
    save_file(tensors, path, metadata=header or None)
    return updates
