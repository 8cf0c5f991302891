"""Slices are merged each as the models that they are made of; what has no meaning is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from riemerge.errors import AdapterError, RecipeError
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import make_recipe
from tests.oracles.small_models import tensors, write_model

PROJECTION = "model.layers.{}.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "P", "Q")):
        write_model(root / name, tensors(7, seed, layers=3), layers=3)
    return root


def source(root: Path, name: str, first: int, stop: int, **parameters: Any) -> dict[str, Any]:
    return {"model": str(root / name), "layer_range": [first, stop], "parameters": parameters}


def run(recipe: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    merge_into(make_recipe(recipe), out, threads=1)
    return load_file(out / "model.safetensors")


def test_each_slice_is_merged_over_the_layers_of_the_base(root: Path, tmp_path: Path) -> None:
    parameters = {"density": 0.5, "normalize": True}
    top = {"merge_method": "ties", "base_model": str(root / "base"), "parameters": parameters}
    both = [source(root, "P", 1, 3, weight=0.3), source(root, "Q", 1, 3, weight=0.6)]
    alone = [source(root, "Q", 0, 2, weight=1.0)]
    found = run({**top, "slices": [{"sources": both}, {"sources": alone}]}, tmp_path / "stack")
    models = [
        {"model": str(root / name), "parameters": {"weight": weight}}
        for name, weight in (("P", 0.3), ("Q", 0.6))
    ]
    whole = run({**top, "models": models}, tmp_path / "both")
    last = run({**top, "models": models[1:]}, tmp_path / "alone")
    for layer, (expected, place) in enumerate([(whole, 1), (whole, 2), (last, 0), (last, 1)]):
        name, other = PROJECTION.format(layer), PROJECTION.format(place)
        torch.testing.assert_close(found[name], expected[other], rtol=1e-6, atol=1e-7)
    assert PROJECTION.format(4) not in found


def test_filters_count_the_layers_of_the_stack_and_gradients_those_of_a_slice(
    root: Path, tmp_path: Path
) -> None:
    scale = [{"filter": "layers.4.", "value": 3.0}, {"value": [1.0, 2.0]}]
    slices = [{"sources": [source(root, "P", 0, 3)]}, {"sources": [source(root, "P", 0, 3)]}]
    recipe = {"merge_method": "passthrough", "slices": slices, "parameters": {"scale": scale}}
    found, given = run(recipe, tmp_path / "out"), load_file(root / "P" / "model.safetensors")
    for layer, factor in enumerate([1.0, 1.5, 2.0, 1.0, 3.0, 2.0]):
        expected = factor * given[PROJECTION.format(layer % 3)]
        torch.testing.assert_close(found[PROJECTION.format(layer)], expected, rtol=1e-6, atol=0.0)


def test_slices_that_have_no_meaning_are_refused(root: Path, tmp_path: Path) -> None:
    base = {"merge_method": "ties", "base_model": str(root / "base"), "parameters": {"density": 0.5}}
    apart = [{"sources": [source(root, "P", 0, 2), source(root, "Q", 1, 3)]}]
    with pytest.raises(RecipeError, match=r"slices\[0\]: its sources have different layers"):
        run({**base, "slices": apart}, tmp_path / "out")
    turned = [
        {"sources": [source(root, "P", 0, 2), source(root, "Q", 0, 2)]},
        {"sources": [source(root, "Q", 0, 2), source(root, "P", 0, 2)]},
    ]
    with pytest.raises(RecipeError, match=r"slices\[1\]: slerp takes models in order"):
        run({"merge_method": "slerp", "slices": turned, "parameters": {"t": 0.5}}, tmp_path / "out")
    with pytest.raises(AdapterError, match=r"P: has 3 layers, and those of the layer_range \[2, 4\]"):
        run(
            {"merge_method": "passthrough", "slices": [{"sources": [source(root, "P", 2, 4)]}]},
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_whole_weights_are_summed_as_given_and_one_model_is_scaled(root: Path, tmp_path: Path) -> None:
    models = [
        {"model": str(root / name), "parameters": {"weight": weight}}
        for name, weight in (("P", [0.0, 0.5, 1.0]), ("Q", -0.5))
    ]
    said = {"merge_method": "linear", "parameters": {"normalize": False}}
    found = run({**said, "models": models}, tmp_path / "sum")
    scale = [{"filter": "layers.1.", "value": 2.0}, {"value": 0.5}]
    alone = [{"model": str(root / "P"), "parameters": {"scale": scale}}]
    scaled = run({"merge_method": "passthrough", "models": alone}, tmp_path / "scaled")
    p, q = (load_file(root / name / "model.safetensors") for name in "PQ")
    for layer, name in enumerate(map(PROJECTION.format, range(3))):
        torch.testing.assert_close(found[name], layer / 2 * p[name] - 0.5 * q[name], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(scaled[name], (0.5, 2.0, 0.5)[layer] * p[name], rtol=0.0, atol=0.0)


def test_the_weight_of_a_model_is_told_where_all_its_slices_agree(root: Path, tmp_path: Path) -> None:
    parts = [
        {"sources": [source(root, "P", 0, 1, weight=0.25), source(root, "Q", 0, 1)]},
        {
            "sources": [source(root, "P", 1, 2, weight=0.25), source(root, "Q", 1, 2)],
            "parameters": {"weight": 0.5},
        },
    ]
    recipe = make_recipe({"merge_method": "average", "slices": parts})
    assert recipe.weights == (0.25, None)
    record = merge_into(recipe, tmp_path / "out", threads=1).record
    assert [row.weight for row in record.inputs] == [0.25, None]
