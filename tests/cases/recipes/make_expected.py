"""Make expected.json: what mergekit makes of the recipes, in float32, by norm and probe of each tensor.

    python -m tests.cases.recipes.make_expected      (needs mergekit 0.1.5; neither CI nor the tests do)

What it is told otherwise than the files say: the dtype; nothing about tokenizers, which these models lack; a
density of 1 where entries are dropped at random, since no two programs draw alike; folders in the place of
ids on the hub, and a weight of 1 where `linear` has none, which it asks for; and l1 and l2 merged into the
base before, since it reads no adapters (mergekit#470).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file

from tests.cases.recipes.make_models import RANKS, base_tensors, make_models, numbers, write_checkpoint

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.json"
DRAWN = ("dare", "della")
OF_ADAPTERS = "17_lora_adapters_470"
PLACES = {"example/base-7b@main": "../A", "example/chat-7b": "../B", "example/tiny-llama": "../base"}


def told(recipe: dict[str, Any]) -> dict[str, Any]:
    """What mergekit is told of a recipe."""
    dropped = ("tokenizer", "tokenizer_source", "chat_template", "name")
    data = {key: value for key, value in recipe.items() if key not in dropped} | {"dtype": "float32"}
    for level in (data, *data.get("models", ())):
        parameters = level.get("parameters", {})
        if data["merge_method"].startswith(DRAWN) and "density" in parameters:
            parameters["density"] = 1.0
        for key in {"model", "base_model"} & level.keys():
            level[key] = PLACES.get(level[key], level[key])
            if data["merge_method"] == "linear" and key == "model":
                level["parameters"] = {"weight": 1.0, **parameters}
            level[key] = level[key].replace("../l", "../on_l")
    return data


def patched(adapter: Path) -> dict[str, torch.Tensor]:
    """The base model with an adapter merged into it."""
    tensors, factors = base_tensors(), load_file(adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for key, b in factors.items():
        if key.endswith("lora_B.weight"):
            name = key.removeprefix("base_model.model.").replace("lora_B.weight", "weight")
            a = factors[key.replace("lora_B", "lora_A")]
            tensors[name] = tensors[name] + settings["lora_alpha"] / settings["r"] * b @ a
    return tensors


def main() -> None:
    expected = {}
    with tempfile.TemporaryDirectory() as temporary:
        root, base = Path(temporary), base_tensors()
        make_models(root)
        for name in RANKS:
            write_checkpoint(root / f"on_{name}", patched(root / name))
        (root / "recipes").mkdir()
        os.chdir(root / "recipes")
        for path in sorted(HERE.glob("*.yaml")):
            recipe = MergeConfiguration.model_validate(told(yaml.safe_load(path.read_text())))
            run_merge(recipe, path.stem, options=MergeOptions(quiet=True, copy_tokenizer=False))
            shards = Path(path.stem).glob("*.safetensors")
            made = {key: tensor for shard in shards for key, tensor in load_file(shard).items()}
            if path.stem == OF_ADAPTERS:
                made = {key: tensor - base[key] for key, tensor in made.items()}
            expected[path.stem] = numbers(made)
    rows = {
        name: {key: [float(f"{number:.9g}") for number in pair] for key, pair in row.items()}
        for name, row in expected.items()
    }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    EXPECTED.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
