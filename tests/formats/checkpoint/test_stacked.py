"""A stack has the layers that are asked for, bit for bit, under their new numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint import Checkpoint, read_checkpoint
from riemerge.formats.checkpoint.stacked import Run, depth_in, layers_of, run_of, stack, untie


def tensors(seed: int, layers: int = 4, before: str = "model.layers.") -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    names = [f"{before}{i}.{rest}" for i in range(layers) for rest in ("mlp.weight", "norm.bias")]
    outside = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    return {name: torch.randn(5, 3, generator=draw) for name in (*names, *outside)}


def opened(folder: Path, content: dict[str, Tensor]) -> Checkpoint:
    folder.mkdir()
    save_file(content, folder / "model.safetensors")
    return read_checkpoint(folder)


def test_layers_stand_where_they_are_asked_for(tmp_path: Path) -> None:
    given = tensors(0)
    (view,) = stack([opened(tmp_path / "a", given)], [[Run(0, 2, 1), Run(2, 3, 0)]])
    assert layers_of(view) == ("model.layers.", 5)
    for layer, source in enumerate([1, 2, 0, 1, 2]):
        for rest in ("mlp.weight", "norm.bias"):
            name = f"model.layers.{layer}.{rest}"
            expected = given[f"model.layers.{source}.{rest}"]
            assert torch.equal(view.tensor(name, dtype=None), expected)
            assert torch.equal(view.tensor(name, dtype=None, rows=[range(1, 4)]), expected[1:4])
    assert torch.equal(view.tensor("lm_head.weight", dtype=None), given["lm_head.weight"])


def test_a_model_is_where_it_has_a_part_and_else_the_base_or_zero(tmp_path: Path) -> None:
    contents = {name: tensors(seed) for seed, name in enumerate("abc")}
    models = [opened(tmp_path / name, content) for name, content in contents.items()]
    first, last = [Run(0, 1, 3), Run(1, 1, None)], [Run(0, 1, None), Run(1, 1, 2)]
    runs = [first, last, [Run(0, 1, 3), Run(1, 1, 2)]]
    a, b, c = stack(models, runs, base=models[2])
    assert a.shapes == b.shapes == c.shapes

    def is_of(view: Checkpoint, name: str, owner: str, source: str) -> bool:
        return torch.equal(view.tensor(name, dtype=None), contents[owner][source])

    one, two = "model.layers.0.mlp.weight", "model.layers.1.mlp.weight"
    third, fourth = "model.layers.2.mlp.weight", "model.layers.3.mlp.weight"
    assert is_of(a, one, "a", fourth)
    assert is_of(a, two, "c", third)
    assert is_of(b, one, "c", fourth)
    assert is_of(b, two, "b", third)
    # What embeds the tokens is of the first slice, the head and the last norm are of the last.
    assert is_of(a, "model.embed_tokens.weight", "a", "model.embed_tokens.weight")
    assert is_of(b, "model.embed_tokens.weight", "c", "model.embed_tokens.weight")
    assert is_of(a, "lm_head.weight", "c", "lm_head.weight")
    assert is_of(b, "lm_head.weight", "b", "lm_head.weight")
    alone, _ = stack(models[:2], runs[:2])
    assert not alone.tensor(two).any()
    assert alone.tensor(two, rows=[range(2), range(4, 5)]).shape == (3, 3)


def test_what_is_no_stack_of_these_layers_is_refused(tmp_path: Path) -> None:
    model = opened(tmp_path / "a", tensors(0))
    with pytest.raises(AdapterError, match=r"has 4 layers, and those of the layer_range \[3, 5\]"):
        stack([model], [[Run(0, 2, 3)]])
    two = opened(tmp_path / "two", tensors(0) | tensors(1, before="encoder.layers."))
    with pytest.raises(AdapterError, match=r"has the stacks of layers encoder.layers., model.layers."):
        layers_of(two)
    gap = {name: x for name, x in tensors(0).items() if ".1." not in name}
    with pytest.raises(AdapterError, match=r"has the layers \[0, 2, 3\]"):
        layers_of(opened(tmp_path / "gap", gap))


def test_depth_counts_from_the_first_layer_of_a_run_to_its_last() -> None:
    runs = [Run(0, 3, 0), Run(3, 1, 0)]
    found = {name: run_of(name, runs) for name in ("h.0.w", "h.2.w", "h.3.w", "wte.weight", "ln_f.weight")}
    assert found == {"h.0.w": 0, "h.2.w": 0, "h.3.w": 1, "wte.weight": 0, "ln_f.weight": 1}
    assert [depth_in(f"h.{i}.w", runs[0]) for i in range(3)] == [0.0, 0.5, 1.0]
    assert depth_in("h.3.w", runs[1]) == 1.0
    assert depth_in("wte.weight", runs[0]) == 0.0


def test_the_head_of_a_tied_model_is_its_embedding_where_others_have_one(tmp_path: Path) -> None:
    tied = {name: x for name, x in tensors(0).items() if name != "lm_head.weight"}
    one, other = opened(tmp_path / "tied", tied), opened(tmp_path / "untied", tensors(1))
    found, same = untie([one, other])
    assert same is other
    assert found.names == other.names
    for name in found.names:
        expected = tied.get(name, tied["model.embed_tokens.weight"])
        assert torch.equal(found.tensor(name, dtype=None), expected)
    assert untie([one]) == [one]
