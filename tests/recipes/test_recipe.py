"""Recipes: what makes sense is read exactly, what does not is refused in words, all of it at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import RecipeError
from riemerge.methods import FORMULA, GEOMETRIES, METHODS, PARAMETERS, Method, find_method
from riemerge.methods.edits import parse_edit
from riemerge.methods.parameters import Parameter
from riemerge.recipes.recipe import make_recipe, parse_value, read_recipe
from riemerge.recipes.yaml12 import MAX_BYTES

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
    assert found.parameters == {"rank": 8, "tol": 0.001}
    assert (found.dtype, found.out_dtype) == ("float64", "bfloat16")


def test_what_is_given_beside_a_file_wins_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(GOOD)
    plain = read_recipe([str(path)])
    other = read_recipe(
        [str(path)],
        {"merge_method": None, "rank": 4, "solver": "fixed_point", "dtype": "float32", "scale": None},
    )
    assert other.parameters == {**plain.parameters, "rank": 4, "solver": "fixed_point"}
    assert (plain.dtype, other.dtype) == ("float64", "float32")
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
        (b"a: 1\n---\nb: 2\n", "document 1 of 2: has no plain name"),
        (b"a: [1,\n", "line 2"),
        (b"a:\n\t- b\n", "line 2, column 1"),
        (b"#" * (MAX_BYTES + 1), "larger than"),
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
        (recipe(lamda=1), "unknown key 'lamda': known: merge_method"),
        (recipe(scale=2), "unknown key 'scale': it belongs under parameters"),
        (recipe(models=[{"model": "a", "weight": 1}]), "models[0]: unknown key 'weight': it belongs under"),
        (
            recipe(tokenizer="base", tokenizer_source="base"),
            "it is called 'tokenizer' here, and that is given",
        ),
        (recipe(tokenizer=["a"]), "tokenizer: a list: expected a text"),
        (recipe(slices=[]), "models, slices: both are given: a recipe has one of them"),
        (recipe(modules={}), "unknown key 'modules': list the models under models"),
        (
            recipe(parameters={"lambda": 0.5, "scale": 1}),
            "parameters: unknown key 'lambda': it is called 'scale' here",
        ),
        (recipe(base_model=""), "base_model: the text '': expected a text that is not empty"),
        (
            recipe(out_type="lora"),
            "out_type: 'lora' is not known: expected 'adapter', 'delta' or 'checkpoint'",
        ),
        (
            recipe(merge_method="geomerg"),
            "merge_method: unknown method 'geomerg': the nearest names are geomerge",
        ),
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
        (
            recipe(models=weighted(1, -0.5)),
            "models[1].parameters.weight: -0.5 of m1: geomerge is a mean and takes no weight below zero",
        ),
        (recipe(parameters={"weight": -2}), "parameters.weight: -2 of all models: geomerge is a mean"),
        (
            recipe(models=weighted([1, {"value": 2}])),
            "models[0].parameters.weight[0]: 1: expected a mapping with filter and value",
        ),
        (
            recipe(models=weighted(1, [{"filter": "q", "value": [1, -3]}, {"value": 1}])),
            "models[1].parameters.weight[0].value[1]: -3 of m1: geomerge is a mean",
        ),
        (recipe(merge_method="average", models=weighted(1, -1)), "or a merge_method such as task_arithmetic"),
        (recipe(parameters={"rank": 0}), "parameters.rank: 0: expected at least 1"),
        (
            recipe(parameters={"rank": 2.5}),
            "parameters.rank: 2.5: expected a whole number, 'sum', 'auto' or a share such as '95%'",
        ),
        (recipe(parameters={"tol": -1e-3}), "parameters.tol: -0.001: expected more than 0"),
        (recipe(parameters={"cost_tol": -1}), "parameters.cost_tol: -1: expected at least 0"),
        (recipe(parameters={"max_passes": 0}), "parameters.max_passes: 0: expected at least 1"),
        (recipe(parameters={"scale": math.inf}), "parameters.scale: inf: expected a finite number"),
        (recipe(parameters={"seed": 2**31}), "parameters.seed: 2147483648: expected at most 2147483647"),
        (recipe(parameters={"max_seconds": "9"}), "expected a number: write 9 without quotes"),
        (recipe(parameters={"tol": [1e-3]}), "parameters.tol: a list: expected a number, the same for all"),
        (recipe(parameters={"rank": [{"value": 3}]}), "parameters.rank: a list: expected a whole number"),
        (recipe(parameters={"rank": {"value": 3}}), "parameters.rank: a mapping: expected a whole number"),
        (
            recipe(parameters={"solver": ""}),
            "parameters.solver: the text '': expected a text that is not empty",
        ),
        (recipe(parameters=[1]), "parameters: a list: expected a mapping"),
        (recipe(models=[{"model": "a", "parameters": 3}]), "models[0].parameters: 3: expected a mapping"),
        (
            recipe(models=[{"model": "a", "parameters": {"rank": 3}}]),
            "models[0].parameters: rank is the same for all models: put it under the recipe's own parameters",
        ),
        (recipe(merge_method="average", models=[{"model": "a", "parameters": {"tol": 1}}]), "takes no tol"),
        (recipe(merge_method="average", parameters={"tol": 1e-3}), "parameters: average takes no tol"),
        (recipe(dtype="bfloat16"), "dtype: 'bfloat16' is not known: expected 'float32' or 'float64'"),
        (recipe(out_dtype="int8"), "out_dtype: 'int8' is not known"),
        (recipe(merge_method="arcee_fusion"), "the nearest rows are nearswap, magnitude_prune and ties"),
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
        models = [one | ({"statistics": "s"} if method.statistics else {}) for one in weighted(1, -0.25)]
        raw = recipe(merge_method=name, models=models)
        raw |= {"base_statistics": "s"} if method.base_statistics else {}
        if method.negative_weights:
            assert make_recipe(raw).weights == (1.0, -0.25)
        else:
            assert "no weight below zero" in problems(raw)[0]


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> str:
    """A method that takes one parameter of each kind, needs statistics, and merges two or three."""
    extra = (
        Parameter("flag", "flag", "", per_module=True),
        Parameter("word", "choice", "", choices=("left", "right"), per_module=True, per_model=True),
        Parameter("count", "integer", "", per_module=True),
        Parameter("inside", "number", "", low=0, high=1, open_low=True, open_high=True, per_module=True),
    )
    for one in extra:
        monkeypatch.setitem(PARAMETERS, one.name, one)
    own = dict.fromkeys(("density", *(one.name for one in extra)))
    row = Method(
        "trial", "", "", own_parameters=own, statistics=("fisher",), models=(2, 3), checkpoints="updates"
    )
    monkeypatch.setitem(METHODS, "trial", row)
    return "trial"


def informed(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    return [{"model": name, "statistics": f"{name}.stats", "parameters": parameters} for name in names]


def tried(**parameters: Any) -> dict[str, Any]:
    return {"merge_method": "trial", "models": informed("a", "b"), "parameters": parameters}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"density": 1}, {"density": 1.0}),
        ({"density": [0.5, 1]}, {"density": [0.5, 1.0]}),
        ({"density": (0.5, 1)}, {"density": [0.5, 1.0]}),
        ({"density": {"filter": "q", "value": 0.5}}, {"density": [{"filter": "q", "value": 0.5}]}),
        (
            {"density": [{"filter": "q", "value": [0.5, 1]}, {"filter": "*", "value": 0.25}]},
            {"density": [{"filter": "q", "value": [0.5, 1.0]}, {"filter": "*", "value": 0.25}]},
        ),
        ({"flag": [True, False]}, {"flag": [True, False]}),
        ({"word": [{"filter": "q", "value": "left"}, {"value": ["right", "left"]}]}, None),
        ({"count": [{"filter": "q", "value": 3}]}, None),
        ({"rank": "sum", "scale": [0, 2]}, {"rank": "sum", "scale": [0.0, 2.0]}),
    ],
)
def test_values_are_kept_as_plain_data(trial: str, said: dict[str, Any], kept: dict[str, Any] | None) -> None:
    found = make_recipe(tried(**said))
    assert found.parameters == (kept or said)
    dumped = found.model_dump()
    assert json.loads(json.dumps(dumped))["parameters"] == found.parameters
    assert make_recipe({key: value for key, value in dumped.items() if value is not None}) == found


def test_a_recipe_shares_nothing_with_what_it_was_made_of(trial: str) -> None:
    raw = tried(density=[{"filter": "q", "value": [0.5, 1.0]}])
    found = make_recipe(raw)
    raw["parameters"]["density"][0]["value"][0] = 9
    raw["models"][0]["parameters"]["density"] = 9
    assert found.parameters == {"density": [{"filter": "q", "value": [0.5, 1.0]}]}
    assert found.models[0].parameters == {}


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"density": 1.5}, "parameters.density: 1.5: expected at most 1"),
        ({"density": 1 + 2**-52}, "parameters.density: 1.0000000000000002: expected at most 1"),
        ({"density": 0}, "parameters.density: 0: expected more than 0"),
        ({"density": [0.5, 1.5]}, "parameters.density[1]: 1.5: expected at most 1"),
        (
            {"density": [{"filter": "q", "value": 0.5}, {"value": 1.5}]},
            "parameters.density[1].value: 1.5: expected at most 1",
        ),
        (
            {"density": [{"filter": "q", "value": [0.5, True]}]},
            "parameters.density[0].value[1]: the truth value true: expected a number",
        ),
        ({"density": [{"value": [[0.5]]}]}, "parameters.density[0].value[0]: a list: expected a number"),
        (
            {"density": [{"value": [{"filter": "q", "value": 1}]}]},
            "parameters.density[0].value[0]: a mapping: expected a number",
        ),
        ({"density": []}, "parameters.density: an empty list: expected at least one value"),
        ({"density": [{"value": []}]}, "parameters.density[0].value: an empty list"),
        ({"density": [{"filter": "q"}]}, "parameters.density[0].value: missing: a filter needs a value"),
        (
            {"density": [{"filer": "q", "value": 1}]},
            "parameters.density[0]: unknown key 'filer': known: filter, value",
        ),
        (
            {"density": [{"filter": "", "value": 1}]},
            "parameters.density[0].filter: the text '': expected a part",
        ),
        ({"density": [{"filter": 3, "value": 1}]}, "parameters.density[0].filter: 3: expected a part"),
        (
            {"density": [{"filter": None, "value": 1}]},
            "parameters.density[0].filter: nothing: expected a part",
        ),
        (
            {"density": [{"value": 1}, {"filter": "q", "value": 0.5}]},
            "parameters.density: the items after the first that is for every module are never reached",
        ),
        ({"density": [{"filter": "*", "value": 1}, {"value": 0.5}]}, "are never reached"),
        ({"inside": 0}, "parameters.inside: 0: expected more than 0"),
        ({"inside": 1}, "parameters.inside: 1: expected less than 1"),
        ({"flag": 1}, "parameters.flag: 1: expected true or false"),
        ({"flag": "True"}, "expected true or false: write True without quotes"),
        ({"word": "up"}, "parameters.word: 'up' is not known: expected 'left' or 'right'"),
        ({"word": ["left", 3]}, "parameters.word[1]: 3: expected 'left' or 'right'"),
        ({"count": [1, 2]}, "parameters.count: a list goes over depth through numbers that are not whole"),
        ({"count": 2.0}, "parameters.count: 2: expected a whole number"),
        ({"scale": 10**400}, "expected a finite number"),
        (
            {"rank": "all"},
            "parameters.rank: the text 'all': expected a whole number, 'sum', 'auto' or a share",
        ),
        ({"rank": True}, "parameters.rank: the truth value true"),
    ],
)
def test_every_scalar_of_a_value_is_checked_where_it_stands(
    trial: str, said: dict[str, Any], says: str
) -> None:
    [found] = problems(tried(**said))
    assert says in found


def test_all_problems_of_one_value_come_at_once(trial: str) -> None:
    found = problems(tried(density=[{"filter": 1, "value": [2, 0.5, "x"]}, {"value": -1}], word="up"))
    assert len(found) == 5


def test_numbers_of_models_are_those_that_count(trial: str) -> None:
    def count(*weights: Any) -> list[dict[str, Any]]:
        models = informed(*(f"m{i}" for i in range(len(weights))))
        return [one | {"parameters": {"weight": weight}} for one, weight in zip(models, weights, strict=True)]

    for good in ((1, 1), (1, 1, 1), (1, 1, 1, 0)):
        assert make_recipe({"merge_method": trial, "models": count(*good)}).weights == good
    [found] = problems({"merge_method": trial, "models": count(1, 0)})
    assert found == "models: trial merges at least 2 of weight other than 0: found 1"
    [found] = problems({"merge_method": trial, "models": count(1, 1, 1, 1)})
    assert found == "models: trial merges at most 3 of weight other than 0: found 4"


def test_statistics_are_asked_of_every_model_that_counts(trial: str) -> None:
    models = [*informed("a"), {"model": "b"}, {"model": "c", "parameters": {"weight": 0}}, {"model": "d"}]
    [found] = problems({"merge_method": trial, "models": models})
    assert found.startswith(
        "models[1] (b), models[3] (d): no statistics: trial needs those of every model (fisher)"
    )
    assert "riemerge.statistics.collect_statistics" in found
    [found] = problems(recipe(models=informed("a"), base_statistics="x"))
    assert found == "models[0], base_statistics: geomerge uses no statistics: leave them out"
    assert [entry.statistics for entry in make_recipe(tried()).models] == ["a.stats", "b.stats"]


def test_statistics_of_the_base_are_asked_for_where_they_are_used(trial: str) -> None:
    [found] = problems({**tried(), "base_statistics": "s"})
    assert found == "base_statistics: trial uses those of the models alone: leave it out"
    raw = {**tried(), "merge_method": "gradient_matching", "parameters": {}}
    [found] = problems(raw)
    assert found.startswith("base_statistics: missing: gradient_matching needs those of the base model too")
    assert make_recipe({**raw, "base_statistics": "s"}).base_statistics == "s"


def test_the_base_model_is_no_update_of_itself(trial: str) -> None:
    models = informed("a", "b", "c")
    found = make_recipe({"merge_method": trial, "models": models, "base_model": "x/../b"})
    assert [entry.model for entry in found.models] == ["a", "c"]
    assert found.base_model == "x/../b"
    assert found.translations == ("models: b: left out: it is the base_model, and its update is zero",)


def test_a_weight_for_all_is_that_of_the_models_without_their_own() -> None:
    models = [{"model": "a"}, {"model": "b", "parameters": {"weight": [0, 1]}}, *weighted(3)]
    assert make_recipe(recipe(models=models, parameters={"weight": 2})).weights == (2.0, None, 3.0)
    assert problems(recipe(parameters={"weight": 0})) == (
        "models: every weight is 0: at least one adapter must count",
    )


def test_paths_in_a_file_are_relative_to_it_and_an_override_wins_over_every_level(
    trial: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "merge_method: trial\nbase_model: base\n"
        "parameters: {density: 0.5, scale: 2}\n"
        "models:\n- {model: a, statistics: a.stats, parameters: {density: [0.1, 0.2], weight: 3}}\n"
        "- {model: b, statistics: b.stats}\n"
    )
    plain = read_recipe([str(path)])
    assert plain.base_model == str(tmp_path / "base")
    assert [entry.statistics for entry in plain.models] == [str(tmp_path / f"{one}.stats") for one in "ab"]
    assert plain.models[0].parameters == {"density": [0.1, 0.2], "weight": 3.0}
    other = read_recipe([str(path)], {"density": 0.9, "out_type": "delta", "base_model": "here"})
    assert other.parameters == {"density": 0.9, "scale": 2.0}
    assert other.models[0].parameters == {"weight": 3.0}
    assert (other.out_type, other.base_model) == ("delta", "here")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("density", "0.5", 0.5),
        ("density", "[0.1, 0.5, 1]", [0.1, 0.5, 1.0]),
        ("density", "[{filter: q, value: 0.5}, {value: 1}]", [{"filter": "q", "value": 0.5}, {"value": 1.0}]),
        ("scale", "-1e-3", -1e-3),
        ("rank", "sum", "sum"),
        ("rank", "12", 12),
        ("flag", "false", False),
        ("word", "left", "left"),
        ("word", "[left, right]", ["left", "right"]),
        ("solver", "1e3", "1e3"),
        ("seed", "0", 0),
    ],
)
def test_options_are_read_like_recipes(trial: str, name: str, text: str, value: object) -> None:
    assert parse_value(PARAMETERS[name], text) == value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("density", "1.5", "--density: 1.5: expected at most 1"),
        ("density", "half", "--density: the text 'half': expected a number"),
        ("density", "[0.5", "--density: line 1"),
        ("density", "", "--density: is empty"),
        ("max_passes", "2.5", "--max-passes: 2.5: expected a whole number"),
        ("max_passes", "[1, 2]", "--max-passes: a list: expected a whole number, the same for all modules"),
        ("rank", "0", "--rank: 0: expected at least 1"),
        ("rank", "all", "--rank: the text 'all'"),
        ("word", "up", "--word: 'up' is not known"),
        ("flag", "no", "--flag: the text 'no': expected true or false"),
        ("solver", "", "--solver: the text '': expected a text that is not empty"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(trial: str, name: str, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_value(PARAMETERS[name], text)
    assert says in str(caught.value)


def test_whole_numbers_are_numbers() -> None:
    assert make_recipe(recipe(models=weighted(1, 2), parameters={"scale": 3})).weights == (1.0, 2.0)


# --- words of the command line ------------------------------------------------------------------------------


def test_words_make_the_same_recipe_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    options = {
        "merge_method": "geomerge",
        "rank": 8,
        "tol": 1e-3,
        "out_dtype": "bfloat16",
    }
    words, file = (
        read_recipe([f"{tmp_path}/law:0.5", f"{tmp_path}/../med"], options),
        read_recipe([str(path)]),
    )
    assert words.weights == file.weights
    assert [entry.model for entry in words.models] == [entry.model for entry in file.models]
    kept = {"models", "translations"}
    assert words.model_dump(exclude=kept) == file.model_dump(exclude=kept)


def test_a_weight_that_is_no_finite_number_is_refused() -> None:
    with pytest.raises(RecipeError, match="expected a finite number"):
        read_recipe(["law:nan", "med:1"])


# --- the table ----------------------------------------------------------------------------------------------


def test_every_row_says_everything_and_names_code_that_exists() -> None:
    from importlib import import_module

    from riemerge.frechet import SOLVERS

    for name, row in METHODS.items():
        assert row.name == name == find_method(name).name
        assert row.summary
        assert row.output_rank
        assert row.source
        assert set(row.parameters) <= set(PARAMETERS)
        assert set(row.defaults) <= set(row.parameters)
        assert row.defaults.get("solver", "fixed_point") in SOLVERS
        assert ("solver" in row.parameters) == ("solver" in row.defaults)
        assert row.geometry == FORMULA or row.geometry.partition(":")[0] in GEOMETRIES
        assert all(parse_edit(edit) for edit in row.edits)
        for dotted in filter(None, (row.mean, row.survey)):
            module, _, attribute = dotted.partition(":")
            assert callable(getattr(import_module(module), attribute))
