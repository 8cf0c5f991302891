"""PEFT's names of factors: what they make, what is ambiguous, and what goes with what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from riemerge.errors import AdapterError, OutputError
from riemerge.formats.checkpoint import read_checkpoint
from riemerge.formats.dialects import read_adapter, write_adapter
from riemerge.formats.layers import Bias, Convolution, Embedding, Expert, Linear
from riemerge.updates import LowRankUpdate
from tests.zoo import PREFIX, write_base, write_zoo

FILE = "adapter_model.safetensors"
MOE = "layers.0.moe"


def rewrite(folder: Path, **tensors: tuple[int, ...] | None) -> None:
    """Replace tensors by ones of other shapes, or (None) drop them; `__` stands for a dot."""
    content = load_file(folder / FILE)
    for key, shape in tensors.items():
        content.pop(PREFIX + key.replace("__", "."), None)
        if shape is not None:
            content[PREFIX + key.replace("__", ".")] = torch.ones(shape)
    save_file(content, folder / FILE)


def test_each_module_is_of_its_kind(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 0, "experts")
    write_zoo(tmp_path / "b", 0, "biases")
    kinds = {
        module: type(layer)
        for folder in ("a", "b")
        for module, layer in read_adapter(tmp_path / folder).layers.items()
    }
    assert kinds == {
        "emb": Embedding,
        "layers.0.q": Linear,
        "layers.0.conv1": Convolution,
        "layers.1.conv2": Convolution,
        **{f"layers.{name}.bias": Bias for name in ("0.q", "0.conv1", "1.conv2")},
        **{f"{MOE}[{index}]": Expert for index in range(3)},
        **{f"{MOE}.base_layer[{index}]": Expert for index in range(3)},
    }


def test_the_names_of_a_model_in_memory_are_understood(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 0, "dora")
    content = load_file(tmp_path / "a" / FILE)

    def in_memory(name: str) -> str:
        stem, _, end = name.removeprefix(PREFIX).partition(".weight")
        ends = {"lora_magnitude_vector": ".weight"}
        return f"{stem}.default{ends.get(stem.rpartition('.')[2], '')}{end}" + ".weight" * (".weight" in name)

    (tmp_path / "b").mkdir()
    save_file({in_memory(name): tensor for name, tensor in content.items()}, tmp_path / "b" / FILE)
    settings = (tmp_path / "a" / "adapter_config.json").read_text()
    (tmp_path / "b" / "adapter_config.json").write_text(settings)
    assert read_adapter(tmp_path / "b").modules == read_adapter(tmp_path / "a").modules


# What the settings say of parameters whose order the file does not tell, and what follows.
@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({}, {"": (3, 1, 3.0), ".base_layer": (3, 2, 1.5)}),
        ({"rank_pattern": {"up": 1}}, {"": (3, 1, 3.0), ".base_layer": (3, 2, 1.5)}),
        (
            {"alpha_pattern": {"moe.up": 6, "conv.": 3}, "use_rslora": True},
            {"": (3, 1, 3.0), ".base_layer": (3, 2, 6 / 2**0.5)},
        ),
        ({"rank_pattern": {}}, "is of down or up (target_parameters), of 6 rows, but r, rank_pattern and"),
        ({"target_parameters": ["moe.up"], "rank_pattern": {}}, "is of up (target_parameters), of 6 rows"),
        ({"target_parameters": ["x.up"]}, f"{MOE}.base_layer: was saved from a wrapped model"),
    ],
)
def test_the_rank_says_which_parameter_has_which_factors(
    tmp_path: Path, settings: dict[str, Any], facts: dict[str, Any] | str
) -> None:
    write_zoo(tmp_path / "a", 0, "experts", **settings)
    if isinstance(facts, str):
        with pytest.raises(AdapterError) as caught:
            read_adapter(tmp_path / "a")
        assert facts in str(caught.value)
        return
    layers = read_adapter(tmp_path / "a").layers
    for nested, (count, rank, scale) in facts.items():
        layer = layers[f"{MOE}{nested}[0]"]
        assert isinstance(layer, Expert)
        assert (layer.count, layer.rank, layer.scale) == (count, rank, scale)


def test_two_parameters_of_one_rank_and_different_scales_are_not_told_apart(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 0, "experts", rank_pattern={}, alpha_pattern={"moe.up": 7})
    rewrite(
        tmp_path / "a",
        **{
            f"{MOE}.lora_A.weight".replace(".", "__"): (6, 5),
            f"{MOE}.lora_B.weight".replace(".", "__"): (4, 6),
        },
    )
    with pytest.raises(AdapterError, match="do not tell one rank, scale and number of experts"):
        read_adapter(tmp_path / "a")


def test_a_bias_that_is_saved_whole_has_no_factors(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 0, "biases", bias="lora_only")
    rewrite(tmp_path / "a", layers__0__q__base_layer__bias=(7,))
    with pytest.raises(AdapterError, match=r"layers.0.q.bias: is saved whole and has factors too"):
        read_adapter(tmp_path / "a")


def test_a_vector_beside_experts_is_refused(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 0, "experts")
    rewrite(tmp_path / "a", **{f"{MOE}.lora_B.bias".replace(".", "__"): (4,)})
    with pytest.raises(AdapterError, match=r"moe.lora_B.bias beside factors of down or up: PEFT has none"):
        read_adapter(tmp_path / "a")


def test_a_fault_of_one_expert_is_its_own(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 0, "experts")
    content = load_file(tmp_path / "a" / FILE)
    content[f"{PREFIX}{MOE}.lora_B.weight"][2, 1] = torch.nan  # rank 1: column 1 is expert 1
    save_file(content, tmp_path / "a" / FILE)
    adapter = read_adapter(tmp_path / "a")
    assert adapter.update(f"{MOE}[0]").norm() > 0
    with pytest.raises(AdapterError, match=r"moe\[1\]: lora_B holds 1 NaN or Inf, the first at \[2, 0\]"):
        adapter.update(f"{MOE}[1]")


@pytest.mark.parametrize(
    ("shape", "says"),
    [((8,), "expected 7 numbers"), ((), "expected 7 numbers"), (None, "has no lora_magnitude_vector")],
)
def test_a_magnitude_is_one_number_for_each_output(
    tmp_path: Path, shape: tuple[int, ...] | None, says: str
) -> None:
    write_zoo(tmp_path / "a", 0, "dora")
    rewrite(tmp_path / "a", layers__0__q__lora_magnitude_vector=shape)
    with pytest.raises(AdapterError, match=says):
        read_adapter(tmp_path / "a")


def test_what_peft_wants_beside_updates_is_written_as_zeros(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 0, "experts")
    write_zoo(tmp_path / "b", 0, "biases")
    experts, biases = (read_adapter(tmp_path / name) for name in "ab")
    some = {module: experts.update(module) for module in (f"{MOE}[1]", f"{MOE}.base_layer[2]", "emb")}
    write_adapter(tmp_path / "one", some, like=[experts])
    one = read_adapter(tmp_path / "one")
    assert one.modules == tuple(sorted(["emb", *(module for module in experts.modules if MOE in module)]))
    # One rank for both parameters: which is which does not matter to the reader.
    assert {one.ranks[module] for module in one.modules} == {2}
    for module in one.modules:
        given = some.get(module)
        assert one.update(module).norm() == pytest.approx(given.norm() if given else 0.0, rel=1e-6)
    settings = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert settings["target_parameters"] == [f"{MOE}.down", f"{MOE}.up"]
    assert settings["target_modules"] == ["emb"]
    few = {module: biases.update(module) for module in ("layers.0.q", "layers.0.q.bias", "layers.0.conv1")}
    write_adapter(tmp_path / "two", few, like=[biases])
    two = read_adapter(tmp_path / "two")
    assert two.config.lora_bias
    assert two.modules == tuple(sorted([*few, "layers.0.conv1.bias"]))
    assert two.update("layers.0.conv1.bias").norm() == 0
    with pytest.raises(OutputError, match="emb: is an embedding, and other modules have a bias"):
        write_adapter(tmp_path / "three", some | few, like=[experts, biases])


def test_a_bias_is_rounded_once_and_its_rank_is_not_padded(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 0, "biases")
    adapter = read_adapter(tmp_path / "a")
    updates = {module: adapter.update(module).pad(4) for module in adapter.modules}
    write_adapter(tmp_path / "out", updates, like=[adapter], dtype=torch.bfloat16)
    out = read_adapter(tmp_path / "out")
    exact = adapter.update("layers.0.q.bias").dense()
    assert torch.equal(out.update("layers.0.q.bias").dense(), exact.to(torch.bfloat16).double())
    assert {rank for module, rank in out.ranks.items() if not module.endswith(".bias")} == {4}
    assert (out.config.r, out.ranks["layers.0.q.bias"]) == (4, 1)


def test_a_base_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_base(tmp_path / "base.safetensors")
    tensors = load_file(tmp_path / "base.safetensors")
    tensors["layers.0.q.weight"] = torch.ones(6, 7)
    tensors[f"{MOE}.down"] = torch.ones(3, 5, 5)
    tensors["emb.weight"] = tensors["emb.weight"].int()
    save_file(tensors, tmp_path / "base.safetensors")
    base = read_checkpoint(tmp_path / "base.safetensors")
    write_zoo(tmp_path / "a", 0, "dora")
    write_zoo(tmp_path / "b", 0, "experts")
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path / "a").with_base(base)
    assert len(caught.value.problems) == 2
    assert "expected layers.0.q.weight of shape (7, 6), of floats" in str(caught.value)
    assert "emb: expected emb.weight" in str(caught.value)
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path / "b").with_base(base)
    assert len(caught.value.problems) == 3
    assert f"{MOE}[0]: expected down or up of 3 experts of (4, 5)" in str(caught.value)


def test_a_row_of_zeros_cannot_be_scaled(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 0, "dora", lora_alpha=0)
    base = write_base(tmp_path / "base.safetensors")
    base["layers.0.q.weight"][3] = 0
    save_file(base, tmp_path / "base.safetensors")
    adapter = read_adapter(tmp_path / "a").with_base(read_checkpoint(tmp_path / "base.safetensors"))
    with pytest.raises(AdapterError, match=r"layers.0.q: a row of the base weight with the update is zero"):
        adapter.update("layers.0.q")
    assert isinstance(adapter.update("emb"), LowRankUpdate)
