"""Laws of merging adapters whose modules are of every kind: the merge is that of the weights PEFT changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from riemerge import merge
from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.checkpoint import read_checkpoint
from riemerge.formats.dialects import read_adapter
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import make_recipe
from riemerge.records.written_ranks import written_ranks
from tests.zoo import changes_of, write_base, write_zoo


def stored_changes(folder: Path, base: Path) -> dict[str, Tensor]:
    """Return what the adapter of a folder adds to each tensor of the base model."""
    adapter = read_adapter(folder).with_base(read_checkpoint(base))
    changes: dict[str, Tensor] = {}
    for module, layer in adapter.layers.items():
        name, stored = layer.weight(module), layer.as_stored(adapter.update(module).dense())
        changes[name] = changes.get(name, torch.zeros_like(stored)) + stored
    return changes


def delta_of(out: Path, *folders: Path, **asked: Any) -> dict[str, Tensor]:
    """Merge folders to a delta in float64."""
    said = {"merge_method": "average", "out_type": "delta", "out_dtype": "float64", **asked}
    merge_into(make_recipe({"models": [{"model": str(folder)} for folder in folders], **said}), out)
    return load_file(out / "model.safetensors")


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tol: float = 1e-12) -> None:
    assert set(ours) == set(theirs)
    for name, change in theirs.items():
        torch.testing.assert_close(ours[name], change, rtol=tol, atol=tol)


# Rows of each family that are idempotent: flat, spectral, on a manifold, by entries, of the columns.
@pytest.mark.parametrize("method", ["average", "spectrum", "ties", "karcher", "geomerge", "cat"])
@pytest.mark.parametrize(("part", "rslora"), [("biases", False), ("experts", True)])
def test_the_merge_of_one_adapter_is_that_adapter(
    tmp_path: Path, method: str, part: str, rslora: bool
) -> None:
    base = tmp_path / "base.safetensors"
    write_base(base)
    tensors = write_zoo(tmp_path / "a", 1, part, use_rslora=rslora)
    expected = changes_of(tensors, rslora=rslora)
    merge([tmp_path / "a"], method=method, out_dtype="float64").save_pretrained(tmp_path / "out")
    assert_close(stored_changes(tmp_path / "out", base), expected, tol=1e-9)


@pytest.mark.parametrize("part", ["biases", "experts"])
def test_the_average_is_that_of_the_weights_and_a_delta_lies_as_the_base_model_does(
    tmp_path: Path, part: str
) -> None:
    base = tmp_path / "base.safetensors"
    write_base(base)
    parts = [changes_of(write_zoo(tmp_path / str(seed), seed, part)) for seed in (1, 2)]
    expected = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    folders = [tmp_path / "1", tmp_path / "2"]
    merge(folders, method="average", rank="sum", out_dtype="float64").save_pretrained(tmp_path / "out")
    assert_close(stored_changes(tmp_path / "out", base), expected)
    assert_close(delta_of(tmp_path / "delta", *folders, base_model=str(base)), expected)


def test_the_layout_of_experts_is_asked_for_and_not_guessed(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 1, "experts")
    with pytest.raises(AdapterError, match=r"layers.0.moe.*: name the base model, a full checkpoint, as --b"):
        delta_of(tmp_path / "delta", tmp_path / "a")
    # An adapter is written without it.
    merge([tmp_path / "a"], method="average").save_pretrained(tmp_path / "out")


def test_dora_is_exact_on_its_base_model(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    weights = write_base(base)
    expected = changes_of(write_zoo(tmp_path / "dora", 1, "dora"), weights)
    other = changes_of(write_zoo(tmp_path / "plain", 2))
    dora, plain = tmp_path / "dora", tmp_path / "plain"
    assert_close(delta_of(tmp_path / "delta", dora, base_model=str(base)), expected)
    asked: dict[str, Any] = {"method": "average", "out_dtype": "float64", "base_model": base}
    merge([dora], rank="sum", **asked).save_pretrained(tmp_path / "out")
    # What is written is a plain adapter: it is read without the base model.
    assert not read_adapter(tmp_path / "out").config.use_dora
    assert_close(stored_changes(tmp_path / "out", base), expected)
    # With a plain adapter too: no vector of lengths is averaged, but the updates are.
    merge([dora, plain], rank="sum", **asked).save_pretrained(tmp_path / "both")
    both = {name: (expected[name] + other[name]) / 2 for name in expected}
    assert_close(stored_changes(tmp_path / "both", base), both)


def test_dora_says_what_it_needs(tmp_path: Path) -> None:
    base, dora = tmp_path / "base.safetensors", tmp_path / "dora"
    write_base(base)
    write_zoo(dora, 1, "dora")
    with pytest.raises(AdapterError, match=r"dora: emb, layers.0.conv1.*as --base"):
        merge([dora], method="average", rank=2)
    with pytest.raises(
        RecipeError, match=r"parameters.rank: missing: DoRA's dW has full rank: give a number"
    ):
        merge([dora], base_model=base)
    with pytest.raises(AdapterError, match=r"layers.0.q: dW depends on the weights of the base model"):
        read_adapter(dora).update("layers.0.q")
    low = merge([dora], method="average", rank=2, base_model=base)
    assert {update.rank for update in low.updates.values()} == {2}
    (tmp_path / "no").mkdir()
    with pytest.raises(AdapterError, match="no"):
        merge([dora], rank=2, base_model=tmp_path / "no")


def test_statistics_are_of_linear_layers(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 1)
    with pytest.raises(AdapterError) as caught:
        merge([tmp_path / "a"], method="regmean", statistics=[tmp_path])
    assert len(caught.value.problems) == 3
    assert "emb: is an embedding: regmean needs statistics" in str(caught.value)


def test_a_bias_is_no_module_of_another_rank(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 1, "biases")
    result = merge([tmp_path / "a"], method="average", uniform_rank=False)
    assert set(written_ranks(result.record.recipe, result.record.modules).values()) == {2}
    assert not [text for text in result.record.warnings if "the rank differs between modules" in text]
