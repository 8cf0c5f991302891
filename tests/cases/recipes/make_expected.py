"""Make expected.json: what mergekit itself makes of the recipes, in float32, by norm and probe of each tensor.

    python -m tests.cases.recipes.make_expected      (needs mergekit 0.1.5; neither CI nor the tests do)

What it is told otherwise than the files say: the dtype; nothing about tokenizers, which these models lack; a
density of 1 where entries are dropped at random, since no two programs draw alike; and that l1 and l2 are
base+l1 and base+l2, merged into the base before, since it reads no adapters (mergekit#470).
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

from tests.cases.recipes.make_models import base_tensors, make_models, numbers, write_checkpoint

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.json"
DRAWN = ("dare", "della")
# The hub's models have no weight for the first, which mergekit asks for.
WITHOUT = {"13_hub"}


def told(recipe: dict[str, Any], dtype: str) -> dict[str, Any]:
    """What mergekit is told of a recipe."""
    dropped = ("tokenizer", "tokenizer_source", "chat_template", "name")
    data = {key: value for key, value in recipe.items() if key not in dropped} | {"dtype": dtype}
    if data["merge_method"].startswith(DRAWN):
        for entry in data["models"]:
            if "density" in entry.get("parameters", {}):
                entry["parameters"]["density"] = 1.0
        if "density" in data.get("parameters", {}):
            data["parameters"]["density"] = 1.0
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


def merge(recipe: dict[str, Any], folder: Path, name: str, dtype: str = "float32") -> dict[str, torch.Tensor]:
    out = folder / "out" / f"{name}-{dtype}"
    configuration = MergeConfiguration.model_validate(told(recipe, dtype))
    run_merge(configuration, str(out), options=MergeOptions(random_seed=0, quiet=True, copy_tokenizer=False))
    return load_file(out / "model.safetensors") if (out / "model.safetensors").exists() else {
        key: value for part in sorted(out.glob("*.safetensors")) for key, value in load_file(part).items()
    }


def main() -> None:
    expected = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_models(root)
        (root / "recipes").mkdir()
        os.chdir(root / "recipes")
        for path in sorted(HERE.glob("*.yaml")):
            if path.stem in WITHOUT:
                continue
            recipe = yaml.safe_load(path.read_text())
            base = base_tensors()
            if path.stem.startswith("17_"):
                for name in ("l1", "l2"):
                    write_checkpoint(root / f"base+{name}", patched(root / name))
                    (root / f"base+{name}").rename(root / f"on_{name}")
                recipe["base_model"] = "../base"
                for entry in recipe["models"]:
                    entry["model"] = entry["model"].replace("../", "../on_")
            made = merge(recipe, root, path.stem)
            if path.stem.startswith("17_"):
                made = {key: made[key] - base[key] for key in made}
            print(path.stem, len(made))
            exact = merge(recipe, root, path.stem, "float64")
            exact = {k: exact[k] - (base[k] if path.stem.startswith("17_") else 0) for k in exact}
            print("  float32 against float64:", max(float((made[k]-exact[k]).norm()/exact[k].norm()) if exact[k].norm() else 0 for k in made))
            expected[path.stem] = numbers(made)
    rounded = {
        name: {key: [float(f"{x:.9g}") for x in pair] for key, pair in row.items()} for name, row in expected.items()
    }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rounded.items())
    EXPECTED.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
