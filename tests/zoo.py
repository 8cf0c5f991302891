"""Adapters with one module of each kind of layer, in PEFT's files, and what PEFT's formulas make of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

PREFIX = "base_model.model."
SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "somebody/base",
    "r": 2,
    "lora_alpha": 3,
    "bias": "none",
    "target_modules": ["layers.0.q", "layers.0.conv1", "layers.1.conv2", "emb"],
}
SHAPES: dict[str, tuple[int, ...]] = {
    "layers.0.q.lora_A.weight": (2, 6),
    "layers.0.q.lora_B.weight": (7, 2),
    "layers.0.conv1.lora_A.weight": (2, 4, 3),
    "layers.0.conv1.lora_B.weight": (6, 2, 1),
    "layers.1.conv2.lora_A.weight": (2, 3, 3, 2),
    "layers.1.conv2.lora_B.weight": (5, 2, 1, 1),
    "emb.lora_embedding_A": (2, 11),
    "emb.lora_embedding_B": (6, 2),
}
BIASES: dict[str, tuple[int, ...]] = {
    "layers.0.q.lora_B.bias": (7,),
    "layers.0.conv1.lora_B.bias": (6,),
    "layers.1.conv2.lora_B.bias": (5,),
}
# Three experts of two parameters, the first of rank 2 and the second of rank 1.
EXPERTS: dict[str, tuple[int, ...]] = {
    "layers.0.moe.base_layer.lora_A.weight": (6, 4),
    "layers.0.moe.base_layer.lora_B.weight": (10, 6),
    "layers.0.moe.lora_A.weight": (3, 5),
    "layers.0.moe.lora_B.weight": (4, 3),
}
MAGNITUDES: dict[str, tuple[int, ...]] = {
    "layers.0.q.lora_magnitude_vector": (7,),
    "layers.0.conv1.lora_magnitude_vector": (1, 6, 1),
    "layers.1.conv2.lora_magnitude_vector": (1, 5, 1, 1),
    "emb.lora_magnitude_vector": (6,),
}
PARTS: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "biases": (BIASES, {"lora_bias": True}),
    "experts": (
        EXPERTS, {"target_parameters": ["moe.up", "moe.down"], "rank_pattern": {"moe.down": 1}}
    ),
    "dora": (MAGNITUDES, {"use_dora": True}),
}  # fmt: skip
BASE = {
    "layers.0.q.weight": (7, 6),
    "layers.0.q.bias": (7,),
    "layers.0.conv1.weight": (6, 4, 3),
    "layers.0.conv1.bias": (6,),
    "layers.1.conv2.weight": (5, 3, 3, 2),
    "layers.1.conv2.bias": (5,),
    "emb.weight": (11, 6),
    "layers.0.moe.up": (3, 10, 4),
    "layers.0.moe.down": (3, 5, 4),  # turned
}


def write_zoo(folder: Path, seed: int, *parts: str, **settings: Any) -> dict[str, Tensor]:
    """Write an adapter with one module of each kind, and some of `PARTS`; returns its tensors in float64.

    PEFT has no biases of factors beside embeddings or experts: with them there is no embedding.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes, said = dict(SHAPES), {**SETTINGS}
    for part in parts:
        shapes |= PARTS[part][0]
        said |= PARTS[part][1]
    if "biases" in parts:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("emb")}
    folder.mkdir(parents=True)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file({PREFIX + name: x for name, x in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**said, **settings}))
    return {name: tensor.double() for name, tensor in tensors.items()}


def write_base(path: Path) -> dict[str, Tensor]:
    """Write the base model of all zoos; returns its tensors in float64."""
    generator = torch.Generator().manual_seed(99)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in BASE.items()}
    save_file(tensors, path)
    return {name: tensor.double() for name, tensor in tensors.items()}


def changes_of(
    x: dict[str, Tensor], base: dict[str, Tensor] | None = None, rslora: bool = False
) -> dict[str, Tensor]:
    """Return what PEFT 0.21.2 adds to each tensor of the base model, by its own formulas.

    Args:
        x: The tensors of a zoo.
        base: The tensors of the base model, for DoRA.
        rslora: Whether the scale is alpha / √r.
    """
    s = 3 / math.sqrt(2) if rslora else 1.5
    one = "layers.0.conv1"
    two = "layers.1.conv2"
    changes = {
        "layers.0.q.weight": s * x["layers.0.q.lora_B.weight"] @ x["layers.0.q.lora_A.weight"],
        f"{one}.weight": s
        * torch.conv1d(x[f"{one}.lora_A.weight"].transpose(0, 1), x[f"{one}.lora_B.weight"]).transpose(0, 1),
        f"{two}.weight": s
        * torch.conv2d(x[f"{two}.lora_A.weight"].transpose(0, 1), x[f"{two}.lora_B.weight"]).transpose(0, 1),
    }
    if "emb.lora_embedding_A" in x:
        changes["emb.weight"] = s * (x["emb.lora_embedding_B"] @ x["emb.lora_embedding_A"]).T
    changes |= {name.replace(".lora_B", ""): s * x[name] for name in BIASES if name in x}
    if (moe := "layers.0.moe") + ".lora_A.weight" in x:
        up, down = f"{moe}.base_layer", moe
        changes[f"{moe}.up"] = s * torch.einsum(
            "ore,eri->eoi",
            x[f"{up}.lora_B.weight"].reshape(10, 2, 3),
            x[f"{up}.lora_A.weight"].reshape(3, 2, 4),
        )
        changes[f"{moe}.down"] = 3 * torch.einsum(
            "ore,eri->eio",
            x[f"{down}.lora_B.weight"].reshape(4, 1, 3),
            x[f"{down}.lora_A.weight"].reshape(3, 1, 5),
        )
    if "emb.lora_magnitude_vector" in x:
        assert base is not None
        for name, change in changes.items():
            magnitude = x[name.replace(".weight", ".lora_magnitude_vector")].flatten()
            turned = base[name] + change
            # Of an embedding the dimensions, of all others the outputs.
            axis = 1 if name == "emb.weight" else 0
            shape = [-1 if i == axis else 1 for i in range(turned.ndim)]
            others = [i for i in range(turned.ndim) if i != axis]
            lengths = turned.square().sum(dim=others, keepdim=True).sqrt()
            changes[name] = magnitude.view(shape) / lengths * turned - base[name]
    return changes
