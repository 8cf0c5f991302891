"""Slices that hold all layers are plain models, with their filters and gradients; others are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from riemerge.errors import AdapterError, RecipeError
from riemerge.merging.slices import count_layers, flatten_slices, recipe_of_slice
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import Recipe, make_recipe
from tests.folders import content, family, write_family

DENSITY = [{"filter": "q", "value": [0.25, 1]}]


def sliced(ranges: dict[str, list[int]], **changes: Any) -> Recipe:
    sources: list[dict[str, Any]] = [
        {"model": model, "layer_range": layers} for model, layers in ranges.items()
    ]
    sources[0]["parameters"] = {"weight": 0.5}
    part = {"sources": sources, "parameters": {"density": DENSITY}}
    return make_recipe({"merge_method": "ties", "slices": [part], "parameters": {"density": 0.5}, **changes})


def test_all_layers_of_adapters_are_the_adapters(tmp_path: Path) -> None:
    paths = [str(path) for path in write_family(tmp_path, family("independent", 2))]
    found = flatten_slices(sliced({path: [0, 2] for path in paths}))
    plain = make_recipe(
        {
            "merge_method": "ties",
            "models": [{"model": paths[0], "parameters": {"weight": 0.5}}, {"model": paths[1]}],
            "parameters": {"density": [*DENSITY, {"value": 0.5}]},
        }
    )
    assert found.model_copy(update={"translations": ()}) == plain
    assert found.translations == ("slices: layers 0 to 1 are all layers: read as plain models",)
    merge_into(sliced({path: [0, 2] for path in paths}), tmp_path / "out")
    merge_into(plain, tmp_path / "plain")
    assert content(tmp_path / "out") == content(tmp_path / "plain")


@pytest.mark.parametrize("layers", [[0, 1], [1, 2]])
def test_some_layers_of_adapters_are_refused(tmp_path: Path, layers: list[int]) -> None:
    paths = write_family(tmp_path, family("independent", 2))
    with pytest.raises(RecipeError, match="slices: take some layers only: those of adapters"):
        merge_into(sliced({str(path): layers for path in paths}), tmp_path / "out")


@pytest.mark.parametrize(("stop", "flat"), [(2, False), (3, True), (4, False)])
def test_the_settings_of_a_checkpoint_decide(tmp_path: Path, stop: int, flat: bool) -> None:
    save_file({"layers.0.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    assert (flatten_slices(sliced({str(tmp_path): [0, stop]})).slices is None) == flat


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"num_hidden_layers": 3}, 3),
        ({"n_layer": 3}, 3),
        ({"vision_config": {"num_hidden_layers": 9}, "text_config": {"num_hidden_layers": 3}}, 3),
        ({"num_hidden_layers": "3"}, None),
        ([], None),
    ],
)
def test_the_settings_say_how_many_layers_there_are(tmp_path: Path, settings: Any, count: int | None) -> None:
    assert count_layers(str(tmp_path)) is None
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert count_layers(str(tmp_path)) == count


def test_settings_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(AdapterError, match=r"config\.json: cannot be read: is not acceptable JSON"):
        count_layers(str(tmp_path))


def test_a_stack_has_a_recipe_for_each_slice() -> None:
    parts = [
        {"sources": [{"model": "a", "layer_range": [0, 3]}]},
        {"sources": [{"model": "b", "layer_range": [1, 2], "parameters": {"scale": 0}}]},
        {"sources": [{"model": "a", "layer_range": [2, 4]}], "parameters": {"scale": 2}},
    ]
    recipe = make_recipe({"merge_method": "passthrough", "slices": parts, "parameters": {"scale": 1}})
    assert recipe.slices is not None
    assert flatten_slices(recipe) == recipe
    assert [entry.model for entry in recipe.models] == ["a", "b"]
    each = [recipe_of_slice(recipe, part) for part in recipe.slices]
    assert [one.models[0].model for one in each] == ["a", "b", "a"]
    assert [one.parameters for one in each] == [{"scale": 1.0}, {"scale": 0.0}, {"scale": 2.0}]
    assert [part.sources[0].layer_range for part in recipe.slices] == [(0, 3), (1, 2), (2, 4)]
    assert {one.merge_method for one in each} == {recipe.merge_method} == {"average"}


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ([], "slices[0].sources: a list: expected at least one item"),
        ([{"model": "a"}], "slices[0].sources[0].layer_range: missing"),
        ([{"model": "a", "layer_range": [0, 1, 2]}], "layer_range: a list: expected fewer items"),
        ([{"model": "a", "layer_range": [0, 2.5]}], "slices[0].sources[0].layer_range[1]: 2.5"),
        ([{"model": "a", "layer_range": [2, 2]}], "slices[0].sources[0].layer_range: [2, 2]: expected"),
        ([{"model": "a", "layer_range": [-1, 2]}], "slices[0].sources[0].layer_range: [-1, 2]: expected"),
        ([{"model": "a", "layer_range": [0, 2], "wieght": 1}], "unknown key 'wieght'"),
        (
            [{"model": "a", "layer_range": [0, 2], "parameters": {"densty": 1}}],
            "slices[0]: models[0].parameters: unknown key 'densty'",
        ),
        (
            [{"model": "a", "layer_range": [0, 2]}, {"model": "a", "layer_range": [2, 4]}],
            "slices[0]: a model is there twice",
        ),
        (
            [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [0, 3]}],
            "slices[0]: its sources have [2, 3] layers",
        ),
    ],
)
def test_slices_that_make_no_sense(sources: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe({"merge_method": "ties", "slices": [{"sources": sources}]})
    assert says in str(caught.value)
    assert len(caught.value.problems) == 1
    assert "validation" not in str(caught.value)


def test_faults_of_all_slices_come_at_once() -> None:
    parts = [{"sources": [{"model": "a", "layer_range": [0, 2], "parameters": {"x": 1}}]}] * 2
    with pytest.raises(RecipeError) as caught:
        make_recipe({"merge_method": "ties", "slices": parts})
    assert [text.partition(":")[0] for text in caught.value.problems] == ["slices[0]", "slices[1]"]
