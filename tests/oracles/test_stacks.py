"""Stacks of layers are those that mergekit makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import make_recipe
from tests.oracles.make_tokenizers import STACKS, in_folders, write_stacks

FROZEN: dict[str, Any] = json.loads(Path(__file__).with_name("tokenizers.json").read_text())["stacks"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_stacks(root)
    return root


@pytest.mark.oracle
@pytest.mark.parametrize("name", STACKS)
def test_layers_of_a_stack_are_mergekits(models: Path, tmp_path: Path, name: str) -> None:
    recipe = make_recipe(in_folders(STACKS[name], models, {"P", "Q"}))
    merge_into(recipe, tmp_path / "out", threads=1)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["num_hidden_layers"] == FROZEN[name]["num_hidden_layers"]
    assert sorted(merged) == sorted(FROZEN[name]["tensors"])
    for key, expected in FROZEN[name]["tensors"].items():
        found = merged[key].flatten()[: len(expected)]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)
