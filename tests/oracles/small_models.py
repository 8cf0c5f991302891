"""Small Llama checkpoints whose tokenizers differ, as folders that any package reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, INNER = 8, 12

# Tokens of each model in the order of their ids, and those of them that were added; rows without a token.
MODELS: Mapping[str, tuple[Sequence[str], Sequence[str], int]] = {
    "base": (("<unk>", "a", "b", "c", "d", "ab", "cd", "<s>"), ("<unk>", "<s>"), 0),
    # One token that no other has, and one that B has too.
    "A": (
        ("<unk>", "a", "b", "c", "d", "ab", "cd", "<s>", "<only>", "<both>"),
        ("<unk>", "<s>", "<only>", "<both>"),
        0,
    ),
    # Other ids, tokens that it lacks, tokens of its own model, rows without a token.
    "B": (("<unk>", "d", "e", "a", "b", "de", "<both>", "<s>"), ("<unk>", "<both>", "<s>"), 3),
}


def tokenizer(tokens: Sequence[str], added: Sequence[str]) -> dict[str, Any]:
    """A tokenizer of whole words, as the tokenizers library writes it."""
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **entry} for i, token in enumerate(tokens) if token in added
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "unk_token": "<unk>",
        },
    }


def tensors(rows: int, seed: int, layers: int = 1) -> dict[str, Tensor]:
    """The tensors of a Llama model."""
    draw = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, WIDTH),
        "lm_head.weight": (rows, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(layers):
        before = f"model.layers.{layer}."
        shapes |= {f"{before}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{before}mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        shapes[f"{before}mlp.down_proj.weight"] = (WIDTH, INNER)
        shapes |= {f"{before}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def settings(rows: int, layers: int = 1) -> dict[str, Any]:
    """The config.json of a Llama model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": 2,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "vocab_size": rows,
        "torch_dtype": "float32",
    }


def write_model(
    folder: Path, content: Mapping[str, Tensor], layers: int = 1, words: dict[str, Any] | None = None
) -> Path:
    """Write a model, with a tokenizer if there is one."""
    folder.mkdir(parents=True)
    save_file(dict(content), folder / "model.safetensors", metadata={"format": "pt"})
    rows = len(content["model.embed_tokens.weight"])
    (folder / "config.json").write_text(json.dumps(settings(rows, layers)))
    if words is not None:
        (folder / "tokenizer.json").write_text(json.dumps(words))
        said = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def write_models(root: Path) -> dict[str, Path]:
    """Write the models of `MODELS` into folders of their names."""
    return {
        name: write_model(root / name, tensors(len(tokens) + spare, seed), words=tokenizer(tokens, added))
        for seed, (name, (tokens, added, spare)) in enumerate(MODELS.items())
    }
