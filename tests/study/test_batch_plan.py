"""A plan stands for recipes with names that tell them apart; what makes no sense is refused, all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.files.staging import file_sha256
from riemerge.recipes.recipe import Recipe, read_recipe
from riemerge.study.batch_plan import name_keys, read_batch_plan
from tests.folders import family, write_family
from tests.helpers import ROOT
from tests.records.collections import made_collection
from tests.study.inputs import SHAPES, TENSORS


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with adapters a, b, c in `adapters`, and a file that is none."""
    write_family(tmp_path / "adapters", family("close", 3, shapes=SHAPES))
    (tmp_path / "adapters" / "README.md").write_text("no adapter")
    return tmp_path


def read(beside: Path, text: str) -> dict[str, Recipe]:
    path = beside / "plan.yaml"
    path.write_text(text)
    return dict(read_batch_plan(path))


def models(recipe: Recipe) -> list[str]:
    return [Path(entry.model).name for entry in recipe.models]


def test_pairs_by_methods_on_a_grid(beside: Path) -> None:
    text = "models: [adapters/*]\neach: pairs\nmethods: [average, 'ties:rank=2']"
    recipes = read(beside, f"{text}\ngrid: {{density: [0.3, 0.5], rank: [4]}}")
    ties = ["a-b--ties-rank=2--density=0.3", "a-b--ties-rank=2--density=0.5"]
    assert [*recipes][:4] == ["a-b--average--rank=4", *ties, "a-c--average--rank=4"]
    assert len(recipes) == 9
    # A parameter that a method does not take varies it by nothing, and one that it has already stays.
    assert recipes["a-b--average--rank=4"].parameters == {"rank": 4}
    assert recipes["b-c--ties-rank=2--density=0.5"].parameters == {"rank": 2, "density": 0.5}
    assert models(recipes["b-c--average--rank=4"]) == ["b", "c"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["all--spectrum"]),
        ("methods: [average, ties]", ["all--average", "all--ties"]),
        ("grid: {rank: [2, 3]}", ["all--spectrum--rank=2", "all--spectrum--rank=3"]),
        ("grid: {rank: [95%, sum]}", ["all--spectrum--rank=95%", "all--spectrum--rank=sum"]),
        ("methods: [ties]\ngrid: {density: [[0.3, 1]]}", ["all--ties--density=0.3,1"]),
        ("each: pairs", ["a-b--spectrum", "a-c--spectrum", "b-c--spectrum"]),
        ("merges: [{name: own, merge_method: average}]", ["own"]),
        (
            "methods: [tsv]\nmerges: [{name: all--tsv, merge_method: average}]",
            ["all--tsv-2", "all--tsv"],
        ),
    ],
)
def test_a_name_says_what_is_merged_and_how(beside: Path, text: str, names: list[str]) -> None:
    assert [*read(beside, f"models: [adapters/*]\n{text}")] == names


def test_paths_are_told_without_detours(beside: Path) -> None:
    (beside / "link").symlink_to(beside / "adapters" / "a")
    detours = "adapters/../adapters/a, ./adapters/b/, adapters/b, link/../c, adapters/../adapters/c*"
    (recipe,) = read(beside, f"models: [{detours}]").values()
    # Of a link, the two dots are those of what it leads to.
    expected = [str(beside / path) for path in ("adapters/a", "adapters/b", "link/../c", "adapters/c")]
    assert [entry.model for entry in recipe.models] == expected
    own = "{name: own, merge_method: ties, models: [adapters/../adapters/a, ./adapters/b]}"
    (recipe,) = read(beside, f"merges: [{own}]").values()
    assert [entry.model for entry in recipe.models] == expected[:2]


