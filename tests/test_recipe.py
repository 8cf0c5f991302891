"""Recipes: what makes sense is read exactly, what does not is refused in words, all of it at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import RecipeError
from riemerge.methods import METHODS, find_method
from riemerge.recipe import MAX_RECIPE_BYTES, make_recipe, parse_spec, parse_yaml, read_recipe

GOOD = """\
merge_method: geomerge
models:
  - model: law
    parameters: {weight: 0.5}
  - model: ../med
parameters:
  rank: 8
  tol: 1e-3
dtype: float32
out_dtype: bfloat16
"""


def problems(raw: Any) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        make_recipe(raw)
    return caught.value.problems


def yaml_problem(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text)
    return "\n".join(caught.value.problems)


def recipe(**changes: Any) -> dict[str, Any]:
    return {"merge_method": "geomerge", "models": [{"model": "a"}, {"model": "b"}], **changes}


def weighted(*weights: Any) -> list[dict[str, Any]]:
    return [{"model": f"m{i}", "parameters": {"weight": weight}} for i, weight in enumerate(weights)]


# --- files --------------------------------------------------------------------------------------------------


def test_a_file_is_read_whole_and_its_folders_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    found = read_recipe([str(path)])
    assert found.merge_method == "geomerge"
    assert [entry.model for entry in found.models] == [str(tmp_path / "law"), str(tmp_path / "../med")]
    assert found.weights == (0.5, 1.0)
    assert (found.parameters.rank, found.parameters.tol, found.parameters.scale) == (8, 0.001, 1.0)
    assert (found.dtype, found.out_dtype) == ("float32", "bfloat16")


def test_what_is_given_beside_a_file_wins_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(GOOD)
    plain = read_recipe([str(path)])
    other = read_recipe(
        [str(path)],
        {"merge_method": None, "rank": 4, "solver": "fixed_point", "dtype": "float64", "scale": None},
    )
    assert (other.parameters.rank, other.parameters.solver, other.dtype) == (4, "fixed_point", "float64")
    assert other.parameters.tol == plain.parameters.tol
    assert other.models == plain.models


def test_an_absolute_folder_in_a_file_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("merge_method: average\nmodels: [{model: /elsewhere/law}]\n")
    assert read_recipe([str(path)]).models[0].model == "/elsewhere/law"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfem\x00", "is not UTF-8"),
        (b"", "is empty"),
        (b"- a\n- b\n", "a recipe is a mapping with merge_method and models; found a list"),
        (b"just words", "a recipe is a mapping"),
        (b"a: 1\n---\nb: 2\n", "line 2"),
        (b"a: [1,\n", "line 2"),
        (b"a:\n\t- b\n", "line 2, column 1"),
        (b"#" * (MAX_RECIPE_BYTES + 1), "larger than"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"odd\.yaml") as caught:
        read_recipe([str(path)])
    assert says in str(caught.value)


def test_a_missing_file_and_a_file_among_folders(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_recipe([str(tmp_path / "none.yaml")])
    with pytest.raises(RecipeError, match="a recipe stands alone"):
        read_recipe(["a:0.5", "b.yaml"])


# --- YAML traps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        (".5", 0.5),
        ("-2.", -2.0),
        ("08", 8),
        ("+12", 12),
        ("0.5", 0.5),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("'0.5'", "0.5"),
        ('"true"', "true"),
        ("<<", "<<"),
        ("=", "="),
        ("Ω", "Ω"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read_as_such_and_refused_later() -> None:
    assert math.isnan(parse_yaml("key: .nan")["key"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' stands already on line 1"),
        ("x: {a: 1,\n a: 2}", "line 2: 'a' stands already on line 1"),
        ("a: &x 1\nb: *x\n", "line 1: anchors and aliases are refused"),
        ("a: !!python/object:os.system 1", "line 1: the tag"),
        ("a: !mine 1", "line 1: the tag '!mine' is refused"),
        ("? [1, 2]\n: 3\n", "a key must be a word"),
        ("a: " + "[" * 5000, "nested deeper than"),
    ],
)
def test_yaml_that_is_no_plain_data_is_refused(text: str, says: str) -> None:
    assert says in yaml_problem(text)


def test_an_alias_bomb_does_not_expand() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert "anchors and aliases are refused" in yaml_problem(bomb)


def test_every_duplicate_key_is_reported() -> None:
    assert len(yaml_problem("a: 1\na: 2\nb: {c: 1, c: 2}\n").splitlines()) == 2


# --- what the fields may hold -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (recipe(merge_methd="x"), "unknown key 'merge_methd': did you mean 'merge_method'?"),
        (
            recipe(models=[{"model": "a", "parameters": {"wieght": 1}}]),
            "models[0].parameters: unknown key 'wieght': did you mean 'weight'?",
        ),
        (
            recipe(models=[{"modle": "a", "model": "b"}]),
            "models[0]: unknown key 'modle': did you mean 'model'?",
        ),
        (recipe(parameters={"rnk": 3}), "parameters: unknown key 'rnk': did you mean 'rank'?"),
        (recipe(base_model="x"), "unknown key 'base_model': the base model is not needed"),
        (recipe(merge_method="karchr"), "merge_method: unknown method 'karchr': known: geomerge"),
        (recipe(merge_method="geomerg"), "did you mean 'geomerge'?"),
        ({"models": [{"model": "a"}]}, "merge_method: missing"),
        ({"merge_method": "average"}, "models: missing"),
        (recipe(models=[]), "models: no adapter to merge"),
        (recipe(models={"a": 1}), "models: a mapping: expected a list"),
        (recipe(models=["a"]), "models[0]: the text 'a': expected a mapping"),
        (recipe(models=[{"model": ""}]), "models[0].model: the text '': expected a text that is not empty"),
        (recipe(models=[{"model": 3}]), "models[0].model: 3: expected a text"),
        (recipe(models=weighted("0.5")), "the text '0.5': expected a number: write 0.5 without quotes"),
        (recipe(models=weighted("half")), "models[0].parameters.weight: the text 'half': expected a number"),
        (
            recipe(models=weighted(True)),
            "models[0].parameters.weight: the truth value true: expected a number",
        ),
        (recipe(models=weighted(None)), "models[0].parameters.weight: nothing: expected a number"),
        (recipe(models=weighted(math.nan)), "models[0].parameters.weight: nan: expected a finite number"),
        (recipe(models=weighted(-math.inf)), "models[0].parameters.weight: -inf: expected a finite number"),
        (recipe(models=weighted(0, 0.0)), "models: every weight is 0"),
        (recipe(models=weighted(1, -0.5)), "models[1]: weight -0.5 of m1: geomerge is a mean"),
        (recipe(merge_method="average", models=weighted(1, -1)), "merge_method task_arithmetic"),
        (recipe(parameters={"rank": 0}), "parameters.rank: 0: expected more than 0"),
        (recipe(parameters={"rank": 2.5}), "parameters.rank: 2.5: expected a whole number"),
        (recipe(parameters={"tol": -1e-3}), "parameters.tol: -0.001: expected more than 0"),
        (recipe(parameters={"cost_tol": -1}), "parameters.cost_tol: -1: expected at least 0"),
        (recipe(parameters={"max_passes": 0}), "parameters.max_passes: 0: expected more than 0"),
        (recipe(parameters={"scale": math.inf}), "parameters.scale: inf: expected a finite number"),
        (recipe(parameters=[1]), "parameters: a list: expected a mapping"),
        (recipe(merge_method="average", parameters={"tol": 1e-3}), "parameters: average takes no tol"),
        (recipe(dtype="bfloat16"), "dtype: 'bfloat16' is not known: expected 'float32' or 'float64'"),
        (recipe(out_dtype="int8"), "out_dtype: 'int8' is not known"),
        ([], "a recipe is a mapping with merge_method and models; found a list"),
        (None, "found nothing"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_was_expected(raw: Any, says: str) -> None:
    found = problems(raw)
    assert len(found) == 1
    assert says in found[0]


def test_all_problems_come_at_once() -> None:
    raw = recipe(
        models=[*weighted("x", math.nan), {"modell": 1}], parameters={"rank": -1}, dtype="half", extra=1
    )
    text = "\n".join(problems(raw))
    for part in (
        "models[0]",
        "models[1]",
        "models[2].model: missing",
        "'modell'",
        "rank",
        "dtype",
        "'extra'",
    ):
        assert part in text


def test_a_sum_takes_weights_below_zero_and_a_mean_none() -> None:
    for name, method in METHODS.items():
        raw = recipe(merge_method=name, models=weighted(1, -0.25))
        if method.negative_weights:
            assert make_recipe(raw).weights == (1.0, -0.25)
        else:
            assert "no weight below zero" in problems(raw)[0]


def test_whole_numbers_are_numbers() -> None:
    assert make_recipe(recipe(models=weighted(1, 2), parameters={"scale": 3})).weights == (1.0, 2.0)


# --- words of the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "folder", "weight"),
    [
        ("law", "law", 1.0),
        ("law:0.5", "law", 0.5),
        ("law:-1e-3", "law", -1e-3),
        ("law:2", "law", 2.0),
        ("C:/runs/law", "C:/runs/law", 1.0),
        ("C:/runs/law:0.25", "C:/runs/law", 0.25),
        ("run:12:0.5", "run:12", 0.5),
        ("run:final", "run:final", 1.0),
        ("law:", "law:", 1.0),
        (":0.5", ":0.5", 1.0),
    ],
)
def test_only_a_number_behind_the_last_colon_is_a_weight(text: str, folder: str, weight: float) -> None:
    assert parse_spec(text) == (folder, weight)


def test_words_make_the_same_recipe_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    options = {"rank": 8, "tol": 1e-3, "dtype": "float32", "out_dtype": "bfloat16"}
    assert read_recipe([f"{tmp_path}/law:0.5", f"{tmp_path}/../med"], options) == read_recipe([str(path)])


def test_a_weight_that_is_no_finite_number_is_refused() -> None:
    with pytest.raises(RecipeError, match="expected a finite number"):
        read_recipe(["law:nan", "med:1"])


# --- the table ----------------------------------------------------------------------------------------------


def test_every_row_says_everything_and_names_code_that_exists() -> None:
    from importlib import import_module

    from riemerge.recipe import Parameters
    from riemerge.solvers import SOLVERS

    for name, row in METHODS.items():
        assert row.name == name == find_method(name).name
        assert row.summary
        assert row.output_rank
        assert row.source
        assert set(row.parameters) <= set(Parameters.model_fields)
        assert set(row.defaults) <= set(row.parameters)
        assert row.defaults.get("solver", "fixed_point") in SOLVERS
        assert ("solver" in row.parameters) == ("solver" in row.defaults)
        for dotted in (row.geometry, *row.edits):
            module, _, attribute = dotted.partition(":")
            assert callable(getattr(import_module(module), attribute))
