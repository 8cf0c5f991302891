"""The recipe of a record, written as a file, is what was merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from riemerge.merging.sequence import merge_documents
from riemerge.merging.sinks import Written
from riemerge.recipes.recipe import read_recipes
from tests.folders import family, write_family
from tests.oracles.small_models import tensors, write_model

TWO = """
name: first
merge_method: linear
models: [{model: a, parameters: {weight: 0.5}}, {model: b}]
parameters: {weight: 0.25}
---
name: second
merge_method: average
models: [{model: first}, {model: c}]
---
merge_method: ties
models: [{model: second}, {model: first}]
parameters: {density: [0.5, 1.0]}
"""

SLICES = """
merge_method: ties
base_model: base
slices:
- sources:
  - {model: P, layer_range: [1, 3], parameters: {weight: [0.3, 0.5]}}
  - {model: Q, layer_range: [1, 3]}
  parameters: {density: 0.3, weight: 0.2, scale: [1.0, 2.0]}
- sources:
  - {model: Q, layer_range: [0, 2]}
  - {model: P, layer_range: [0, 2]}
parameters: {normalize: true}
"""


def merge(root: Path, text: str, out: str) -> Written:
    (root / "recipe.yaml").write_text(text)
    return merge_documents(read_recipes([str(root / "recipe.yaml")]), root / out, threads=1)


def recipe_in_card(folder: Path) -> str:
    return (folder / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]


@pytest.mark.parametrize("text", [TWO, SLICES], ids=["documents", "slices"])
def test_the_recipe_in_a_card_merges_the_same_again(tmp_path: Path, text: str) -> None:
    write_family(tmp_path, family("independent", 3), base_model_name_or_path="somebody/base")
    for seed, name in enumerate(("base", "P", "Q")):
        write_model(tmp_path / name, tensors(7, seed, layers=3), layers=3)
    first = merge(tmp_path, text, "out").record
    again = merge(tmp_path, recipe_in_card(tmp_path / "out"), "again").record
    assert again.outputs == first.outputs
    assert again.recipe == first.recipe


def test_documents_are_named_and_in_order(tmp_path: Path) -> None:
    write_family(tmp_path, family("independent", 3), base_model_name_or_path="somebody/base")
    record = merge(tmp_path, TWO, "out").record
    documents: tuple[dict[str, Any], ...] = record.documents
    assert [document.get("name") for document in documents] == ["first", "second", None]
    weights = [entry["parameters"]["weight"] for entry in documents[0]["models"]]
    assert weights == [0.5, 0.25]
