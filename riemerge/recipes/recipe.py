"""Recipes: what was asked for, in YAML or on the command line, checked before any input is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from riemerge.errors import RecipeError
from riemerge.methods import DEFAULT_METHOD, METHODS, PARAMETERS, Method, did_you_mean, find_method
from riemerge.methods.parameters import MATCHED, Parameter, check_value, described, scalars
from riemerge.recipes.specs import parse_specs
from riemerge.recipes.yaml12 import parse_yaml, read_yaml

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


@final
class ModelEntry(BaseModel):
    """One input of a recipe.

    Attributes:
        model: Its folder.
        parameters: What was said of it alone, by name: `weight`, and what else may differ between models.
        statistics: Where its statistics are, for a method that needs data.
    """

    model_config = _STRICT
    model: str = Field(min_length=1)
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    statistics: str | None = Field(default=None, min_length=1)


@final
class Recipe(BaseModel):
    """A merge as asked for, in mergekit's vocabulary; every unknown key is an error.

    A value in `parameters` is plain data: a scalar; a list of scalars, a *gradient* over depth; or a list of
    `{filter, value}` by part of a module's name. `recipes.resolve.Resolver` says what it is in one module.

    Attributes:
        merge_method: A name of `riemerge.methods.METHODS`.
        models: The inputs, at least one.
        base_model: Folder of the model that they were all trained from, where it is needed.
        base_statistics: Where its statistics are.
        parameters: What was said of all models or of the method, by name; nothing that was not said.
        dtype: The dtype of the tall factors while computing; the reduced problem is always float64.
        out_dtype: The dtype written; None keeps that of the inputs.
        out_type: What is written; None is what the inputs are.
        uniform_rank: Whether all modules of an adapter are written with one rank, by columns of zero.
    """

    model_config = _STRICT
    merge_method: str
    models: tuple[ModelEntry, ...] = Field(strict=False)
    base_model: str | None = Field(default=None, min_length=1)
    base_statistics: str | None = Field(default=None, min_length=1)
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    dtype: Literal["float32", "float64"] = "float64"
    out_dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = None
    out_type: Literal["adapter", "delta", "checkpoint"] | None = None
    uniform_rank: bool = False

    @property
    def weights(self) -> tuple[float | None, ...]:
        """The weights as given, one for each model; None where a weight is not the same in all modules."""
        every = self.parameters.get("weight", 1.0)
        given = (entry.parameters.get("weight", every) for entry in self.models)
        return tuple(None if isinstance(weight, list) else weight for weight in given)


def make_recipe(raw: object, *, where: str = "") -> Recipe:
    """Check a recipe given as plain mappings, lists, texts and numbers.

    Args:
        raw: What the recipe says.
        where: The name of its file, put before every problem.

    Raises:
        RecipeError: Any key, type, number, method or combination of them that makes no sense: all of them at
            once.
    """
    before = f"{where}: " if where else ""
    if not isinstance(raw, Mapping):
        raise RecipeError(
            f"{before}a recipe is a mapping with merge_method and models; found {described(raw)}"
        )
    problems: list[str] = []
    method = _find_method(raw.get("merge_method"), problems)
    checked = _check_parameters(raw, method, problems)
    try:
        recipe = Recipe.model_validate(checked)
    except ValidationError as fault:
        texts = [*map(_explain, fault.errors()), *problems]
        raise RecipeError([before + text for text in texts]) from None
    if method and not problems:
        problems = _contradictions(recipe, method)
    if problems:
        raise RecipeError([before + problem for problem in problems])
    return recipe


_TOP = ("merge_method", "base_model", "base_statistics", "dtype", "out_dtype", "out_type", "uniform_rank")


def read_recipe(
    sources: Sequence[str | tuple[str, float]],
    overrides: Mapping[str, Any] | None = None,
    statistics: Sequence[str] = (),
) -> Recipe:
    """Read what to merge: one YAML file, or folders with weights such as `a:0.5 b:0.5`.

    Law: an override wins over the file, also over what the file says of one model; everything else is as in
    the file or at its default.

    Args:
        sources: A single file that ends in .yaml or .yml, or for each model one `folder[:weight]` (see
            `riemerge.recipes.specs.parse_spec`), or its folder and its weight.
        overrides: Values for `merge_method`, `base_model`, `base_statistics`, `dtype`, `out_dtype`,
            `out_type`, `uniform_rank` or any of `parameters`; None is no override.
        statistics: Folder of the statistics of each model, in their order, where `sources` are folders.

    Raises:
        RecipeError: The file cannot be read as plain YAML 1.2, or the recipe makes no sense.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    top = {key: given.pop(key) for key in _TOP if key in given}
    recipes = [source for source in sources if isinstance(source, str) and _is_recipe(Path(source))]
    if recipes and (len(sources) > 1 or statistics):
        raise RecipeError(f"{recipes[0]}: a recipe stands alone: it names its models and statistics itself")
    if statistics and len(statistics) != len(sources):
        raise RecipeError(
            f"statistics: {len(statistics)} folders for {len(sources)} models: give one for each"
        )
    if recipes:
        path = Path(recipes[0])
        raw, where = _read_file(path), path.name
    else:
        specs = parse_specs(sources)
        data: Sequence[str | None] = list(statistics) or [None] * len(specs)
        models = [
            {"model": folder, "parameters": {"weight": weight}, "statistics": own}
            for (folder, weight), own in zip(specs, data, strict=True)
        ]
        raw, where = {"merge_method": DEFAULT_METHOD, "models": models}, ""
    if isinstance(raw, dict):
        raw |= top
        if given and isinstance(raw.get("parameters", {}), dict):
            raw["parameters"] = raw.get("parameters", {}) | given
            for _, said in _said_of_models(raw):
                for name in given:
                    said.pop(name, None)
    return make_recipe(raw, where=where)


