"""Ask mergekit's own planner what its parameters are in every tensor, and store the answers.

Run with a Python that has mergekit 0.1.5: `python tests/oracles/make_parameters.py`. It writes
`parameters.json` beside itself: recipes for a Llama of five layers, and for each tensor the parameters of the
task that mergekit would run on it.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.architecture import arch_info_for_config
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from safetensors.torch import save_file
from transformers import AutoConfig, PretrainedConfig

LAYERS = 5

RECIPES: dict[str, dict[str, Any]] = {
    "scalars": {"parameters": {"density": 0.3, "weight": 2, "normalize": False}},
    "model before global": {
        "parameters": {"density": 0.3, "weight": 0.7},
        "a": {"density": 0.9},
        "b": {"weight": -0.25},
    },
    "gradient": {"parameters": {"density": [0.1, 1.0, 0.4]}, "a": {"weight": [0, 1]}, "b": {"weight": [3]}},
    "gradient with more knots than layers": {
        "parameters": {"density": [0.1, 0.2, 0.4, 0.3, 0.9, 0.8, 0.55], "weight": 1}
    },
    "gradient of truth values": {"parameters": {"normalize": [True, False, True], "weight": 1, "density": 1}},
    "filters": {
        "parameters": {
            "density": [
                {"filter": "self_attn", "value": 0.2},
                {"filter": "mlp", "value": 0.6},
                {"value": 0.5},
            ],
            "weight": [{"filter": "q_proj", "value": 0.25}, {"filter": "*", "value": 0.75}],
        }
    },
    "first filter that fits": {
        "parameters": {
            "density": [
                {"filter": "q_proj", "value": 0.1},
                {"filter": "self_attn", "value": 0.2},
                {"filter": "layers.1", "value": 0.3},
                {"filter": "proj", "value": 0.4},
                {"value": 0.5},
            ],
            "weight": 1,
        }
    },
    "gradients in filters": {
        "parameters": {
            "density": [
                {"filter": "mlp", "value": [0.1, 0.5]},
                {"filter": "norm", "value": 0.9},
                {"value": [1.0, 0.3, 0.8]},
            ],
            "weight": {"value": [0.5, 1.5]},
        }
    },
    "levels where no filter fits": {
        "parameters": {"density": [{"filter": "mlp", "value": 0.7}], "weight": 1.25},
        "a": {
            "density": [{"filter": "q_proj", "value": [0.2, 0.6]}],
            "weight": [{"filter": "layers.3", "value": 9}],
        },
        "b": {"density": [{"filter": "up_proj", "value": 0.15}, {"filter": "down_proj", "value": 0.25}]},
    },
}


def make_models(folder: Path) -> PretrainedConfig:
    """Three folders that mergekit takes for Llamas; only the names of their tensors count."""
    config = AutoConfig.for_model(
        "llama",
        num_hidden_layers=LAYERS,
        hidden_size=4,
        intermediate_size=4,
        num_attention_heads=1,
        vocab_size=4,
    )
    config.architectures = ["LlamaForCausalLM"]
    info = arch_info_for_config(config)
    names = [weight.name for weight in info.all_weights(config)]
    for name in ("base", "a", "b"):
        config.save_pretrained(folder / name)
        save_file(
            {one: torch.zeros(1) for one in names}, folder / name / "model.safetensors", {"format": "pt"}
        )
    return config


def plan(folder: Path, config: PretrainedConfig, recipe: dict[str, Any]) -> dict[str, Any]:
    """The parameters of mergekit's task for each tensor."""
    raw = {
        "merge_method": "ties",
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / name), "parameters": recipe.get(name, {})} for name in ("a", "b")],
        "parameters": recipe["parameters"],
    }
    said = MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(raw)))
    planner = MergePlanner(said, arch_info_for_config(config), MergeOptions(), config)
    planner._plan()
    answers = {}
    for weight, task in planner._tensors:
        of_models = {Path(model.model.path).name: dict(each) for model, each in task.input_parameters.items()}
        answers[weight.name] = {
            "normalize": task.parameters["normalize"],
            **{name: [of_models[one][name] for one in ("a", "b")] for name in ("weight", "density")},
        }
    return answers


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        config = make_models(Path(name))
        cases = [
            {"name": case, "recipe": recipe, "tensors": plan(Path(name), config, recipe)}
            for case, recipe in RECIPES.items()
        ]
    frozen = {"mergekit": version("mergekit"), "cases": cases}
    Path(__file__).with_name("parameters.json").write_text(
        json.dumps(frozen, indent=None, separators=(",", ":")) + "\n"
    )


if __name__ == "__main__":
    main()
