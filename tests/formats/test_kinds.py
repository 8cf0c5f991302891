"""What a folder is, by the names of what is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from riemerge.formats.kinds import FACTORS, find_factors, holds_adapter, is_checkpoint, models_below


@pytest.mark.parametrize(
    ("files", "checkpoint", "below"),
    [
        ([], False, []),
        (["model.safetensors"], True, []),
        (["model.safetensors.index.json"], True, []),
        (["anything.safetensors"], True, []),
        (["pytorch_model.bin"], True, []),
        (["model.gguf"], True, []),
        (["config.json", "README.md"], False, []),
        (["training_args.bin", "optimizer.pt", "rng_state_0.pth"], False, []),
        (["adapter_config.json", "adapter_model.safetensors"], False, []),
        (["adapter_config.json", "model.safetensors"], False, []),
        (["adapter_model.bin"], False, []),
        (["adapter_model-00001-of-00002.safetensors"], False, []),
        (["adapter_model.safetensors.index.json"], False, []),
        (["checkpoint-500/adapter_config.json"], False, ["checkpoint-500"]),
        (["training_args.bin", "b/adapter_model.safetensors", "a/model.safetensors"], False, ["a", "b"]),
        (["x.bin", "style/adapter_config.json"], False, ["style"]),
        (["model.safetensors", "style/adapter_config.json"], True, ["style"]),
        (["model.safetensors", "adapter_model/adapter_config.json"], True, ["adapter_model"]),
        (["statistics.json", "q.safetensors"], False, []),
    ],
)
def test_a_folder_is_what_its_files_are_called(
    tmp_path: Path, files: list[str], checkpoint: bool, below: list[str]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert is_checkpoint(tmp_path) is checkpoint
    assert models_below(tmp_path) == below
    assert not (checkpoint and holds_adapter(tmp_path))


def test_a_file_is_a_checkpoint_and_nothing_is_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    assert is_checkpoint(tmp_path / "x")
    assert not is_checkpoint(tmp_path / "y")


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight", "kohya"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "kohya"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "diffusers"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_B.weight", "diffusers"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight", "diffusers"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight", "diffusers"),
        ("base_model.model.down_blocks.0.attentions.0.attn1.to_q.lora_A.weight", None),
        ("transformer.h.0.attn.c_attn.lora_A.weight", None),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", None),
        ("unet.mid_block.attentions.0.proj_in.weight", None),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", None),
    ],
)
def test_a_file_of_factors_is_told_by_their_names(tmp_path: Path, name: str, dialect: str | None) -> None:
    save_file({name: torch.ones(2, 2)}, tmp_path / "any.safetensors")
    for path in (tmp_path, tmp_path / "any.safetensors"):
        assert [found for found in FACTORS if find_factors(path, found)] == [*filter(None, [dialect])]
        assert is_checkpoint(path) is (dialect is None)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not any(find_factors(tmp_path, found) for found in FACTORS)