def _is_recipe(path: Path) -> bool:
    # os.path asks without raising: too long a name is told by who opens it.
    return path.suffix.lower() in {".yaml", ".yml"} and not os.path.isdir(path)  # noqa: PTH112


def parse_value(spec: Parameter, text: str, *, where: str | None = None) -> Any:
    """Read a parameter's value as a command line has it: `0.5`, `sum`, `[0, 0.5, 1]`.

    Law: the value is that of the same text in a recipe, but that words need no quotes.

    Args:
        spec: The parameter.
        text: The text of its value.
        where: The words before every problem; by default the option `--name`.

    Raises:
        RecipeError: No value of this parameter.
    """
    where = where or "--" + spec.name.replace("_", "-")
    is_word = spec.kind in {"choice", "text"} and not text.lstrip().startswith("[")
    problems: list[str] = []
    value = check_value(spec, text if is_word else parse_yaml(text, where=where), where, problems)
    if problems:
        raise RecipeError(problems)
    return value


def suggest_parameter(name: str, known: Iterable[str]) -> str:
    """Say which parameter was probably meant by a name that none has, and what the others are."""
    if ours := _PARAMETERS_ELSEWHERE.get(name):
        return f"it is called {ours!r} here"
    return did_you_mean(name, known)


# --- the method and its parameters --------------------------------------------------------------------------

_METHODS_ELSEWHERE = {"linear": "average"}
_PARAMETERS_ELSEWHERE = {"lambda": "scale"}


def _find_method(name: object, problems: list[str]) -> Method | None:
    """The row of the table; None where the recipe names none, which is a problem."""
    if not isinstance(name, str):
        return None
    if name not in METHODS and (ours := _METHODS_ELSEWHERE.get(name)):
        problems.append(f"merge_method: unknown method {name!r}: it is called {ours!r} here")
        return None
    try:
        return find_method(name)
    except RecipeError as fault:
        problems += fault.problems
        return None


