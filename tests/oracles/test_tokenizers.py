"""Models with different tokenizers merge as mergekit merges them, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import make_recipe
from tests.oracles.make_tokenizers import CASES, in_folders, recipe_of
from tests.oracles.small_models import MODELS, write_models

FROZEN: dict[str, Any] = json.loads(Path(__file__).with_name("tokenizers.json").read_text())["tokenizers"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return root


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_rows_of_tokens_are_mergekits(models: Path, tmp_path: Path, name: str) -> None:
    expected = FROZEN[name]
    recipe = make_recipe(in_folders(recipe_of(CASES[name]), models, set(MODELS)))
    merge_into(recipe, tmp_path / "out", threads=1)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    words = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    ids = {**words["model"]["vocab"], **{entry["content"]: entry["id"] for entry in words["added_tokens"]}}
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert ids.keys() == expected["ids"].keys()
    assert settings["vocab_size"] == expected["vocab_size"] == len(ids)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        assert len(merged[key]) == len(ids)
        for token, row in expected[key].items():
            torch.testing.assert_close(merged[key][ids[token]], torch.tensor(row), rtol=1e-6, atol=1e-6)
    q = torch.tensor(expected["q_proj"])
    torch.testing.assert_close(merged["model.layers.0.self_attn.q_proj.weight"], q, rtol=1e-6, atol=1e-6)
