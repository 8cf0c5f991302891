"""Adapter folders of known updates, in the real file format and in full precision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import riemerge
from tests.helpers import Factors, adapter_family

SHAPES = {"layers.0.q": (14, 12), "layers.0.v": (10, 12), "layers.1.q": (14, 12)}


def write_folder(
    folder: Path, modules: Mapping[str, Factors], *, dtype: torch.dtype = torch.float64, **settings: Any
) -> Path:
    """Write factors (B, A) as a PEFT folder with scale 1, unless the settings say otherwise."""
    folder.mkdir(parents=True)
    rank = next(iter(modules.values()))[0].shape[1]
    tensors = {}
    for module, (b, a) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.to(dtype).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "somebody/base",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q", "v"],
        "bias": "none",
        "init_lora_weights": True,
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def family(
    name: str, count: int, rank: int = 3, seed: int = 0, shapes: Mapping[str, tuple[int, int]] = SHAPES
) -> list[dict[str, Factors]]:
    """Adapters with several modules, each module a family of its own (see `tests.helpers.adapter_family`)."""
    columns = {
        module: adapter_family(name, count, m, n, rank, seed + 100 * place)
        for place, (module, (m, n)) in enumerate(shapes.items())
    }
    return [{module: column[i] for module, column in columns.items()} for i in range(count)]


def write_family(root: Path, adapters: Sequence[Mapping[str, Factors]], **settings: Any) -> list[Path]:
    """Write adapters into folders a, b, c, ..."""
    return [write_folder(root / "abcdefgh"[i], one, **settings) for i, one in enumerate(adapters)]


def listing(root: Path) -> list[Path]:
    """All that is under a folder."""
    return sorted(root.rglob("*"))


def content(root: Path) -> dict[str, bytes]:
    """All files but run records, which hold times, and cards, which quote them."""
    skipped = {"riemerge.json", "README.md"}
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in listing(root)
        if path.is_file() and path.name not in skipped
    }


def merge_adapters(*arguments: Any, method: str = "geomerge", **asked: Any) -> riemerge.MergeResult:
    """`riemerge.merge_adapters`, by the Fréchet mean where a test names no method."""
    return riemerge.merge_adapters(*arguments, method=method, **asked)