def _check_parameters(raw: Mapping[str, Any], method: Method | None, problems: list[str]) -> dict[str, Any]:
    """The recipe with all parameters checked, as far as it has the shape of one."""
    checked = dict(raw)
    if isinstance(said := raw.get("parameters"), Mapping):
        checked["parameters"] = _check_level(said, method, "parameters", problems, of_model=False)
    if isinstance(models := raw.get("models"), list | tuple):
        checked["models"] = [dict(entry) if isinstance(entry, Mapping) else entry for entry in models]
    for place, said in _said_of_models(checked):
        path = f"models[{place}].parameters"
        checked["models"][place]["parameters"] = _check_level(said, method, path, problems, of_model=True)
    return checked


def _said_of_models(raw: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    """The parameters of each model that has some, with its place."""
    models = raw.get("models")
    for place, entry in enumerate(models if isinstance(models, list) else ()):
        if isinstance(entry, dict) and isinstance(said := entry.get("parameters"), Mapping):
            yield place, said


def _check_level(
    said: Mapping[Any, Any], method: Method | None, path: str, problems: list[str], *, of_model: bool
) -> dict[str, Any]:
    """The parameters of one level: the recipe's own, or those of one model."""
    takes = ("weight", *(method.parameters if method else PARAMETERS))
    known = [name for name in takes if PARAMETERS[name].per_model] if of_model else [*takes]
    checked: dict[str, Any] = {}
    for name, value in said.items():
        if name not in PARAMETERS:
            advice = suggest_parameter(str(name), dict.fromkeys(known))
            problems.append(f"{path}: unknown key {str(name)!r}: {advice}")
        elif method and name not in takes:
            listed = ", ".join(method.parameters)
            problems.append(
                f"{path}: {method.name} takes no {name}: leave it out ({method.name} takes {listed})"
            )
        elif name not in known:
            problems.append(
                f"{path}: {name} is the same for all models: put it under the recipe's own parameters"
            )
        else:
            checked[name] = check_value(PARAMETERS[name], value, f"{path}.{name}", problems)
    return checked


# --- between the fields -------------------------------------------------------------------------------------


def _contradictions(recipe: Recipe, method: Method) -> list[str]:
    """What is wrong between the fields of a recipe whose fields are each right."""
    if not recipe.models:
        return ["models: no adapter to merge: name at least one folder"]
    counting = [place for place, weight in enumerate(recipe.weights) if weight != 0]
    if not counting:
        return ["models: every weight is 0: at least one adapter must count"]
    return [
        *_wrong_count(method, len(counting)),
        *_unmatched(recipe, method),
        *_negative_weights(recipe, method),
        *_wrong_statistics(recipe, method, counting),
        *_base_among_models(recipe, method),
    ]


def _wrong_count(method: Method, count: int) -> Iterator[str]:
    least, most = method.models
    if least <= count <= (most or count):
        return
    bound = "exactly" if least == most else "at least" if count < least else "at most"
    expected = f"{bound} {least if count < least else most}"
    yield f"models: {method.name} merges {expected} of weight other than 0: found {count}"


def _unmatched(recipe: Recipe, method: Method) -> Iterator[str]:
    if method.normalised and not method.negative_weights:
        return
    for path, scale in scalars(recipe.parameters.get("scale", 1.0), "parameters.scale"):
        if scale == MATCHED:
            yield (
                f"{path}: {MATCHED}: brings the result to the weighted mean norm of the inputs, for weights "
                f"that are divided by their sum, and {method.name} uses them as given: give a number"
            )


def _negative_weights(recipe: Recipe, method: Method) -> Iterator[str]:
    if method.negative_weights:
        return
    allowing = ", ".join([row.name for row in METHODS.values() if row.negative_weights][:3])
    levels = [("parameters", recipe.parameters, "all models")]
    levels += [(f"models[{i}].parameters", one.parameters, one.model) for i, one in enumerate(recipe.models)]
    for path, said, whose in levels:
        for place, weight in scalars(said.get("weight", 1.0), f"{path}.weight"):
            if weight < 0:
                yield (
                    f"{place}: {described(weight)} of {whose}: {method.name} is a mean and takes no weight "
                    f"below zero: use a weight of at least 0, or a merge_method such as {allowing}"
                )


def _wrong_statistics(recipe: Recipe, method: Method, counting: Sequence[int]) -> Iterator[str]:
    given = [f"models[{place}]" for place, entry in enumerate(recipe.models) if entry.statistics]
    given += ["base_statistics"] if recipe.base_statistics else []
    if given and not method.statistics:
        yield f"{', '.join(given)}: {method.name} uses no statistics: leave them out"
    if method.base_statistics and not recipe.base_statistics:
        yield f"base_statistics: missing: {method.name} needs those of the base model too: collect them"
    if recipe.base_statistics and not method.base_statistics and method.statistics:
        yield f"base_statistics: {method.name} uses those of the models alone: leave it out"
    without = [place for place in counting if not recipe.models[place].statistics]
    if without and method.statistics:
        lacking = (f"models[{place}] ({recipe.models[place].model})" for place in without)
        yield (
            f"{', '.join(lacking)}: no statistics: {method.name} needs those of every model "
            f"({', '.join(method.statistics)}): collect them with riemerge.statistics.collect_statistics and "
            "name what it wrote under statistics, beside model"
        )


def _base_among_models(recipe: Recipe, method: Method) -> Iterator[str]:
    if method.checkpoints == "weights":
        return
    for place, entry in enumerate(recipe.models):
        if entry.model == recipe.base_model:
            yield (
                f"models[{place}]: {entry.model} is the base_model itself, and its update is zero: "
                "leave it out of models"
            )


# --- what pydantic found, in our words ----------------------------------------------------------------------

_ADVICE = {
    "slices": "layers are not put together from several models: list whole models under models",
    "modules": "list the models under models; parameters may differ between modules by filter",
    "tokenizer": "tokenizers are not merged: all models must share one vocabulary",
    "tokenizer_source": "tokenizers are not merged: all models must share one vocabulary",
    "chat_template": "tokenizers are not merged: copy the template beside the result",
}


def _explain(error: Any) -> str:
    *path, last = error["loc"]
    found, kind = error["input"], error["type"]
    if kind == "extra_forbidden":
        where = _path(path)
        return f"{f'{where}: ' if where else ''}unknown key {str(last)!r}: {_advice(path, str(last))}"
    where = _path(error["loc"])
    if kind == "missing":
        return f"{where}: missing: a recipe must say it"
    if kind == "literal_error":
        return f"{where}: {found!r} is not known: expected {error['ctx']['expected']}"
    return f"{where}: {described(found)}: expected {_EXPECTED.get(kind, str(error['msg']))}"


_EXPECTED = {
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "string_too_short": "a text that is not empty",
}


def _advice(path: Sequence[str | int], key: str) -> str:
    """What to do about an unknown key of the recipe, or of one of its models."""
    if not path and key in _ADVICE:
        return _ADVICE[key]
    if key in PARAMETERS:
        return "it belongs under parameters"
    return did_you_mean(key, (ModelEntry if path else Recipe).model_fields)


def _path(parts: Sequence[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


# --- files --------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> Any:
    """Read a recipe file, with the folders it names taken relative to it."""
    raw = read_yaml(path)
    if isinstance(raw, dict):
        models = raw.get("models")
        for one in [raw, *(models if isinstance(models, list) else ())]:
            _relate(one, path.parent)
    return raw


def _relate(said: Any, folder: Path) -> None:
    """Take the paths in one mapping of a recipe relative to a folder."""
    for key in ("model", "statistics", "base_model", "base_statistics"):
        if isinstance(said, dict) and isinstance(said.get(key), str) and said[key]:
            said[key] = str(folder / said[key])
