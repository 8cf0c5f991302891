"""Full checkpoints of Llama-3-8B's shapes, a quarter of its layers, merged file to file: memory and time.

A checkpoint, and the base model with an adapter on it, are merged by `ties` over their base in the union of their
tokenizers. Both are bfloat16; they are made from seeds, a block of rows at a time, and removed again.

Run from the root of the repository: python -m benchmarks.merge_checkpoints [--quick]
Writes benchmarks/results/merge_checkpoints.json and .png; benchmarks/README.md says how to read them.
"""  # noqa: E501

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import common
from riemerge.formats.checkpoint import DenseWriter
from tests.folders import write_folder

RIEMERGE = [sys.executable, "-c", "from riemerge.cli.commands import main; main()"]
GIB = 4.0  # what is asked: the peak stays below
_BLOCK = 2**22  # numbers that are drawn at once


class Size(NamedTuple):
    """The shapes of a model."""

    tokens: int
    width: int
    inner: int
    narrow: int
    layers: int
    rank: int


FULL = Size(128_256, 4096, 14_336, 1024, 8, 16)
QUICK = Size(300, 64, 96, 32, 2, 4)


def matrices(size: Size) -> dict[str, tuple[int, int]]:
    """The shape of each module with a matrix in the layers."""
    each = {
        "self_attn.q_proj": (size.width, size.width),
        "self_attn.k_proj": (size.narrow, size.width),
        "self_attn.v_proj": (size.narrow, size.width),
        "self_attn.o_proj": (size.width, size.width),
        "mlp.gate_proj": (size.inner, size.width),
        "mlp.up_proj": (size.inner, size.width),
        "mlp.down_proj": (size.width, size.inner),
    }
    return {f"model.layers.{i}.{name}": shape for i in range(size.layers) for name, shape in each.items()}


def shapes(size: Size, tokens: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a model with so many rows of tokens."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (tokens, size.width),
        "lm_head.weight": (tokens, size.width),
        "model.norm.weight": (size.width,),
    }
    for i in range(size.layers):
        found[f"model.layers.{i}.input_layernorm.weight"] = (size.width,)
        found[f"model.layers.{i}.post_attention_layernorm.weight"] = (size.width,)
    return found | {f"{name}.weight": shape for name, shape in matrices(size).items()}


def blocks(shape: tuple[int, ...], seed: int, change: float) -> Iterator[Tensor]:
    """A tensor in blocks of rows: those of the base, and a change of them if it is not 0."""
    base, own = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    rows = max(1, _BLOCK // max(1, shape[-1])) if len(shape) > 1 else shape[0]
    for start in range(0, shape[0], rows):
        part = (min(rows, shape[0] - start), *shape[1:])
        block = torch.randn(part, generator=base).mul_(0.02)
        if change:
            block += change * torch.randn(part, generator=own)
        yield block.to(torch.bfloat16)


def write_model(folder: Path, size: Size, tokens: list[str], change: float) -> None:
    """Write a model whose tensors are those of the base, changed; new tokens are its last."""
    with DenseWriter(folder) as writer:
        for place, (name, shape) in enumerate(sorted(shapes(size, len(tokens)).items())):
            writer.add_blocks(name, shape, torch.bfloat16, blocks(shape, 2 * place, change))
        settings = {"model_type": "llama", "vocab_size": len(tokens), "num_hidden_layers": size.layers}
        writer.add_file("config.json", json.dumps(settings))
        vocabulary = {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(tokens)}}
        writer.add_file("tokenizer.json", json.dumps({"added_tokens": [], "model": vocabulary}))


def write_adapter(folder: Path, size: Size) -> None:
    """Write an adapter of all matrices of the layers."""
    draw = torch.Generator().manual_seed(7)
    factors = {
        name: (
            torch.randn(m, size.rank, generator=draw, dtype=torch.float64).mul_(1e-3),
            torch.randn(size.rank, n, generator=draw, dtype=torch.float64),
        )
        for name, (m, n) in matrices(size).items()
    }
    write_folder(folder, factors, dtype=torch.bfloat16)


def measure(run: common.Run) -> dict[str, Any]:
    """Make the models, merge them in a process of its own, and say what it took."""
    size = QUICK if run.quick else FULL
    state = common.machine(1, "safetensors")
    tokens = [f"t{i}" for i in range(size.tokens)]
    # In half of the second vocabulary the tokens have other ids, a few are new, and a few are missing.
    half = size.tokens // 2
    others = [*tokens[:half], *reversed(tokens[half + 5 :]), *(f"new{i}" for i in range(9))]
    with tempfile.TemporaryDirectory(prefix="merge_checkpoints-", dir=Path.cwd().parent) as work:
        root = Path(work)
        common.tell("making the models")
        write_model(root / "base", size, tokens, 0.0)
        write_model(root / "other", size, others, 0.002)
        write_adapter(root / "law", size)
        recipe = {
            "merge_method": "ties",
            "base_model": "base",
            "models": [{"model": "other"}, {"model": "base+law"}],
            "parameters": {"density": 0.2},
            "tokenizer": {"source": "union"},
        }
        (root / "ties.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        common.tell("merging them")
        words = [str(root / "ties.yaml"), "-o", str(root / "out"), "--threads", "1"]
        watched = common.watch([*RIEMERGE, "merge", *words], threads=1)
        nbytes = {name: sum(x.stat().st_size for x in (root / name).iterdir()) for name in ("base", "out")}
        merged = json.loads((root / "out" / "config.json").read_text(encoding="utf-8"))
    largest = 8 * len(tokens) * size.width / 2**30
    return {
        "machine": state,
        "size": size._asdict(),
        "vocabulary": merged["vocab_size"],
        "gib": {name: count / 2**30 for name, count in nbytes.items()},
        "largest_tensor_gib": largest,
        "merge": watched.row(),
        "goals": [common.goal("peak memory, GiB", watched.mib / 1024, at_most=GIB)],
    }


def tables(result: Mapping[str, Any]) -> str:
    """The figures, and what was asked of them."""
    size, merge = result["size"], result["merge"]
    head = [
        "layers",
        "tokens",
        "a model, GiB",
        "its embedding in float64, GiB",
        "seconds",
        "CPU s",
        "peak MiB",
    ]
    row = [str(size["layers"]), f"{size['tokens']}, {result['vocabulary']} in the union"]
    row += [common.number(result["gib"]["base"]), common.number(result["largest_tensor_gib"])]
    row += [common.number(merge[name]) for name in ("seconds", "cpu", "mib")]
    return "\n\n".join([common.markdown(head, [row]), common.goals_table(result["goals"])])


def picture(result: Mapping[str, Any]) -> Any:
    """What the merge holds, beside what a model and its largest tensor take."""
    figure, ((axes,),) = common.canvas(1, 1, 8, 2)
    heights = {
        "peak of the merge": result["merge"]["mib"] / 1024,
        "embedding in float64": result["largest_tensor_gib"],
        "one model on disk": result["gib"]["base"],
    }
    axes.barh(list(heights), list(heights.values()))
    axes.axvline(GIB, color="grey", linestyle=":")
    axes.set(xlabel="GiB", title="a merge of two checkpoints over their base")
    return figure


if __name__ == "__main__":
    common.execute("merge_checkpoints", "What a merge of full checkpoints holds.", measure, picture, tables)
