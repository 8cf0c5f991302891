"""Settings follow the tensors: sizes of vocabularies, numbers of layers, lists with an item for each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint import read_checkpoint
from riemerge.formats.checkpoint.settings import (
    read_settings,
    resize_vocabulary,
    restack,
    take_dtype,
    take_special_tokens,
    untie_settings,
    write_settings,
)

SETTINGS = {
    "vocab_size": 10,
    "num_hidden_layers": 3,
    "layer_types": ["full", "sliding", "none"],
    "text_config": {"vocab_size": 10, "n_layer": 3},
    "vision_config": {"vocab_size": 99, "num_hidden_layers": 24},
    "rope_factors": [1.0, 2.0, 3.0],
    "bos_token_id": 1,
}


def test_the_number_of_tokens_is_changed_wherever_it_is_that_of_before() -> None:
    changed = resize_vocabulary(SETTINGS, 10, 12)
    assert changed["vocab_size"] == changed["text_config"]["vocab_size"] == 12
    assert changed["vision_config"] == SETTINGS["vision_config"]
    assert resize_vocabulary(SETTINGS, 11, 12) == SETTINGS


def test_lists_with_an_item_for_each_layer_follow_the_layers() -> None:
    changed = restack(SETTINGS, 3, [0, 1, 1, 2])
    assert changed["num_hidden_layers"] == changed["text_config"]["n_layer"] == 4
    assert changed["layer_types"] == ["full", "sliding", "sliding", "none"]
    assert changed["vision_config"] == SETTINGS["vision_config"]
    assert changed["rope_factors"] == SETTINGS["rope_factors"]
    assert restack(SETTINGS, 3, [0, 1, 2]) == SETTINGS
    with pytest.raises(AdapterError, match=r"mlp_only_layers: \[0, 2\]: names layers by their places"):
        restack({"num_hidden_layers": 3, "mlp_only_layers": [0, 2]}, 3, [0, 0, 1])


def test_special_tokens_are_those_of_the_tokenizer() -> None:
    assert take_special_tokens(SETTINGS, {"eos_token_id": [4, 5], "vocab_size": 7}) == {
        **SETTINGS,
        "eos_token_id": [4, 5],
    }


def test_settings_are_read_and_written(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert read_settings(read_checkpoint(tmp_path)) is None
    (tmp_path / "config.json").write_text(write_settings(SETTINGS))
    assert read_settings(read_checkpoint(tmp_path)) == SETTINGS
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(AdapterError, match=r"config.json: is no JSON object"):
        read_settings(read_checkpoint(tmp_path))


def test_a_dtype_is_named_anew_where_one_is_named() -> None:
    said = {"torch_dtype": "float32", "text_config": {"dtype": "torch.float16"}, "head": {"dtype": "auto"}}
    found = take_dtype(said, {torch.bfloat16})
    expected = {"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "head": {"dtype": "auto"}}
    assert found == expected
    assert take_dtype(said, {torch.bfloat16, torch.float32}) == said
    assert take_dtype(SETTINGS, {torch.bfloat16}) == SETTINGS


def test_a_head_of_its_own_is_said_on_all_levels() -> None:
    said = {"text_config": {"tie_word_embeddings": True}, "vocab_size": 7}
    expected = {"text_config": {"tie_word_embeddings": False}, "vocab_size": 7, "tie_word_embeddings": False}
    assert untie_settings(said) == expected
