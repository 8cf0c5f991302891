"""What the recipes of this folder name as ../NAME, from seeds: tiny Llama checkpoints and adapters."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

LAYERS, WIDTH, INNER, HEADS, GROUPS, VOCABULARY = 4, 32, 48, 4, 2, 40
RANKS = {"l1": 8, "l2": 8}
TARGETS = ("q_proj", "v_proj", "down_proj")
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH * GROUPS // HEADS, WIDTH),
    "self_attn.v_proj": (WIDTH * GROUPS // HEADS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


def base_tensors() -> dict[str, Tensor]:
    """The tensors of the base model, under the names of Llama's."""
    seeded = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens": (VOCABULARY, WIDTH), "lm_head": (VOCABULARY, WIDTH)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in SHAPES.items()}
    tensors = {
        f"{name}.weight": 0.02 * torch.randn(shape, generator=seeded) for name, shape in shapes.items()
    }
    norms = [
        f"model.layers.{i}.{name}_layernorm" for i in range(LAYERS) for name in ("input", "post_attention")
    ]
    return tensors | {f"{name}.weight": torch.ones(WIDTH) for name in [*norms, "model.norm"]}


def make_models(root: Path) -> None:
    """Write base, A, B (checkpoints in float32) and l1, l2 (adapters) into a folder."""
    base = base_tensors()
    for seed, name in enumerate(["base", "A", "B"]):
        seeded = torch.Generator().manual_seed(seed)
        spread = 0.02 * (name != "base")
        tensors = {
            key: tensor + spread * torch.randn(tensor.shape, generator=seeded) for key, tensor in base.items()
        }
        write_checkpoint(root / name, tensors)
    for seed, (name, rank) in enumerate(RANKS.items(), 10):
        write_adapter(root / name, rank, torch.Generator().manual_seed(seed))


def write_checkpoint(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": "float32"}))


def write_adapter(folder: Path, rank: int, seeded: torch.Generator) -> None:
    folder.mkdir()
    tensors = {}
    for i in range(LAYERS):
        for name, (m, n) in SHAPES.items():
            if name.rpartition(".")[2] in TARGETS:
                key = f"base_model.model.model.layers.{i}.{name}"
                tensors[f"{key}.lora_A.weight"] = 0.05 * torch.randn(rank, n, generator=seeded)
                tensors[f"{key}.lora_B.weight"] = 0.05 * torch.randn(m, rank, generator=seeded)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "example/tiny-llama",
        "r": rank,
        "lora_alpha": 16,
        "target_modules": list(TARGETS),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def numbers(tensors: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """The norm of each tensor, and its mean over fixed signs: numbers that hardly any other tensor has."""
    found = {}
    for place, (name, tensor) in enumerate(sorted(tensors.items())):
        x = tensor.double().flatten()
        signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(place)) * 2 - 1
        found[name] = (float(x.norm()), float(signs.double() @ x / len(x) ** 0.5))
    return found
