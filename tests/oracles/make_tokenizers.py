"""Make tokenizers.json, what mergekit makes of models with different tokenizers: python -m tests.oracles.make_tokenizers

Needs mergekit 0.1.5 in the same environment. Computed in float32, embeddings and heads by token, since the order of
new ids is that of hashes there.
"""  # noqa: E501

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from tests.oracles.small_models import tensors, write_model, write_models

HERE = Path(__file__).parent

CASES: dict[str, dict[str, Any]] = {
    "union, ties": {"merge_method": "ties", "base_model": "base", "tokenizer_source": "union"},
    "union, linear": {"merge_method": "linear", "tokenizer_source": "union"},
    "base, ties": {"merge_method": "ties", "base_model": "base", "tokenizer_source": "base"},
    "A, linear": {"merge_method": "linear", "tokenizer_source": "A"},
}
WEIGHTS = {"A": 0.6, "B": 0.4}

STACKS: dict[str, dict[str, Any]] = {
    "passthrough": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "P", "layer_range": [0, 3]}]},
            {
                "sources": [
                    {
                        "model": "Q",
                        "layer_range": [1, 4],
                        "parameters": {"scale": [{"filter": "o_proj", "value": 0.25}, {"value": 1.0}]},
                    }
                ]
            },
        ],
    },
    "slerp": {
        "merge_method": "slerp",
        "base_model": "P",
        "slices": [
            {
                "sources": [{"model": "P", "layer_range": [0, 2]}, {"model": "Q", "layer_range": [0, 2]}],
                "parameters": {"t": [0.2, 0.8]},
            },
            {
                "sources": [{"model": "P", "layer_range": [1, 4]}, {"model": "Q", "layer_range": [1, 4]}],
                "parameters": {"t": 0.5},
            },
        ],
    },
    "linear": {
        "merge_method": "linear",
        "slices": [
            {"sources": [{"model": "P", "layer_range": [0, 2], "parameters": {"weight": 1.0}}]},
            {
                "sources": [
                    {"model": "P", "layer_range": [1, 3], "parameters": {"weight": [0.2, 0.9]}},
                    {"model": "Q", "layer_range": [2, 4], "parameters": {"weight": 0.3}},
                ]
            },
            {"sources": [{"model": "Q", "layer_range": [3, 4], "parameters": {"weight": 1.0}}]},
        ],
    },
}


def recipe_of(case: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a case of tokenizers."""
    parameters = {"density": 0.5, "normalize": True} if case["merge_method"] == "ties" else {}
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in WEIGHTS.items()]
    return {**case, "models": models, "parameters": parameters}


def write_stacks(root: Path) -> None:
    """Write the models that the stacks are made of."""
    for seed, name in enumerate("PQ"):
        write_model(root / name, tensors(7, 50 + seed, layers=4), layers=4)


def in_folders(value: Any, root: Path, names: set[str]) -> Any:
    """A recipe with the folders of its models in place of their names."""
    if isinstance(value, dict):
        return {key: in_folders(part, root, names) for key, part in value.items()}
    if isinstance(value, list):
        return [in_folders(part, root, names) for part in value]
    return str(root / value) if isinstance(value, str) and value in names else value


def run(recipe: dict[str, Any], out: Path) -> None:
    """Run mergekit."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    config = MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump({**recipe, "dtype": "float32"})))
    run_merge(config, str(out), MergeOptions(copy_tokenizer=False, write_model_card=False))


def main() -> None:
    """Write the results."""
    from transformers import AutoTokenizer

    found: dict[str, Any] = {"tokenizers": {}, "stacks": {}}
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        write_models(root)
        write_stacks(root)
        names = {path.name for path in root.iterdir()}
        for place, (name, case) in enumerate(CASES.items()):
            out = root / f"out{place}"
            run(in_folders(recipe_of(case), root, names), out)
            vocabulary = AutoTokenizer.from_pretrained(out).get_vocab()
            merged = load_file(out / "model.safetensors")
            found["tokenizers"][name] = {
                "vocab_size": json.loads((out / "config.json").read_text())["vocab_size"],
                "ids": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
                "q_proj": merged["model.layers.0.self_attn.q_proj.weight"].tolist(),
                **{
                    key: {token: merged[key][i].tolist() for token, i in vocabulary.items()}
                    for key in ("model.embed_tokens.weight", "lm_head.weight")
                },
            }
        for place, (name, recipe) in enumerate(STACKS.items()):
            out = root / f"stack{place}"
            run(in_folders(recipe, root, names), out)
            merged = load_file(out / "model.safetensors")
            found["stacks"][name] = {
                "num_hidden_layers": json.loads((out / "config.json").read_text())["num_hidden_layers"],
                "tensors": {key: merged[key].flatten()[:6].tolist() for key in sorted(merged)},
            }
    (HERE / "tokenizers.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
