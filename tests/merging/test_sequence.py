"""Documents of one recipe: merged in order as if each had been asked for by itself; the last one is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riemerge.errors import AdapterError, OutputError, RiemergeError
from riemerge.merging.sequence import merge_documents
from riemerge.recipes.recipe import Recipe, read_recipe, read_recipes
from tests.folders import content, family, write_family
from tests.merging.merges import RECORD, TENSORS, run_command

FIRST = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 0.5}}, {model: b}]\n"
SECOND = "merge_method: ties\nmodels: [{model: first}, {model: c}]\nparameters: {density: 0.5, lambda: 2}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with adapters a, b and c, and a recipe of two documents."""
    write_family(tmp_path, family("independent", 3), base_model_name_or_path="somebody/base")
    (tmp_path / "two.yaml").write_text(f"name: first\n{FIRST}---\n{SECOND}")
    return tmp_path


def documents(folder: Path) -> tuple[tuple[str | None, Recipe], ...]:
    return read_recipes([str(folder / "two.yaml")])


def test_the_last_is_what_two_commands_make_bit_for_bit(folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    merge_documents(documents(folder), folder / "out")
    assert {path.name for path in folder.iterdir()} == {*before, "out"}
    for name, text in (("first", FIRST), ("second", SECOND)):
        (folder / f"{name}.yaml").write_text(text)
        merge_documents([(None, read_recipe([str(folder / f"{name}.yaml")]))], folder / name)
    assert content(folder / "out") == content(folder / "second")


def test_the_record_has_the_recipes_of_all_and_no_paths(folder: Path) -> None:
    record = merge_documents(documents(folder), folder / "out").record
    assert [entry["model"] for entry in record.recipe["models"]] == ["first", "c"]
    assert [row.name for row in record.inputs] == ["first", "c"]
    assert record.recipe["earlier"]["first"]["merge_method"] == "average"
    assert [entry["model"] for entry in record.recipe["earlier"]["first"]["models"]] == ["a", "b"]
    assert record.translations[0].startswith("first: merge_method: linear: read as")
    assert record.translations[1].startswith("parameters.lambda: read as scale")
    assert str(folder) not in (folder / "out" / RECORD).read_text()


def test_the_command_tells_every_translation_once(folder: Path) -> None:
    ran = run_command("merge", folder / "two.yaml", "-o", folder / "out", "--json")
    assert ran.exit_code == 0, ran.output
    record = json.loads((folder / "out" / RECORD).read_text())
    for text in record["translations"]:
        assert ran.stderr.splitlines().count(text) == 1


def test_a_model_that_is_missing_later_is_found_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "c" / TENSORS).unlink()
    monkeypatch.setattr("riemerge.merging.sequence.merge_into", lambda *_, **__: pytest.fail("worked"))
    with pytest.raises(AdapterError, match="c/adapter_model"):
        merge_documents(documents(folder), folder / "out")


def test_an_output_that_is_there_is_refused_before_any_work(folder: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        merge_documents(documents(folder), folder / "c")
    with pytest.raises(OutputError, match="inside the input"):
        merge_documents(documents(folder), folder / "a" / "out")


def test_whatever_fails_later_leaves_nothing(folder: Path) -> None:
    text = (folder / "two.yaml").read_text()
    (folder / "two.yaml").write_text(text.replace("lambda: 2", "scale: 1e300"))
    before = sorted(folder.rglob("*"))
    with pytest.raises(RiemergeError):
        merge_documents(documents(folder), folder / "out")
    assert sorted(folder.rglob("*")) == before


def test_a_folder_with_a_plus_in_its_name_is_no_sum_with_a_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "c").rename(folder / "c+first")
    (folder / "two.yaml").write_text((folder / "two.yaml").read_text().replace("model: c", "model: c+first"))
    monkeypatch.chdir(folder)
    record = merge_documents(read_recipes(["two.yaml"]), "out").record
    assert [row.name for row in record.inputs] == ["first", "c+first"]
