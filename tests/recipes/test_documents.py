"""Files of several documents: models beside the file, results by the names of earlier documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from riemerge.errors import RecipeError
from riemerge.recipes.documents import read_documents
from riemerge.recipes.recipe import read_recipe, read_recipes

TWO = """\
name: first
merge_method: linear
models: [{model: a}, {model: b}]
dtype: float32
---
name: second
merge_method: ties
models: [{model: first}, {model: c}]
base_model: first
tokenizer_source: first
"""


def write(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_a_later_document_names_an_earlier_one_and_all_else_lies_beside_the_file(tmp_path: Path) -> None:
    (name, first), (last, second) = read_recipes([str(write(tmp_path, TWO))])
    assert (name, last) == ("first", "second")
    assert [entry.model for entry in first.models] == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert [entry.model for entry in second.models] == [f"{tmp_path}/c"]
    assert (second.base_model, second.tokenizer) == ("first", "first")


def test_options_are_for_the_last_document(tmp_path: Path) -> None:
    options = {"merge_method": "task_arithmetic", "out_dtype": "float64"}
    (_, first), (_, second) = read_recipes([str(write(tmp_path, TWO))], options)
    assert (first.merge_method, first.out_dtype) == ("average", "float32")
    assert (second.merge_method, second.out_dtype) == ("task_arithmetic", "float64")


def test_a_name_goes_before_a_folder_also_in_a_sum_but_not_in_its_own_document(tmp_path: Path) -> None:
    for name in ("first", "lora"):
        (tmp_path / name).mkdir()
    text = TWO.replace("model: c", "model: first+lora").replace("model: a", "model: first")
    (_, first), (_, second) = read_recipes([str(write(tmp_path, text))])
    assert first.models[0].model == f"{tmp_path}/first"
    assert [entry.model for entry in second.models] == [f"first+{tmp_path}/lora"]


def test_one_document_has_no_use_for_a_name(tmp_path: Path) -> None:
    path = write(tmp_path, TWO.partition("---")[0] + "---\n")
    (document,) = read_documents(path)
    assert document.name is None
    assert document.translations[0] == "name: nothing to do: the folder of the output is the name"
    assert read_recipe([str(path)]).merge_method == "average"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: first", "name: third", "document 1 of 2: no later document names 'third'"),
        ("name: first\n", "", "document 1 of 2: has no plain name"),
        ("name: first", "name: a/b", "document 1 of 2: has no plain name"),
        ("name: first", "name: 3", "document 1 of 2: has no plain name"),
        ("merge_method: ties", "merge_method: tie", "recipe.yaml: merge_method: unknown method 'tie'"),
        ("merge_method: ties", "translations: [x]", "recipe.yaml: unknown key 'translations'"),
    ],
)
def test_documents_that_make_no_sense_together(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipes([str(write(tmp_path, TWO.replace(old, new)))])
    assert says in str(caught.value)


def test_two_documents_of_one_name(tmp_path: Path) -> None:
    text = "---\n".join([TWO.partition("---")[0]] * 2 + [TWO.partition("---\n")[2]])
    with pytest.raises(RecipeError, match="document 2 of 3: 'first' is the name of an earlier one too"):
        read_recipes([str(write(tmp_path, text))])


def test_where_one_recipe_is_expected_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="2 documents: riemerge merge merges them in order"):
        read_recipe([str(write(tmp_path, TWO))])
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        read_recipes([str(write(tmp_path, "- a\n---\n- b\n"))])
