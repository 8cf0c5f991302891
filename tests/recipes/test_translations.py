"""Words of mergekit and PEFT mean what they mean there; each translation is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import RecipeError
from riemerge.methods import METHODS, PARAMETERS, find_method
from riemerge.recipes.recipe import Recipe, make_recipe, read_recipe
from riemerge.recipes.resolve import Resolver
from riemerge.recipes.translations import (
    COMBINATION_TYPES,
    METHOD_WORDS,
    NEEDLESS,
    OTHER_ROWS,
    PARAMETER_WORDS,
    VALUE_WORDS,
    put_over,
)

MODELS = [{"model": "a"}, {"model": "b"}]


def recipe(method: str = "ties", **changes: Any) -> dict[str, Any]:
    return {"merge_method": method, "models": MODELS, **changes}


def signed(*weights: Any) -> list[dict[str, Any]]:
    return [
        {"model": name, "parameters": {"weight": weight}} for name, weight in zip("ab", weights, strict=True)
    ]


def plain(found: Recipe) -> dict[str, Any]:
    """What a recipe says, without the sentences about how it was said."""
    return found.model_dump(exclude={"translations"})


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        (recipe("linear"), recipe("average", parameters={"rank": "sum"}), "merge_method: linear: read as"),
        (recipe("linear", parameters={"rank": 3}), recipe("average", parameters={"rank": 3}), "merge_method"),
        (recipe("ties_svd"), recipe("ties_peft"), "merge_method: ties_svd: read as merge_method ties_peft"),
        (recipe("dare_ties_svd"), recipe("dare_ties_peft"), "merge_method: dare_ties_svd"),
        (recipe(name="x"), recipe(), "name: nothing to do"),
        (recipe(tokenizer_source="union"), recipe(tokenizer="union"), "tokenizer_source: read as tokenizer"),
        (recipe(tokenizer={"source": "base"}), recipe(tokenizer="base"), "tokenizer.source: read as"),
        (recipe(tokenizer={}), recipe(tokenizer="union"), "tokenizer.source: read as tokenizer"),
        (recipe(parameters={"lambda": 0.5}), recipe(parameters={"scale": 0.5}), "parameters.lambda: read as"),
        (recipe(parameters={"lambda": [0, 1]}), recipe(parameters={"scale": [0, 1]}), "parameters.lambda"),
        (
            recipe(parameters={"svd_rank": 4}),
            recipe(parameters={"rank": 4}),
            "parameters.svd_rank: read as rank",
        ),
        (
            recipe("karcher", parameters={"max_iter": 9}),
            recipe("karcher", parameters={"max_passes": 9}),
            "parameters.max_iter: read as max_passes",
        ),
        (
            recipe(models=[{"model": "a", "parameters": {"int8_mask": True}}, {"model": "b"}]),
            recipe(),
            "models[0].parameters.int8_mask: nothing to do",
        ),
        (
            recipe("dare_ties", parameters={"rescale": True}),
            recipe("dare_ties", parameters={"rescale": "norm"}),
            "parameters.rescale: true: read as norm",
        ),
        (
            recipe("dare_ties", parameters={"rescale": False}),
            recipe("dare_ties", parameters={"rescale": "none"}),
            "parameters.rescale: false: read as none",
        ),
        (
            recipe(parameters={"normalize": 1.0}),
            recipe(parameters={"normalize": True}),
            "parameters.normalize: 1.0: read as true",
        ),
        (
            recipe(parameters={"normalize": 0}),
            recipe(parameters={"normalize": False}),
            "parameters.normalize: 0: read as false",
        ),
        (
            recipe("slerp", parameters={"normalize": True}),
            recipe("slerp"),
            "parameters.normalize: nothing to",
        ),
        (
            recipe("cat", parameters={"normalize": False}),
            recipe("cat"),
            "parameters.normalize: nothing to do",
        ),
        (recipe(parameters={"rescale": "none"}), recipe(), "parameters.rescale: nothing to do"),
        (
            recipe("model_stock", parameters={"filter_wise": False}),
            recipe("model_stock"),
            "filter_wise: nothing",
        ),
        (
            recipe("multislerp", parameters={"normalize_weights": True}),
            recipe("multislerp"),
            "parameters.normalize_weights: nothing to do",
        ),
        (
            recipe("nuslerp", parameters={"nuslerp_flatten": True}),
            recipe("nuslerp"),
            "nuslerp_flatten: nothing",
        ),
        (
            recipe("nuslerp", parameters={"nuslerp_flatten": False, "nuslerp_row_wise": False}),
            recipe("nuslerp_rows"),
            "parameters.nuslerp_flatten: read as merge_method nuslerp_rows",
        ),
        (
            recipe("nuslerp", parameters={"nuslerp_row_wise": True}),
            recipe("nuslerp"),
            "parameters.nuslerp_row_wise: nothing to do: without nuslerp_flatten: false",
        ),
        (
            recipe("task_arithmetic", models=signed(1, -0.5), parameters={"normalize": True}),
            recipe("task_arithmetic", models=signed(2, -1), parameters={}),
            "parameters.normalize: read as weights that are divided by their sum 0.5",
        ),
        (
            recipe("task_arithmetic", parameters={"normalize": True}),
            recipe("average"),
            "parameters.normalize: read as merge_method average",
        ),
        (
            recipe("average", parameters={"normalize": False}),
            recipe("svd"),
            "parameters.normalize: read as merge_method svd",
        ),
        (recipe(base_model="b"), recipe(models=MODELS[:1], base_model="b"), "models: b: left out: it is the"),
        (
            recipe("average", base_model="b"),
            recipe("average"),
            "base_model: left out: it is one of the models",
        ),
        (recipe("karcher", base_model="x/../a"), recipe("karcher"), "base_model: left out"),
        (
            recipe("slerp", base_model="b"),
            recipe("slerp", models=MODELS[::-1]),
            "base_model: left out: slerp goes from b",
        ),
        (
            recipe("slerp", models=MODELS[:1], base_model="b"),
            recipe("slerp", models=MODELS[::-1]),
            "base_model: left out: slerp goes from b",
        ),
        (
            recipe("passthrough", models=[{"model": "a", "parameters": {"scale": 2}}]),
            recipe("average", models=MODELS[:1], parameters={"scale": 2}),
            "merge_method: passthrough: read as merge_method average",
        ),
        (
            recipe("della", parameters={"density": [0.9, 1, 0.95]}),
            recipe("della", parameters={"density": [0.9, 1, 0.95], "epsilon": (1 - 0.95) / 2}),
            "parameters.epsilon: 0.025: 0.15, which it is if not given, does not fit",
        ),
    ],
)
def test_a_word_is_read_as_ours_and_told(theirs: dict[str, Any], ours: dict[str, Any], told: str) -> None:
    found, same = make_recipe(theirs), make_recipe(ours)
    assert plain(found) == plain(same)
    assert same.translations == ()
    assert sum(told in text for text in found.translations) == 1


@pytest.mark.parametrize("theirs", [recipe("linear", base_model="b"), recipe(base_model="b")])
def test_a_second_translation_changes_nothing(theirs: dict[str, Any]) -> None:
    found = make_recipe(theirs)
    said = {key: value for key, value in found.model_dump(mode="json").items() if value is not None}
    assert make_recipe(said) == found


@pytest.mark.parametrize(
    ("said", "computed", "written", "told"),
    [
        (
            "dtype: bfloat16",
            "float64",
            "bfloat16",
            "dtype: bfloat16: read as out_dtype: the result is computed in",
        ),
        ("dtype: float32", "float64", "float32", "dtype: float32: read as out_dtype"),
        (
            "dtype: float16\nout_dtype: float32",
            "float64",
            "float32",
            "dtype: float16: nothing to do: computed in float64, written in the out_dtype float32",
        ),
        ("dtype: float64\nout_dtype: float16", "float64", "float16", ""),
    ],
)
def test_a_dtype_in_a_file_is_that_of_the_output(
    tmp_path: Path, said: str, computed: str, written: str, told: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"merge_method: ties\nmodels: [{{model: a}}, {{model: b}}]\n{said}\n")
    found = read_recipe([str(path)])
    assert (found.dtype, found.out_dtype) == (computed, written)
    assert "".join(found.translations).startswith(told)
    assert bool(found.translations) == bool(told)
    assert read_recipe([str(path)], {"dtype": "float32"}).dtype == "float32"


def test_what_was_given_is_not_changed() -> None:
    theirs = recipe("linear", base_model="b", parameters={"lambda": 1})
    make_recipe(theirs)
    assert theirs == recipe("linear", base_model="b", parameters={"lambda": 1})


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (recipe(parameters={"normalize": 0.5}), "parameters.normalize: 0.5: expected true or false"),
        (recipe(parameters={"normalize": "true"}), "write true without quotes"),
        (recipe(parameters={"rescale": "norm"}), "ties takes no rescale"),
        (recipe("slerp", parameters={"normalize": False}), "slerp takes no normalize"),
        (recipe("cat", parameters={"normalize": True}), "cat takes no normalize"),
        (
            recipe("nuslerp", parameters={"nuslerp_row_wise": True, "nuslerp_flatten": False}),
            "parameters.nuslerp_row_wise: true: mergekit's then counts each column",
        ),
        (recipe("model_stock", parameters={"filter_wise": True}), "parameters.filter_wise: true: mergekit's"),
        (
            recipe("task_arithmetic", models=signed(1, -1), parameters={"normalize": True}),
            "parameters.normalize: true: the weights add up to 0",
        ),
        (
            recipe("task_arithmetic", models=signed(1, [0, -1]), parameters={"normalize": True}),
            "parameters.normalize: true: weights of which some are below zero",
        ),
        (recipe("passthrough"), "merge_method: passthrough takes one model, and there are 2"),
        (recipe("slerp", models=[*MODELS, {"model": "c"}], base_model="c"), "exactly 2"),
        (
            recipe(tokenizer={"source": "base", "tokens": {}}),
            "unknown key 'tokenizer.tokens': tokens have the",
        ),
        (
            recipe(tokenizer={"pad_to_multiple_of": 8}),
            "unknown key 'tokenizer.pad_to_multiple_of': a vocabulary",
        ),
        (recipe(quantize=True), "unknown key 'quantize'"),
        (recipe("della", parameters={"density": 2}), "parameters.density: 2: expected at most 1"),
        (recipe(combination_type="ties"), "unknown key 'combination_type'"),
    ],
)
def test_what_means_nothing_is_refused_as_ever(theirs: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(theirs)
    assert says in str(caught.value)


@pytest.mark.parametrize("word", COMBINATION_TYPES)
def test_a_word_of_peft_is_a_row_on_updates(word: str) -> None:
    found = make_recipe({"combination_type": word, "models": MODELS, "parameters": {"svd_rank": 2}})
    assert found.merge_method == COMBINATION_TYPES[word].ours
    assert found.parameters["rank"] == 2
    assert found.translations[0].startswith(f"combination_type: {word}: read as merge_method")


def test_the_command_line_is_translated_too() -> None:
    found = read_recipe(["a", "b"], {"merge_method": "linear", "rank": 4})
    assert (found.merge_method, found.parameters) == ("average", {"rank": 4})
    assert len(found.translations) == 1


def test_the_tables_name_what_is_there_and_each_entry_has_a_sentence() -> None:
    words = [*METHOD_WORDS.values(), *COMBINATION_TYPES.values(), *OTHER_ROWS.values()]
    assert [find_method(word.ours).name for word in words] == [word.ours for word in words]
    assert all(word.why for word in words)
    assert not METHOD_WORDS.keys() & METHODS.keys()
    assert all(word.ours in {None, *PARAMETERS} and word.why for word in PARAMETER_WORDS.values())
    assert not PARAMETER_WORDS.keys() & PARAMETERS.keys()
    assert all(word.ours in PARAMETERS[name].choices for (name, _), word in VALUE_WORDS.items())
    assert all(why and group in {"", "normalised"} for group, why in NEEDLESS.values())


@pytest.mark.parametrize(
    "own", [0.5, [0.125, 1], [{"filter": "q", "value": 0.5}], {"filter": "v", "value": [1, 2]}]
)
@pytest.mark.parametrize("every", [0.25, [1, 0.5], [{"filter": "k", "value": 2}, {"value": 3}]])
def test_one_level_over_another_holds_as_two_levels_do(own: Any, every: Any) -> None:
    modules = [f"layers.{i}.{name}" for i in range(3) for name in ("q", "k", "v")]
    weighted = {"merge_method": "average", "parameters": {"weight": every}}
    two = make_recipe({**weighted, "models": [{"model": "a", "parameters": {"weight": own}}]})
    one = make_recipe(
        recipe("average", models=MODELS[:1], parameters=put_over({"weight": own}, {"weight": every}))
    )
    weights = [Resolver(found, find_method("average"), modules) for found in (two, one)]
    assert [weights[0].weights(module) for module in modules] == [
        weights[1].weights(module) for module in modules
    ]


SLICES = (
    "slices:\n  - sources: [{model: a, layer_range: [0, 1]}]\n  - sources: [{model: b, layer_range: [0, 1]}]"
)


@pytest.mark.parametrize(
    ("said", "models", "based", "told"),
    [
        ("merge_method: karcher", "a b base", False, "models: base: added: mergekit's karcher merges its"),
        (
            "merge_method: linear\nparameters: {weight: 1}",
            "a b base",
            False,
            "models: base: added: mergekit's",
        ),
        ("merge_method: linear", "a b", True, "base_model: base: is none of the models, and has no weight"),
        ("merge_method: average", "a b", True, ""),
        ("merge_method: multislerp", "a b", True, ""),
        ("merge_method: nuslerp", "a b", True, ""),
        ("merge_method: slerp", "a b", True, ""),
        ("merge_method: passthrough", "a b", False, "base_model: base: left out: passthrough merges the"),
    ],
)
def test_a_base_that_is_none_of_the_models_is_what_it_is_to_mergekit(
    tmp_path: Path, said: str, models: str, based: bool, told: str
) -> None:
    for name in ("a", "b", "base"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    what = "models: [{model: a}, {model: b}]"
    if "passthrough" in said:
        what = SLICES
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{said}\n{what}\nbase_model: base\n")
    found = read_recipe([str(path)])
    assert [Path(entry.model).name for entry in found.models] == models.split()
    assert (found.base_model is not None) == based
    assert told in "\n".join(found.translations)


def test_a_base_of_adapters_is_no_model_to_merge(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model.safetensors").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/adapter_config.json").touch()
    path = tmp_path / "recipe.yaml"
    path.write_text("merge_method: karcher\nmodels: [{model: a}]\nbase_model: base\n")
    found = read_recipe([str(path)])
    assert (len(found.models), found.base_model) == (1, str(tmp_path / "base"))


def test_a_base_of_the_hub_is_told_by_its_id() -> None:
    base = "/tmp/hub/models--org--name/snapshots/0a1b"
    found = make_recipe(recipe(models=[*MODELS, {"model": base}], base_model=base))
    assert found.translations == ("models: org/name: left out: it is the base_model, and its update is zero",)
