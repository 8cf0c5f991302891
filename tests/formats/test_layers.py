"""Laws of layers: what is stored of an update makes its factors again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.files.tensor_file import Entry
from riemerge.formats.layers import Bias, Convolution, Embedding, Expert, Layer, Linear, parent
from riemerge.updates import LowRankUpdate


def entries(**shapes: tuple[int, ...]) -> dict[str, Entry]:
    return {side: Entry(side, "F64", shape, 0) for side, shape in shapes.items()}


MATRIX = entries(A=(2, 7), B=(5, 2))
EXPERTS = entries(A=(6, 7), B=(5, 6))


def experts(turned: bool | None) -> list[Expert]:
    return [Expert(EXPERTS, 1.0, index=i, count=3, parameters=("w",), turned=turned) for i in range(3)]


# A kind, and how PEFT makes the weight of the base model of what is stored, in its own words.
KINDS: dict[str, tuple[list[Layer], Callable[[dict[str, Tensor]], Tensor]]] = {
    "linear": ([Linear(MATRIX, 1.0)], lambda t: t["B"] @ t["A"]),
    "turned": ([Linear(MATRIX, 1.0, turned=True)], lambda t: (t["B"] @ t["A"]).T),
    "embedding": ([Embedding(MATRIX, 1.0)], lambda t: (t["B"] @ t["A"]).T),
    "bias": ([Bias(entries(bias=(5,)), 1.0)], lambda t: t["bias"]),
    "convolution 1d": (
        [Convolution(entries(A=(2, 4, 3), B=(5, 2, 1)), 1.0)],
        lambda t: torch.conv1d(t["A"].transpose(0, 1), t["B"]).transpose(0, 1),
    ),
    "convolution 2d": (
        [Convolution(entries(A=(2, 4, 3, 1), B=(5, 2, 1, 1)), 1.0)],
        lambda t: torch.conv2d(t["A"].transpose(0, 1), t["B"]).transpose(0, 1),
    ),
    "experts": (
        [*experts(turned=False)],
        lambda t: torch.einsum("ore,eri->eoi", t["B"].reshape(5, 2, 3), t["A"].reshape(3, 2, 7)),
    ),
    "experts turned": (
        [*experts(turned=True)],
        lambda t: torch.einsum("ore,eri->eio", t["B"].reshape(5, 2, 3), t["A"].reshape(3, 2, 7)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_of_an_update_is_that_update_here_and_in_peft(kind: str) -> None:
    layers, make = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    updates = []
    for layer in layers:
        (m, n), r = layer.shape, layer.rank
        b, a = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((m, r), (r, n)))
        updates.append(LowRankUpdate(b, a))
    parts = [layer.store(update) for layer, update in zip(layers, updates, strict=True)]
    stored = layers[0].gather(parts)
    assert {side: tuple(t.shape) for side, t in stored.items()} == {
        side: entry.shape for side, entry in layers[0].entries.items()
    }
    whole = torch.zeros(layers[0].stored_shape, dtype=torch.float64)
    for layer, update in zip(layers, updates, strict=True):
        b, a = layer.factors(stored)
        torch.testing.assert_close(b @ a, update.dense(), rtol=1e-14, atol=1e-14)
        whole += layer.as_stored(update.dense())
    torch.testing.assert_close(whole, make(stored), rtol=1e-13, atol=1e-13)


def test_names_say_whose_the_tensors_are() -> None:
    expert, bias = experts(turned=False)[0], Bias({}, 1.0)
    assert (bias.stem("x.q.bias"), bias.weight("x.q.bias")) == ("x.q", "x.q.bias")
    assert expert.stem("x.experts.base_layer[2]") == "x.experts.base_layer"
    assert expert.weight("x.experts.base_layer[2]") == "x.experts.w"
    assert parent("x.base_layer.experts.base_layer.base_layer") == "x.base_layer.experts"


def test_what_only_the_base_model_says_is_not_guessed() -> None:
    (expert, *_) = experts(turned=None)
    with pytest.raises(AdapterError, match="--base"):
        expert.as_stored(torch.zeros(5, 7))
    with pytest.raises(AdapterError, match=r"m\[0\]: may be of v or w: .*--base"):
        replace(expert, parameters=("v", "w")).weight("m[0]")
