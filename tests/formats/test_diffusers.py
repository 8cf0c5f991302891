"""Laws of diffusers' files: every spelling of a key is one module, and the scale is that of the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from riemerge.errors import AdapterError
from riemerge.formats.dialects import read_adapter, write_adapter
from riemerge.formats.files.rounding import Rounding
from riemerge.updates import LowRankUpdate
from tests.formats.image_files import random, write_diffusers

PARENT = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_encoder.text_model.encoder.layers.0"
PEFT = ("lora_A.weight", "lora_B.weight")
OLD = ("down.weight", "up.weight")


@pytest.mark.parametrize(
    ("stem", "suffixes", "module"),
    [
        (f"{PARENT}.to_q", PEFT, f"{PARENT}.to_q"),
        (f"{PARENT}.to_q.lora", OLD, f"{PARENT}.to_q"),
        (f"{PARENT}.to_out.0.lora", OLD, f"{PARENT}.to_out.0"),
        (f"{PARENT}.processor.to_q_lora", OLD, f"{PARENT}.to_q"),
        (f"{PARENT}.processor.to_out_lora", OLD, f"{PARENT}.to_out.0"),
        (f"{PARENT}.processor.to_k_lora".removeprefix("unet."), OLD, f"{PARENT}.to_k"),
        (f"{TEXT}.self_attn.q_proj.lora_linear_layer", OLD, f"{TEXT}.self_attn.q_proj"),
        (f"{TEXT}.mlp.fc1.lora_linear_layer", OLD, f"{TEXT}.mlp.fc1"),
        (f"{TEXT}.self_attn.to_out_lora", OLD, f"{TEXT}.self_attn.out_proj"),
        ("transformer.transformer_blocks.0.attn.to_q", PEFT, "transformer.transformer_blocks.0.attn.to_q"),
    ],
)
def test_every_spelling_of_a_key_is_one_module(
    tmp_path: Path, stem: str, suffixes: tuple[str, str], module: str
) -> None:
    (right,) = write_diffusers(tmp_path / "a.safetensors", {stem: (6, 5, 2)}, suffixes).values()
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert (adapter.dialect, adapter.modules) == ("diffusers", (module,))
    assert torch.equal(adapter.update(module).dense(), right)


def test_an_alpha_scales_its_own_module(tmp_path: Path) -> None:
    q, k = f"{PARENT}.to_q", f"{PARENT}.to_k"
    extra = {f"{q}.alpha": torch.tensor(6.0)}
    updates = write_diffusers(tmp_path / "a.safetensors", {q: (6, 5, 2), k: (6, 5, 2)}, extra=extra)
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert {module: adapter.update(module).scale for module in updates} == {q: 3.0, k: 1.0}


def settings(**said: Any) -> str:
    return json.dumps({f"unet.{key}": value for key, value in said.items()})


def test_settings_in_the_header_scale_as_peft_does(tmp_path: Path) -> None:
    q, k = f"{PARENT}.to_q", f"{PARENT}.to_k"
    said = settings(
        r=2,
        lora_alpha=6,
        rank_pattern={"to_k": 3},
        alpha_pattern={r"^mid_block\..*\.to_k": 1},
        use_rslora=True,
        base_model_name_or_path="somebody/base",
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    write_diffusers(path, {q: (6, 5, 2), k: (6, 5, 3)}, lora_adapter_metadata=said)
    adapter = read_adapter(tmp_path)
    assert adapter.config.base_model_name_or_path == "somebody/base"
    scales = {module: adapter.update(module).scale for module in adapter.modules}
    assert scales == {q: 6 / 2**0.5, k: 1 / 3**0.5}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (settings(r=2, lora_alpha=6, use_dora=True), "use_dora"),
        (settings(r=4, lora_alpha=6), "the factors have rank 2"),
        (settings(r=2, lora_alpha="x"), "lora_alpha"),
        ('{"transformer.r": 2}', "says nothing of unet"),
        ("[]", "expected an object"),
        ("{", "not acceptable JSON"),
    ],
)
def test_settings_that_have_no_exact_meaning_are_refused(tmp_path: Path, said: str, words: str) -> None:
    write_diffusers(tmp_path / "a.safetensors", {f"{PARENT}.to_q": (6, 5, 2)}, lora_adapter_metadata=said)
    with pytest.raises(AdapterError) as fault:
        read_adapter(tmp_path / "a.safetensors")
    assert words in str(fault.value)


@pytest.mark.parametrize(
    ("key", "tensor", "words"),
    [
        (f"{PARENT}.to_q.lora_magnitude_vector", torch.ones(6), "DoRA"),
        (f"{PARENT}.to_q.lora_B.bias", torch.ones(6), "bias vectors"),
        ("what.else", torch.ones(6), "not keys of diffusers' dialect"),
        (f"{PARENT}.to_q.lora.up.weight", torch.ones(6, 2), "is stored twice"),
    ],
)
def test_what_does_not_enter_dw_is_refused_by_name(
    tmp_path: Path, key: str, tensor: torch.Tensor, words: str
) -> None:
    write_diffusers(tmp_path / "a.safetensors", {f"{PARENT}.to_q": (6, 5, 2)})
    save_file({**load_file(tmp_path / "a.safetensors"), key: tensor}, tmp_path / "b.safetensors")
    with pytest.raises(AdapterError) as fault:
        read_adapter(tmp_path / "b.safetensors")
    assert words in str(fault.value)


def test_settings_beside_alphas_are_refused(tmp_path: Path) -> None:
    extra = {f"{PARENT}.to_q.alpha": torch.tensor(6.0)}
    said = settings(r=2, lora_alpha=6)
    path = tmp_path / "a.safetensors"
    write_diffusers(path, {f"{PARENT}.to_q": (6, 5, 2)}, extra=extra, lora_adapter_metadata=said)
    with pytest.raises(AdapterError, match="expected one of them"):
        read_adapter(path)


def test_what_is_written_with_scales_reads_back_to_the_same_bytes(tmp_path: Path) -> None:
    modules = {f"{PARENT}.to_q": (2, 0.5), f"{PARENT}.to_k": (3, 1 / 3), f"{TEXT}.mlp.fc1": (2, 4.0)}
    updates = {
        module: LowRankUpdate(random(0, 6, rank), random(1, rank, 5), scale)
        for module, (rank, scale) in modules.items()
    }
    unchanged = {module: Rounding(torch.float32, 1.0, 0.0) for module in modules}
    for name in ("a", "b"):
        write_adapter(tmp_path / name, updates, dialect="diffusers", rounding=unchanged)
        adapter = read_adapter(tmp_path / name)
        updates = {module: adapter.update(module, dtype=torch.float32) for module in modules}
        assert {module: update.scale for module, update in updates.items()} == {
            module: scale for module, (_, scale) in modules.items()
        }
    files = [tmp_path / name / "pytorch_lora_weights.safetensors" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with safe_open(files[0], framework="pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert said["unet.rank_pattern"] == {r"^mid_block\.attentions\.0\.transformer_blocks\.0\.attn1\.to_q": 2}
    assert (said["text_encoder.r"], said["text_encoder.lora_alpha"]) == (2, 8)


def test_names_of_no_pipeline_are_refused(tmp_path: Path) -> None:
    update = LowRankUpdate(random(0, 6, 3), random(1, 3, 5))
    with pytest.raises(AdapterError, match="expected modules of the models of a pipeline"):
        write_adapter(tmp_path / "a", {"model.layers.0.q_proj": update}, dialect="diffusers")
