"""Laws of kohya's files: dW by alpha over rank, names as they are, and the same bytes again."""

from __future__ import annotations

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
from tests.formats.image_files import random, write_kohya

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
MODULES = {Q: (6, 5, 2), TEXT: (7, 4, 3)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [None, 1.0, 16.0, -0.5])
def test_a_module_has_the_scale_alpha_over_rank(
    tmp_path: Path, alpha: float | None, dtype: torch.dtype
) -> None:
    updates = write_kohya(tmp_path / "a.safetensors", MODULES, alpha=alpha, dtype=dtype)
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert (adapter.dialect, adapter.dtype, adapter.modules) == ("kohya", dtype, tuple(sorted(MODULES)))
    for module, right in updates.items():
        assert torch.linalg.vector_norm(adapter.update(module).dense() - right) <= 1e-15 * right.norm() * 10


def test_the_header_names_the_base_model_and_is_carried(tmp_path: Path) -> None:
    header = {"ss_base_model_version": "sd_v1", "ss_tag": "x"}
    stale: dict[str, Any] = {**header, "ss_network_dim": "2", "sshs_model_hash": "0"}
    write_kohya(tmp_path / "a.safetensors", MODULES, **stale)
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.config.base_model_name_or_path == "sd_v1"
    updates = {module: adapter.update(module) for module in adapter.modules}
    write_adapter(tmp_path / "out", updates, dialect="kohya", like=[adapter])
    with safe_open(tmp_path / "out" / "lora.safetensors", framework="pt") as file:
        written = file.metadata()
    assert written == {**header, "ss_network_dim": "Dynamic"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scale", [0.25, 3.0, 1 / 3, -0.1, 16 / 3**0.5])
def test_what_is_written_with_a_scale_reads_back_to_the_same_bytes(
    tmp_path: Path, scale: float, dtype: torch.dtype
) -> None:
    written = LowRankUpdate(random(0, 6, 3, dtype=dtype), random(1, 3, 5, dtype=dtype), scale)
    unchanged = {Q: Rounding(dtype, 1.0, 0.0)}
    for name in ("a", "b"):
        write_adapter(tmp_path / name, {Q: written}, dialect="kohya", dtype=dtype, rounding=unchanged)
        written = read_adapter(tmp_path / name).update(Q, dtype=dtype)
        assert written.scale == pytest.approx(scale, rel=1e-15)
    first, second = ((tmp_path / name / "lora.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_folder_with_one_such_file_is_its_adapter(tmp_path: Path) -> None:
    write_kohya(tmp_path / "style.safetensors", MODULES)
    assert read_adapter(tmp_path).modules == tuple(sorted(MODULES))


@pytest.mark.parametrize(
    ("key", "tensor", "words"),
    [
        (f"{Q}.dora_scale", torch.ones(6), "DoRA"),
        (f"{Q}.hada_w1_a", torch.ones(6, 2), "riemerge convert"),
        (f"{Q}.lora_up.bias", torch.ones(6), "bias vectors"),
        ("emb_params", torch.ones(6), "embeddings of words"),
        (f"{Q}.diff", torch.ones(6, 5), "not low-rank"),
        ("what.else", torch.ones(6), "not keys of kohya's dialect"),
        (f"{Q}x.lora_up.weight", torch.ones(6, 2), "has no lora_down"),
        (f"{TEXT}.alpha", torch.ones(2), "expected one number"),
        (f"{TEXT}.alpha", torch.tensor(0.0), "scale of 0.0"),
        (f"{TEXT}.alpha", torch.tensor(torch.nan), "scale of nan"),
        (f"{TEXT}.lora_up.weight", torch.ones(7, 4), "expected (r, inputs, kernel...)"),
        (f"{TEXT}.lora_up.weight", torch.ones(7, 3, dtype=torch.int64), "stored as I64"),
        (f"{TEXT}.lora_up.weight", torch.ones(0, 3), "must not be empty"),
    ],
)
def test_what_does_not_enter_dw_is_refused_by_name(
    tmp_path: Path, key: str, tensor: torch.Tensor, words: str
) -> None:
    write_kohya(tmp_path / "a.safetensors", MODULES)
    save_file({**load_file(tmp_path / "a.safetensors"), key: tensor}, tmp_path / "b.safetensors")
    with pytest.raises(AdapterError) as fault:
        read_adapter(tmp_path / "b.safetensors")
    assert words in str(fault.value)
    assert key.partition(".")[0] in str(fault.value)


def test_names_with_dots_are_no_names_of_this_dialect(tmp_path: Path) -> None:
    update = LowRankUpdate(random(0, 6, 3), random(1, 3, 5))
    with pytest.raises(AdapterError, match="no name in kohya's dialect: model"):
        write_adapter(tmp_path / "a", {"model.layers.0.q_proj": update, Q: update}, dialect="kohya")
    assert not (tmp_path / "a").exists()


CONVOLUTION = "lora_unet_down_blocks_0_resnets_0_conv1"


def write_convolution(path: Path, *, three_factors: bool, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Write a 3 x 2 kernel of rank 2, and return its dW by LyCORIS' and by sd-scripts' own words."""
    up = random(0, 6, 2, 1, 1, dtype=dtype)
    tensors = {f"{CONVOLUTION}.lora_up.weight": up, f"{CONVOLUTION}.alpha": torch.tensor(1.0)}
    if three_factors:
        down, mid = random(1, 3, 5, 1, 1, dtype=dtype), random(2, 2, 3, 3, 2, dtype=dtype)
        tensors |= {f"{CONVOLUTION}.lora_down.weight": down, f"{CONVOLUTION}.lora_mid.weight": mid}
        flat = up.double().flatten(1).T, down.double().flatten(1)
        whole = torch.einsum("ijkl,jr,ip->prkl", mid.double(), flat[1], flat[0])
    else:
        down = random(1, 2, 5, 3, 2, dtype=dtype)
        tensors[f"{CONVOLUTION}.lora_down.weight"] = down
        turned = down.double().permute(1, 0, 2, 3)
        whole = torch.nn.functional.conv2d(turned, up.double()).permute(1, 0, 2, 3)
    save_file(tensors, path)
    return 0.5 * whole


@pytest.mark.parametrize("three_factors", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_convolution_is_its_whole_kernel_and_is_written_in_two_factors(
    tmp_path: Path, three_factors: bool, dtype: torch.dtype
) -> None:
    right = write_convolution(tmp_path / "a.safetensors", three_factors=three_factors, dtype=dtype)
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.layers[CONVOLUTION].stored_shape == right.shape
    whole = adapter.layers[CONVOLUTION].as_stored(adapter.update(CONVOLUTION).dense())
    assert torch.linalg.vector_norm(whole - right) <= 1e-14 * right.norm()
    update = adapter.update(CONVOLUTION)
    write_adapter(tmp_path / "out", {CONVOLUTION: update}, dialect="kohya", like=[adapter])
    written = read_adapter(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "lora.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in stored.items()} == {
        f"{CONVOLUTION}.alpha": (),
        f"{CONVOLUTION}.lora_down.weight": (2, 5, 3, 2),
        f"{CONVOLUTION}.lora_up.weight": (6, 2, 1, 1),
    }
    assert written.layers[CONVOLUTION].layout == adapter.layers[CONVOLUTION].layout
    assert written.update(CONVOLUTION).distance(update) <= 1e-6 * update.norm()


@pytest.mark.parametrize("side", ["lora_down", "lora_up", "lora_mid"])
def test_three_factors_that_do_not_fit_are_refused(tmp_path: Path, side: str) -> None:
    write_convolution(tmp_path / "a.safetensors", three_factors=True)
    tensors = load_file(tmp_path / "a.safetensors")
    tensors[f"{CONVOLUTION}.{side}.weight"] = tensors[f"{CONVOLUTION}.{side}.weight"][..., :1, 0].contiguous()
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(AdapterError, match=r"expected \(q, inputs, 1\.\.\.\)"):
        read_adapter(tmp_path / "b.safetensors")
