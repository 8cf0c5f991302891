"""Laws of LoHa and LoKr: their two factors multiply to dW as it is defined."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.lycoris import Lycoris
from tests.formats.image_files import random

MODULE = "lora_unet_mid_block_attentions_0_proj_in"
Tensors = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


def drawn(**shapes: tuple[int, ...]) -> Tensors:
    return {name: random(place, *shape) for place, (name, shape) in enumerate(shapes.items())}


def half(own: Mapping[str, Tensor], place: int) -> Tensor:
    """One of the two matrices, by the words of PEFT and of LyCORIS."""
    if f"w{place}" in own:
        return own[f"w{place}"].double()
    a, b = own[f"w{place}_a"].double(), own[f"w{place}_b"].double()
    if f"t{place}" in own:
        return torch.einsum("ij...,jr,ip->pr...", own[f"t{place}"].double(), b, a)
    return (a @ b.flatten(1)).reshape(len(a), *b.shape[1:])


def product(method: str, own: Mapping[str, Tensor]) -> Tensor:
    first, second = half(own, 1), half(own, 2)
    if method == "hada":
        return first * second
    return torch.kron(first.reshape(*first.shape, *[1] * (second.dim() - 2)), second.contiguous())


PLAIN: Shapes = {"w1_a": (6, 2), "w1_b": (2, 5), "w2_a": (6, 2), "w2_b": (2, 5)}
FACTORS: Shapes = {"w1_a": (2, 6), "w1_b": (2, 5), "w2_a": (2, 6), "w2_b": (2, 5)}
KERNEL: Shapes = {**FACTORS, "t1": (2, 2, 3, 2), "t2": (2, 2, 3, 2)}
CASES: list[tuple[str, Shapes, float]] = [
    ("hada", PLAIN, 0.5),
    ("hada", KERNEL, 0.5),
    ("lokr", PLAIN, 0.5),
    ("lokr", {"w1": (3, 2), "w2": (4, 5)}, 1.0),
    ("lokr", {"w1": (3, 2), "w2": (4, 5, 3, 2)}, 1.0),
    ("lokr", {"w1": (3, 2), "w2_a": (4, 2), "w2_b": (2, 5)}, 0.5),
    ("lokr", {"w1": (3, 2), "w2_a": (4, 2), "w2_b": (2, 5, 3, 2)}, 0.5),
    ("lokr", {"w1_a": (3, 2), "w1_b": (2, 2), "w2_a": (2, 4), "w2_b": (2, 5), "t2": (2, 2, 3, 2)}, 0.5),
]


@pytest.mark.parametrize(("method", "shapes", "scale"), CASES)
def test_the_factors_multiply_to_what_is_defined(
    tmp_path: Path, method: str, shapes: Mapping[str, tuple[int, ...]], scale: float
) -> None:
    own = drawn(**shapes)
    tensors = {f"{MODULE}.{method}_{side}": tensor for side, tensor in own.items()}
    save_file({**tensors, f"{MODULE}.alpha": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    right = scale * product(method, own)
    adapter = Lycoris().read(tmp_path / "a.safetensors")
    layer, update = adapter.layers[MODULE], adapter.update(MODULE)
    assert (adapter.dialect, layer.stored_shape, layer.rank) == ("kohya", right.shape, update.rank)
    whole = layer.as_stored(update.dense())
    assert torch.linalg.vector_norm(whole - right) <= 1e-14 * right.norm()
    stored = layer.store(update.balance())
    assert stored["A"].shape[1:] == right.shape[1:]


@pytest.mark.parametrize("kind", ["LOHA", "LOKR"])
def test_a_folder_of_peft_says_the_scale_in_its_settings(tmp_path: Path, kind: str) -> None:
    method = {"LOHA": "hada", "LOKR": "lokr"}[kind]
    own = drawn(w1_a=(6, 2), w1_b=(2, 5), w2_a=(6, 2), w2_b=(2, 5))
    tensors = {f"base_model.model.layers.0.q.{method}_{side}": tensor for side, tensor in own.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": kind, "r": 4, "alpha": 8, "rank_pattern": {"q": 2}, "alpha_pattern": {"q": 3}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    adapter = Lycoris().read(tmp_path)
    assert adapter.dialect == "peft"
    right = 1.5 * product(method, own)
    dense = adapter.update("layers.0.q").dense()
    assert torch.linalg.vector_norm(dense - right) <= 1e-14 * right.norm()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 3}, "the factors have rank 2"),
        ({"peft_type": "LORA"}, "has no peft_type LOHA or LOKR"),
        ({"alpha": "x"}, "lora_alpha"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
    ],
)
def test_settings_that_have_no_exact_meaning_are_refused(
    tmp_path: Path, settings: Mapping[str, Any], words: str
) -> None:
    own = drawn(w1_a=(6, 2), w1_b=(2, 5), w2_a=(6, 2), w2_b=(2, 5))
    save_file({f"q.hada_{side}": own[side] for side in own}, tmp_path / "adapter_model.safetensors")
    said = {"peft_type": "LOHA", "r": 2, "alpha": 8, **settings}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(AdapterError, match=words):
        Lycoris().read(tmp_path)


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ("hada", {"w1_b": (3, 5)}, "in factors that fit"),
        ("hada", {"w2_b": None}, "in factors that fit"),
        ("hada", {"w2_a": (6, 3), "w2_b": (3, 5)}, "expected one inner size"),
        ("hada", {"w2_b": (2, 4)}, "expected two matrices of one shape"),
        ("hada", {"t1": (2, 2, 3, 3)}, "in factors that fit"),
        ("lokr", {"w1": (3, 2)}, "in factors that fit"),
        ("lokr", {"w2_b": (2, 5, 3)}, "expected a matrix, and a matrix or a kernel"),
        ("lokr", {"w2_b": (2, 5, 3, 1)}, "a Conv1d or of a Conv2d"),
        ("lokr", {"dora_scale": (6,)}, "neither LoHa's"),
    ],
)
def test_factors_that_do_not_fit_are_refused(
    tmp_path: Path, method: str, change: Mapping[str, Any], words: str
) -> None:
    shapes = {name: shape for name, shape in {**PLAIN, **change}.items() if shape is not None}
    tensors = {f"{MODULE}.{method}_{side}": tensor for side, tensor in drawn(**shapes).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=words):
        Lycoris().read(tmp_path / "a.safetensors")


def test_what_is_neither_is_not_found(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"")
    assert [Lycoris().find(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "c")] == [None] * 3