def test_what_a_plan_spells_out_is_a_recipe(beside: Path) -> None:
    recipes = read(
        beside,
        """
models: {law: adapters/a, rest: "adapters/[bc]"}
recipe: {out_dtype: bfloat16, parameters: {rank: 2, scale: 0.5}}
merges:
  - {name: one, merge_method: linear, models: ["law:0.25", rest], parameters: {scale: 2}}
  - name: two
    merge_method: ties
    dtype: float16
    models: [{model: law, parameters: {density: 0.5}}, adapters/b]
""",
    )
    one, two = recipes["one"], recipes["two"]
    assert models(one) == ["a", "b", "c"]
    assert one.weights == (0.25, 1.0, 1.0)
    assert (one.merge_method, one.out_dtype, one.parameters) == (
        "average",
        "bfloat16",
        {"rank": 2, "scale": 2},
    )
    assert "linear" in one.translations[0]
    assert models(two) == ["a", "b"]
    assert two.models[0].parameters["density"] == 0.5
    # As a single recipe of the same words: a dtype below float64 in a file is that of the output.
    assert two.dtype == "float64"
    assert all(Path(entry.model).is_absolute() for entry in (*one.models, *two.models))


def test_the_plan_of_the_page_is_read(tmp_path: Path) -> None:
    (text,) = re.findall("```yaml\n(.*?)```", (ROOT / "docs" / "batch.md").read_text(), re.DOTALL)
    (tmp_path / "adapters").symlink_to(ROOT / "examples" / "adapters")
    recipes = read(tmp_path, text)
    assert len(recipes) == 3 * 4 + 1
    assert "law-mnli--ties--density=0.3" in recipes
    assert recipes["mine"].weights == (0.4, 1.0, 1.0)


def test_a_generated_recipe_is_that_of_the_command_line(beside: Path) -> None:
    (made,) = read(beside, "models: [adapters/*]\nmethods: [ties]\ngrid: {density: [0.5]}").values()
    folders = [str(beside / "adapters" / name) for name in "abc"]
    said = read_recipe([(folder, 1.0) for folder in folders], {"merge_method": "ties", "density": 0.5})
    assert made.model_copy(update={"models": ()}) == said.model_copy(update={"models": ()})
    assert [entry.model for entry in made.models] == folders
    assert made.weights == said.weights


def test_families_of_an_atlas_are_merged_without_copies(tmp_path: Path) -> None:
    atlas = made_collection()
    strangers = atlas.clusters[0].model_copy(update={"kind": "strangers", "label": 7})
    atlas = atlas.model_copy(update={"clusters": (*atlas.clusters, strangers)})
    copies = {copy.name for group in atlas.copies for copy in group.repetitions}
    assert copies
    (one,) = family("close", 1, shapes=SHAPES)
    write_family(tmp_path, [one])
    sums = {path.name: file_sha256(path) for path in (tmp_path / "a").iterdir()}
    mapped = [adapter.model_copy(update={"sha256": sums}) for adapter in atlas.adapters]
    atlas = atlas.model_copy(update={"adapters": (*mapped,)})
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "collection.json").write_text(atlas.to_json())
    for name in atlas.names:
        write_family(tmp_path / "adapters" / name, [one])
        (tmp_path / "adapters" / name / "a").rename(tmp_path / "moved")
        (tmp_path / "adapters" / name).rmdir()
        (tmp_path / "moved").rename(tmp_path / "adapters" / name)
    recipes = read(tmp_path, "models: [adapters/*]\nfrom: atlas\neach: clusters")
    expected = {
        f"cluster-{one.label}--spectrum": [name for name in one.members if name not in copies]
        for one in atlas.clusters
        if one.kind == "family"
    }
    expected = {name: members for name, members in expected.items() if len(members) > 1}
    found = {name: models(recipe) for name, recipe in recipes.items()}
    assert [*found.values()] == [*expected.values()]
    assert expected
    changed, missing = [*expected.values()][-1][:2]
    path = tmp_path / "adapters" / changed / TENSORS
    before = path.read_bytes()
    path.write_bytes(before[:-1] + b"x")
    with pytest.raises(RecipeError, match=f"from: {changed}: {TENSORS} in .* not as mapped.* map again"):
        read(tmp_path, "models: [adapters/*]\nfrom: atlas\neach: clusters")
    path.write_bytes(before)
    with pytest.raises(RecipeError, match=f"from: {missing}: found 0 models called so"):
        read(tmp_path, f'models: ["adapters/[!{missing[0]}]*"]\nfrom: atlas\neach: clusters')


