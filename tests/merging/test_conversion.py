"""Laws of conversion: there and back the same dW, and the same bytes where the dialect allows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import riemerge
from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.dialects import read_adapter
from riemerge.merging.conversion import convert
from tests.folders import family, write_folder
from tests.formats.image_files import random, write_diffusers, write_kohya

UNET = "mid_block.attentions.0.transformer_blocks.0.attn1"
NAMES = {
    "peft": (f"{UNET}.to_q", f"{UNET}.to_out.0"),
    "diffusers": (f"unet.{UNET}.to_q", f"unet.{UNET}.to_out.0"),
    "kohya": tuple(f"lora_unet_{UNET.replace('.', '_')}_{name}" for name in ("to_q", "to_out_0")),
}


def whole(adapter: Adapter) -> list[torch.Tensor]:
    return [adapter.update(module).dense() for module in sorted(adapter.modules)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_there_and_back_has_the_same_bytes(
    tmp_path: Path, first: str, second: str, dtype: torch.dtype
) -> None:
    modules = dict(zip(NAMES["kohya"], [(6, 5, 2), (7, 6, 3)], strict=True))
    write_kohya(tmp_path / "x.safetensors", modules, alpha=1.0, dtype=dtype)
    for source, target, dialect in [("x.safetensors", "0", first), ("0", "1", second), ("1", "2", first)]:
        done = convert(tmp_path / source, tmp_path / target, dialect)
        assert (done.target, done.modules, done.rounding) == (dialect, 2, 0.0)
        adapter = read_adapter(tmp_path / target)
        assert adapter.modules == tuple(sorted(NAMES[dialect]))
        assert adapter.dtype == dtype
        right = whole(read_adapter(tmp_path / "x.safetensors"))
        assert all(map(torch.equal, whole(adapter), right))
    assert [path.name for path in sorted((tmp_path / "0").iterdir())] == [
        path.name for path in sorted((tmp_path / "2").iterdir())
    ]
    for path in (tmp_path / "0").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_a_model_of_words_goes_to_mlx_and_back(tmp_path: Path) -> None:
    (modules,) = family("independent", 1)
    write_folder(tmp_path / "a", modules, lora_alpha=6)
    convert(tmp_path / "a", tmp_path / "b", "mlx")
    convert(tmp_path / "b", tmp_path / "c", "peft")
    adapter = read_adapter(tmp_path / "c")
    assert adapter.config.base_model_name_or_path == "somebody/base"
    assert all(map(torch.equal, whole(adapter), whole(read_adapter(tmp_path / "a"))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_product_becomes_a_lora_of_its_rank(tmp_path: Path, dtype: torch.dtype) -> None:
    stem = NAMES["kohya"][0]
    shapes = {"hada_w1_a": (9, 2), "hada_w1_b": (2, 8), "hada_w2_a": (9, 2), "hada_w2_b": (2, 8)}
    own = {name: random(place, *shape, dtype=dtype) for place, (name, shape) in enumerate(shapes.items())}
    save_file({f"{stem}.{name}": tensor for name, tensor in own.items()}, tmp_path / "a.safetensors")
    a, b, c, d = (tensor.double() for tensor in own.values())
    right = (a @ b) * (c @ d)
    done = convert(tmp_path / "a.safetensors", tmp_path / "lora", "peft")
    adapter = read_adapter(tmp_path / "lora")
    (module,) = adapter.modules
    assert (done.source, module, adapter.ranks[module]) == ("kohya", NAMES["peft"][0], 4)
    eps = torch.finfo(dtype).eps
    assert 0 < done.rounding <= eps
    assert torch.linalg.vector_norm(adapter.update(module).dense() - right) <= 2 * eps * right.norm()
    convert(tmp_path / "a.safetensors", tmp_path / "delta", "delta")
    (delta,) = load_file(tmp_path / "delta" / "model.safetensors").items()
    assert delta[0] == f"{NAMES['diffusers'][0]}.weight"
    assert torch.linalg.vector_norm(delta[1] - right) <= eps * right.norm()


def test_what_a_dialect_cannot_say_is_refused_by_name(tmp_path: Path) -> None:
    write_kohya(tmp_path / "a.safetensors", {"lora_te_text_model_encoder_layers_0_mlp_fc1": (6, 5, 2)})
    with pytest.raises(AdapterError, match=r"since a PEFT folder is of one model \(kohya and diffusers"):
        convert(tmp_path / "a.safetensors", tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_opened_only_when_told(tmp_path: Path) -> None:
    stem = NAMES["diffusers"][0]
    write_diffusers(tmp_path / "a.safetensors", {stem: (6, 5, 2)})
    (tmp_path / "p").mkdir()
    torch.save(load_file(tmp_path / "a.safetensors"), tmp_path / "p" / "pytorch_lora_weights.bin")
    for source in (tmp_path / "p", tmp_path / "p" / "pytorch_lora_weights.bin"):
        with pytest.raises(AdapterError, match="--allow-pickle"):
            convert(source, tmp_path / "out", "diffusers")
    convert(tmp_path / "p", tmp_path / "out", "diffusers", allow_pickle=True)
    written = read_adapter(tmp_path / "out")
    assert all(map(torch.equal, whole(written), whole(read_adapter(tmp_path / "a.safetensors"))))


@pytest.mark.parametrize("target", ["diffusers", "kohya", "delta"])
def test_one_module_under_two_names_is_refused(tmp_path: Path, target: str) -> None:
    stems = [f"lora_{model}_text_model_encoder_layers_0_mlp_fc1" for model in ("te1", "te")]
    write_kohya(tmp_path / "a.safetensors", dict.fromkeys(stems, (6, 5, 2)))
    with pytest.raises(AdapterError, match=f"a.safetensors: {stems[0]} and {stems[1]} are names of one"):
        convert(tmp_path / "a.safetensors", tmp_path / "out", target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("base", "first"), [(None, "lora_te_"), ("sdxl_base_v1-0", "lora_te1_")])
def test_the_base_in_the_header_says_how_modules_are_named(
    tmp_path: Path, base: str | None, first: str
) -> None:
    write_kohya(tmp_path / "a.safetensors", {"lora_te1_text_model_encoder_layers_0_mlp_fc1": (6, 5, 2)})
    if base is not None:
        tensors = load_file(tmp_path / "a.safetensors")
        save_file(tensors, tmp_path / "a.safetensors", {"ss_base_model_version": base})
    assert convert(tmp_path / "a.safetensors", tmp_path / "b", "diffusers").warnings == []
    done = convert(tmp_path / "b", tmp_path / "c", "kohya")
    assert all(module.startswith(first) for module in read_adapter(tmp_path / "c").modules)
    assert any("fit SD 1.5 and SDXL" in text for text in done.warnings) == (base is None)


@pytest.mark.parametrize(
    ("target", "options"), [("peft", "--rank 95% --to peft"), ("delta", "--out-type delta")]
)
def test_dora_is_merged_with_its_base(tmp_path: Path, target: str, options: str) -> None:
    (modules,) = family("independent", 1)
    source = write_folder(tmp_path / "a", modules, use_dora=True)
    tensors = load_file(source / "adapter_model.safetensors")
    lengths = {
        key.replace("lora_B.weight", "lora_magnitude_vector"): torch.ones(len(tensor))
        for key, tensor in tensors.items()
        if "lora_B" in key
    }
    save_file({**tensors, **lengths}, source / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=f"riemerge merge {source} --base BASE -o OUT {options}"):
        convert(source, tmp_path / "out", target)


def test_a_file_of_two_methods_is_to_be_split(tmp_path: Path) -> None:
    write_kohya(tmp_path / "a.safetensors", {NAMES["kohya"][0]: (6, 5, 2)})
    own = {f"{NAMES['kohya'][1]}.hada_w{i}_{side}": torch.ones(2, 2) for i in (1, 2) for side in "ab"}
    save_file({**load_file(tmp_path / "a.safetensors"), **own}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="split the file"):
        convert(tmp_path / "a.safetensors", tmp_path / "out", "kohya")
    with pytest.raises(AdapterError, match="split the file"):
        riemerge.merge([tmp_path / "a.safetensors"], method="average")


# --- merging what speaks several dialects -------------------------------------------------------------------


def test_a_mixed_pair_merges_as_after_a_conversion(tmp_path: Path) -> None:
    modules = dict(zip(NAMES["kohya"], [(6, 5, 2), (7, 6, 3)], strict=True))
    write_kohya(tmp_path / "a.safetensors", modules, alpha=3.0)
    names = dict(zip(NAMES["diffusers"], modules.values(), strict=True))
    write_diffusers(tmp_path / "b.safetensors", names, seed=1)
    convert(tmp_path / "b.safetensors", tmp_path / "b", "kohya")
    pairs = [(tmp_path / "a.safetensors", tmp_path / other) for other in ("b.safetensors", "b")]
    mixed, alike = (riemerge.merge(pair, [0.3, 0.7], method="average", rank="sum") for pair in pairs)
    assert mixed.updates.keys() == modules.keys()
    for module in modules:
        assert mixed.updates[module].distance(alike.updates[module]) <= 1e-14 * alike.updates[module].norm()
    assert any("named as in the dialect kohya" in text for text in mixed.record.warnings)
    mixed.save_pretrained(tmp_path / "out")
    assert read_adapter(tmp_path / "out").dialect == "kohya"


@pytest.mark.parametrize("dialect", NAMES)
def test_a_merge_of_one_has_its_dw_in_any_dialect(tmp_path: Path, dialect: str) -> None:
    modules = dict(zip(NAMES["kohya"], [(6, 5, 2), (7, 6, 3)], strict=True))
    updates = write_kohya(tmp_path / "a.safetensors", modules, alpha=16.0, dtype=torch.float16)
    path = tmp_path / "a.safetensors"
    riemerge.merge([path], method="average", dialect=dialect, out_dtype="float64").save_pretrained(
        tmp_path / "out"
    )
    adapter = read_adapter(tmp_path / "out")
    assert adapter.dialect == dialect
    for stem, module in zip(NAMES["kohya"], NAMES[dialect], strict=True):
        right = updates[stem]
        assert torch.linalg.vector_norm(adapter.update(module).dense() - right) <= 1e-14 * right.norm()


def test_modules_that_do_not_match_are_named(tmp_path: Path) -> None:
    write_kohya(tmp_path / "a.safetensors", {"lora_unet_double_blocks_0_img_mlp_0": (6, 5, 2)})
    write_diffusers(tmp_path / "b.safetensors", {NAMES["diffusers"][0]: (6, 5, 2)})
    with pytest.raises(AdapterError, match="no name in that of diffusers: lora_unet_double"):
        riemerge.merge([tmp_path / "b.safetensors", tmp_path / "a.safetensors"], method="average")


def test_the_unet_of_other_people_goes_to_kohya_and_back(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "adapters" / "sd15-unet-skin"
    convert(source, tmp_path / "kohya", "kohya")
    convert(tmp_path / "kohya", tmp_path / "peft", "peft")
    name = "adapter_model.safetensors"
    assert (tmp_path / "peft" / name).read_bytes() == (source / name).read_bytes()
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["alpha_pattern"]) == (4, 16, {})