@pytest.mark.parametrize(
    ("problem", "keys"),
    [
        ("--heads drop leaves them out", " (in a plan, --heads is recipe.heads)"),
        ("use --threads 1, --dtype float32", " (in a plan, --dtype is recipe.dtype)"),
        ("--base X or --to peft", " (in a plan, --base is recipe.base_model, --to is recipe.dialect)"),
        ("--rank 3 -- or --rank 4", " (in a plan, --rank is recipe.parameters.rank)"),
        ("use --threads 1, a--rank=95%--density=2", ""),
    ],
)
def test_options_of_a_command_are_told_as_keys(problem: str, keys: str) -> None:
    assert name_keys(problem) == problem + keys


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("models: 3", "plan.yaml: models: 3: expected a mapping"),
        ("- models", "plan.yaml: 1 documents, the first a list: expected one mapping"),
        ("each: trios", "each: the text 'trios': expected 'all', 'pairs' or 'clusters'"),
        ("model: [a]", "unknown key 'model': did you mean 'models'"),
        ("models: [adapters/x]", "models.adapters/x: adapters/x: 0 files and folders, and no model"),
        ("models: [adapters/R*]", "1 files and folders, and no model"),
        ("models: [adapters/a]", "models: 1: expected at least 2"),
        ("models: [adapters/*]\neach: clusters", "each: clusters: there are none without an atlas"),
        ("models: [adapters/*]\nmethods: [best]", "methods: "),
        ("models: [adapters/*]\ngrid: {rank: []}", "grid.rank: a list: expected at least one value"),
        ("models: [adapters/*]\ngrid: {weight: [1]}", "riemerge sweep"),
        ("models: [adapters/*]\ngrid: {rnak: [1]}", "unknown parameter 'rnak': did you mean 'rank'"),
        ("models: [adapters/*]\nmethods: [average]\ngrid: {density: [1]}", "none of the methods takes it"),
        ("models: [adapters/*]\nmethods: [ties]\ngrid: {density: [2]}", "density: 2"),
        ("models: [adapters/*]\nrecipe: {models: []}", "recipe: models: differs from merge to merge"),
        ("models: [adapters/*]\nmerges: [{merge_method: ties}]", "merges[0].name: nothing: expected a name"),
        ("models: [adapters/*]\nmerges: [{name: a/b}]", "merges[0].name: the text 'a/b'"),
        ("models: [adapters/*]\nmerges: [{name: a}]", "merges[0]: merge_method: missing"),
        (
            "models: [adapters/*]\nmerges: [{name: a, merge_method: ties}, {name: a, merge_method: ties}]",
            "merges: 2 have the name 'a'",
        ),
        (
            "models: [adapters/*]\nmethods: [ties, ties]",
            "methods, grid: all--ties: stands for one recipe twice",
        ),
        ("models: [adapters/*]\nmethods: [linear, average]", "all--average: stands for one"),
        ("models: [adapters/*]\ngrid: {scale: [0.3, 3.0e-1]}", "scale=0.3: stands for one"),
        (
            "models: [adapters/*]\ngrid: {scale: [1, 1.0]}",
            "scale=1, all--spectrum--scale=1.0: stands for one",
        ),
        ("models: [adapters/*]\nmethods: [slerp]", "slerp: models: slerp merges exactly 2"),
    ],
)
def test_what_makes_no_sense_is_refused(beside: Path, text: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(beside, text)
    assert any(problem in line for line in caught.value.problems), caught.value.problems
    assert all(line.startswith("plan.yaml: ") for line in caught.value.problems)


def test_all_problems_are_told_at_once(beside: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read(beside, "models: [adapters/x, adapters/*]\nmerges: [{name: a}, {name: b, merge_method: bets}]")
    assert len(caught.value.problems) >= 3


def test_an_atlas_that_is_none_is_an_input_that_cannot_be_read(beside: Path) -> None:
    (beside / "collection.json").write_text("{}")
    for where in ("nowhere", "."):
        with pytest.raises(AdapterError, match="expected what `riemerge map` writes"):
            read(beside, f"models: [adapters/*]\nfrom: {where}\neach: clusters")
