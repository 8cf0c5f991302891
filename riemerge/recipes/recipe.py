"""Recipes: what was asked for, in YAML or on the command line, checked before any input is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from riemerge.errors import RecipeError, try_each
from riemerge.methods import (
    COLUMNS,
    DEFAULT_METHOD,
    METHODS,
    PARAMETERS,
    PLAIN_METHOD,
    Method,
    find_row,
)
from riemerge.methods.parameters import MATCHED, Parameter, check_value, describe, scalars
from riemerge.recipes.documents import Document, places_of_models, read_documents
from riemerge.recipes.specs import locate_model, parse_specs
from riemerge.recipes.translations import (
    NO_ROWS,
    PARAMETER_WORDS,
    put_over,
    translate_for_method,
    translate_words,
)
from riemerge.recipes.yaml12 import parse_yaml
from riemerge.registry import did_you_mean

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


@final
class ModelEntry(BaseModel):
    """One input of a recipe.

    Attributes:
        model: The folder of the model.
        parameters: The model's own parameters by name: `weight`, and others that may differ between models.
        statistics: The folder of the model's statistics, for a method that needs data.
    """

    model_config = _STRICT
    model: str = Field(min_length=1)
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    statistics: str | None = Field(default=None, min_length=1)


@final
class Source(BaseModel):
    """The layers that a slice takes from one model.

    Attributes:
        model: The folder of the model, one of the recipe's models or its base.
        layer_range: (start, stop), the layers start, ..., stop - 1 of the model.
        parameters: The model's own parameters in this slice, by name.
    """

    model_config = _STRICT
    model: str = Field(min_length=1)
    layer_range: tuple[int, int] = Field(strict=False)
    parameters: Mapping[str, Any] = Field(default_factory=dict)


@final
class Slice(BaseModel):
    """Layers of the result, merged from as many layers of each of its sources.

    Attributes:
        sources: The models with their layers, at least one.
        parameters: The parameters of all sources of the slice, by name: they go before those of the recipe.
    """

    model_config = _STRICT
    sources: tuple[Source, ...] = Field(strict=False, min_length=1)
    parameters: Mapping[str, Any] = Field(default_factory=dict)


@final
class Recipe(BaseModel):
    """A merge as asked for, in mergekit's vocabulary; every unknown key is an error.

    A value in `parameters` is plain data: a scalar; a list of scalars, a *gradient* over depth; or a list of
    `{filter, value}` by part of a module's name. `recipes.resolve.Resolver` says what it is in one module.

    Attributes:
        merge_method: A name of `riemerge.methods.METHODS`.
        edits: Edits in place of the method's own, each a name of `riemerge.methods.EDITS` with its options.
        geometry: The geometry in place of the method's own: a name of `riemerge.geometries.GEOMETRIES`.
        loss: The loss in place of the method's own: a name of `riemerge.losses.LOSSES`.
        models: The inputs, at least one.
        slices: The stack of layers of the result, from its first layer on, where they do not come from the
            layers of the same places: each of `models` is a source of one of them. None keeps the layers.
        base_model: The folder of the model that all inputs were trained from, where it is needed.
        base_statistics: The folder of the statistics of the base model.
        parameters: The parameters of all models or of the method that were given, by name.
        dtype: The dtype of the tall factors while computing; the reduced problem is always float64. (In a
            file any other than float64 is read as `out_dtype`, as mergekit means it.)
        out_dtype: The dtype written; None keeps the dtype of the inputs.
        out_type: The kind of model written; None keeps the kind of the inputs.
        uniform_rank: Whether all modules of an adapter are written with one rank, by columns of zero; None
            means true.
        same_base: Whether adapters are taken as trained on one base model, whatever they name.
        base_name: The base model that the result names, in place of that of the inputs.
        rename: New prefixes of module names by the prefixes that adapters have.
        missing: What a module counts as that some adapters lack: an `error`, an update of `zero`, or `skip`
            those adapters there.
        heads: What becomes of whole tensors saved beside factors: `drop`, `average` or `from=NAME`; None
            refuses them.
        dialect: The dialect in which an adapter is written; None takes that of the first input.
        tokenizer: The tokenizer that is written: `base`, `union`, or a model's; None copies the files beside
            the base model or the first.
        chat_template: The chat template that is written.
        translations: What was read as other words than those that were said, a sentence for each.
        earlier: The recipes of the documents that were merged before, as their records have them, by the
            names by which this one names their results.
    """

    model_config = _STRICT
    merge_method: str
    edits: tuple[str, ...] | None = Field(default=None, strict=False)
    geometry: str | None = Field(default=None, min_length=1)
    loss: str | None = Field(default=None, min_length=1)
    models: tuple[ModelEntry, ...] = Field(strict=False)
    slices: tuple[Slice, ...] | None = Field(default=None, strict=False)
    base_model: str | None = Field(default=None, min_length=1)
    base_statistics: str | None = Field(default=None, min_length=1)
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    dtype: Literal["float32", "float64"] = "float64"
    out_dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = None
    out_type: Literal["adapter", "delta", "checkpoint"] | None = None
    uniform_rank: bool | None = None
    same_base: bool = False
    base_name: str | None = Field(default=None, min_length=1)
    rename: Mapping[str, str] = Field(default_factory=dict)
    missing: Literal["error", "zero", "skip"] = "error"
    heads: str | None = Field(default=None, pattern=r"^(drop|average|from=.+)$")
    dialect: Literal["peft", "kohya", "diffusers", "mlx"] | None = None
    tokenizer: str | None = Field(default=None, min_length=1)
    chat_template: str | None = Field(default=None, min_length=1)
    translations: tuple[str, ...] = Field(default=(), strict=False)
    earlier: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)

    @property
    def method(self) -> Method:
        """The row of the table of methods, with what the recipe puts in place of its columns."""
        return find_row(vars(self))

    @property
    def adapting(self) -> dict[str, Any]:
        """What was said of adapters that differ in base, modules, heads or dialect, by field."""
        fields = ("same_base", "base_name", "rename", "missing", "heads", "dialect")
        values = {name: getattr(self, name) for name in fields}
        return {name: value for name, value in values.items() if value and value != "error"}

    @property
    def weights(self) -> tuple[float | None, ...]:
        """The weights as given, one for each model; None where a weight is not the same in all modules.

        Law: of a stack of slices, the weight that a model has in all the slices that it is a source of.
        """
        if self.slices is not None:
            return tuple(self._weight_in_slices(entry.model, self.slices) for entry in self.models)
        every = self.parameters.get("weight", 1.0)
        given = (entry.parameters.get("weight", every) for entry in self.models)
        return tuple(None if isinstance(weight, list) else weight for weight in given)

    def _weight_in_slices(self, model: str, slices: tuple[Slice, ...]) -> float | None:
        given = [
            source.parameters.get("weight", part.parameters.get("weight", 1.0))
            for part in slices
            for source in part.sources
            if source.model == model
        ]
        first = given[0]
        if isinstance(first, list) or any(weight != first for weight in given):
            return None
        return float(first)


def make_recipe(raw: object, *, where: str = "", names: Collection[str] = ()) -> Recipe:
    """Check a recipe given as plain mappings, lists, texts and numbers, in our words or those of mergekit.

    Args:
        raw: The content of the recipe.
        where: The name of its file, put before every problem.
        names: Names of results that stand for models.

    Raises:
        RecipeError: A key, type, number, method or combination of them makes no sense: all of them at once.
    """
    before = where and f"{where}: "
    if not isinstance(raw, Mapping):
        raise RecipeError(
            f"{before}a recipe is a mapping with merge_method and models; found {describe(raw)}"
        )
    data = _copy(raw)
    translations = [*data.pop("translations", ()), *translate_words(data)]
    for level, key, text in places_of_models(data):
        level[key] = locate_model(text, names=names)
    make = _make_plain if data.get("slices") is None else _make_stack
    recipe = _put_before(before, lambda: make(data, translations))
    return recipe.model_copy(update={"translations": tuple(dict.fromkeys(translations))})


def _put_before(words: str, make: Callable[[], Recipe]) -> Recipe:
    """Return what a function makes, and put words before each problem of a recipe that makes no sense."""
    try:
        return make()
    except RecipeError as fault:
        raise RecipeError(words + problem for problem in fault.problems) from None


def _make_plain(data: dict[str, Any], translations: list[str]) -> Recipe:
    """Return the recipe that plain data in our words say, and add what depends on the method to a list."""
    translations += translate_for_method(data)
    problems: list[str] = []
    if isinstance(edits := data.get("edits"), str):
        data["edits"] = edits.split(",")
    method = _find_method(data, problems)
    _check_parameters(data, method, "parameters", problems)
    for i, entry in _entries(data):
        _check_parameters(entry, method, f"models[{i}].parameters", problems, of_model=True)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as fault:
        raise RecipeError([*map(_explain, _own_faults(fault.errors())), *problems]) from None
    if method and not problems:
        problems = _contradictions(recipe, method)
    RecipeError.refuse(problems)
    return recipe


def _make_stack(data: dict[str, Any], translations: list[str]) -> Recipe:
    """Return the recipe of a stack of slices, each of which is checked as a recipe of its own."""
    slices = data.pop("slices")
    if "models" in data:
        raise RecipeError("models, slices: both are given: a recipe has one of them")
    try:
        stack = TypeAdapter(tuple[Slice, ...]).validate_python(slices, strict=False)
    except ValidationError as fault:
        faults = [{**error, "loc": ("slices", *error["loc"])} for error in fault.errors()]
        raise RecipeError(map(_explain, _own_faults(faults))) from None
    RecipeError.refuse(_faults_of_slices(stack))

    def make(k: int) -> tuple[Recipe, Slice]:
        said, own = stack[k], list[str]()
        models = [source.model_dump(exclude={"layer_range"}) for source in said.sources]
        parameters = put_over(said.parameters, data.get("parameters") or {})
        raw = _copy({**data, "models": models, "parameters": parameters})
        recipe = _put_before(f"slices[{k}]: ", lambda: _make_plain(raw, own))
        translations.extend(f"slices[{k}]: {text}" for text in own)
        ranges = {source.model: source.layer_range for source in said.sources}
        sources = tuple(
            Source(model=entry.model, layer_range=ranges[entry.model], parameters=entry.parameters)
            for entry in recipe.models
        )
        return recipe, Slice(sources=sources, parameters=recipe.parameters)

    recipes, parts = zip(*try_each(make, range(len(stack))), strict=True)
    whole: Recipe = recipes[0]
    entries = {entry.model: ModelEntry(model=entry.model) for recipe in recipes for entry in recipe.models}
    return whole.model_copy(update={"models": tuple(entries.values()), "slices": parts})


def _faults_of_slices(stack: Sequence[Slice]) -> Iterator[str]:
    if not stack:
        yield "slices: no slice to merge: name at least one"
    for k, part in enumerate(stack):
        models = [source.model for source in part.sources]
        counts = {source.layer_range[1] - source.layer_range[0] for source in part.sources}
        if len(set(models)) < len(models):
            yield f"slices[{k}]: a model is there twice: take its other layers in another slice"
        for i, source in enumerate(part.sources):
            if not 0 <= source.layer_range[0] < source.layer_range[1]:
                yield (
                    f"slices[{k}].sources[{i}].layer_range: {list(source.layer_range)}: expected [first, "
                    "one behind the last]"
                )
        if len(counts) > 1:
            yield f"slices[{k}]: its sources have {sorted(counts)} layers: take as many of each"


_RECORDED = ("translations", "earlier")
_TOP = (
    "merge_method",
    *COLUMNS,
    "base_model",
    "base_statistics",
    "dtype",
    "out_dtype",
    "out_type",
    "uniform_rank",
    "same_base",
    "base_name",
    "rename",
    "missing",
    "heads",
    "dialect",
)


def read_recipe(
    sources: Sequence[str | tuple[str, float]],
    overrides: Mapping[str, Any] | None = None,
    statistics: Sequence[str] = (),
) -> Recipe:
    """Read what to merge: a YAML file of one document, or folders with weights such as `a:0.5 b:0.5`.

    Law: an override wins over the file, also over what the file says of one model; everything else is as in
    the file or at its default.

    Args:
        sources: A single file that ends in .yaml or .yml, or for each model one `folder[:weight]` (see
            `riemerge.recipes.specs.parse_spec`), or its folder and its weight.
        overrides: Values for `merge_method`, `edits`, `geometry`, `loss`, `base_model`, `base_statistics`,
            `dtype`, `out_dtype`, `out_type`, `uniform_rank` or any of `parameters`; None is no override.
        statistics: The folder of the statistics of each model, in their order, where `sources` are folders.

    Raises:
        RecipeError: The file cannot be read as plain YAML 1.2, or the recipe makes no sense.
    """
    *earlier, (_, recipe) = read_recipes(sources, overrides, statistics)
    if earlier:
        raise RecipeError(
            f"{sources[0]}: {len(earlier) + 1} documents: riemerge merge merges them in order; here one is "
            "expected"
        )
    return recipe


def read_recipes(
    sources: Sequence[str | tuple[str, float]],
    overrides: Mapping[str, Any] | None = None,
    statistics: Sequence[str] = (),
) -> tuple[tuple[str | None, Recipe], ...]:
    """Read what to merge, as `read_recipe` does, also from a file of several documents.

    Args:
        sources: One YAML file, or folders with weights (see `read_recipe`).
        overrides: Values that win over those of the last document.
        statistics: The folder of the statistics of each model, where `sources` are folders.

    Returns:
        The recipe of each document, behind the name by which later ones name its result.

    Raises:
        RecipeError: What `read_recipe` raises.
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
        *earlier, last = read_documents(path)
        last = last._replace(data=_override(last.data, top, given))
        names = [str(document.name) for document in earlier]
        return tuple(
            (document.name, _make_document(document, path.name, names)) for document in (*earlier, last)
        )
    models: list[dict[str, Any]] = [
        {"model": folder, "parameters": {"weight": weight}} for folder, weight in parse_specs(sources)
    ]
    for model, folder in zip(models, statistics, strict=False):  # there may be none
        model["statistics"] = folder
    method = DEFAULT_METHOD
    if any(name in top for name in COLUMNS):
        method = PLAIN_METHOD
    return ((None, make_recipe(_override({"merge_method": method, "models": models}, top, given))),)


def _make_document(document: Document, where: str, names: Collection[str]) -> Recipe:
    data = document.data
    if isinstance(data, dict):
        RecipeError.refuse(
            f"{where}: unknown key {key!r}: a record has it, and no recipe"
            for key in _RECORDED
            if key in data
        )
        data = {**data, "translations": document.translations}
    return make_recipe(data, where=where, names=names)


def _override(data: Any, top: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
    """Return a recipe with other fields and parameters, which also win over what it says of one model."""
    if not isinstance(data, dict):
        return data
    data |= top
    if parameters and isinstance(data.setdefault("parameters", {}), dict):
        data["parameters"] |= parameters
        for _, entry in _entries(data):
            if isinstance(own := entry.get("parameters"), dict):
                entry["parameters"] = {name: own[name] for name in own if name not in parameters}
    return data


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
    RecipeError.refuse(problems)
    return value


def suggest_parameter(name: str, known: Iterable[str]) -> str:
    """Say which parameter was probably meant by a name that none has, and what the others are."""
    if (word := PARAMETER_WORDS.get(name)) and word.ours:
        return f"it is called {word.ours!r} here"
    return did_you_mean(name, known)


# --- the method and its parameters --------------------------------------------------------------------------


def _find_method(data: Mapping[str, Any], problems: list[str]) -> Method | None:
    """Return the row of the table with the recipe's columns; None where there is none, which is a problem."""
    name = data.get("merge_method")
    if not isinstance(name, str) or not _are_texts(data):
        return None
    if name in NO_ROWS:
        problems.append(f"merge_method: {name} is no row here: {NO_ROWS[name]}")
        return None
    try:
        return find_row(data)
    except RecipeError as fault:
        problems += fault.problems
        return None


def _are_texts(data: Mapping[str, Any]) -> bool:
    """Return whether the columns of a recipe are texts, or not there."""
    edits = data.get("edits") or []
    values = [data.get("geometry"), data.get("loss"), *(edits if isinstance(edits, list) else [edits])]
    return all(isinstance(value, str | None) for value in values)


def _copy(value: Any) -> Any:
    """Return plain data that shares nothing with what it is a copy of, in dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _copy(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(part) for part in value]
    return value


def _entries(data: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield what a recipe says of each model, as far as it has the shape of an entry, with its index."""
    if isinstance(models := data.get("models"), list):
        yield from ((i, entry) for i, entry in enumerate(models) if isinstance(entry, dict))


def _check_parameters(
    level: dict[str, Any], method: Method | None, path: str, problems: list[str], *, of_model: bool = False
) -> None:
    """Check, and replace by plain data, the parameters of the recipe itself or of one model."""
    if not isinstance(given := level.get("parameters"), dict):
        return
    takes = ["weight", *(method.parameters if method else PARAMETERS)]
    known = [name for name in takes if PARAMETERS[name].per_model or not of_model]
    level["parameters"] = checked = {}
    for name, value in given.items():
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


# --- between the fields -------------------------------------------------------------------------------------


def _contradictions(recipe: Recipe, method: Method) -> list[str]:
    """Say what is wrong between the fields of a recipe whose fields are each right."""
    if not recipe.models:
        return ["models: no adapter to merge: name at least one folder"]
    counting = [i for i, weight in enumerate(recipe.weights) if weight != 0]
    if not counting:
        return ["models: every weight is 0: at least one adapter must count"]
    return [
        *_wrong_count(method, len(counting)),
        *_refuse_matched(recipe, method),
        *_negative_weights(recipe, method),
        *_wrong_statistics(recipe, method, counting),
        *_base_among_models(recipe, method),
    ]


def _wrong_count(method: Method, count: int) -> Iterator[str]:
    least, most = method.models
    bound, number = "at most", most
    if count < least:
        bound, number = "at least", least
    if least == most:
        bound = "exactly"
    if not least <= count <= (most or count):
        yield f"models: {method.name} merges {bound} {number} of weight other than 0: found {count}"


def _refuse_matched(recipe: Recipe, method: Method) -> Iterator[str]:
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
    models = enumerate(recipe.models)
    levels += [(f"models[{i}].parameters", entry.parameters, entry.model) for i, entry in models]
    for path, parameters, whose in levels:
        for where, weight in scalars(parameters.get("weight", 1.0), f"{path}.weight"):
            if weight < 0:
                yield (
                    f"{where}: {describe(weight)} of {whose}: {method.name} is a mean and takes no weight "
                    f"below zero: use a weight of at least 0, or a merge_method such as {allowing}"
                )


def _wrong_statistics(recipe: Recipe, method: Method, counting: Sequence[int]) -> Iterator[str]:
    given = [f"models[{i}]" for i, entry in enumerate(recipe.models) if entry.statistics]
    if recipe.base_statistics:
        given.append("base_statistics")
    if given and not method.statistics:
        yield f"{', '.join(given)}: {method.name} uses no statistics: leave them out"
    if method.base_statistics and not recipe.base_statistics:
        yield f"base_statistics: missing: {method.name} needs those of the base model too: collect them"
    if recipe.base_statistics and not method.base_statistics and method.statistics:
        yield f"base_statistics: {method.name} uses those of the models alone: leave it out"
    without = [i for i in counting if not recipe.models[i].statistics]
    if without and method.statistics:
        lacking = (f"models[{i}] ({recipe.models[i].model})" for i in without)
        yield (
            f"{', '.join(lacking)}: no statistics: {method.name} needs those of every model "
            f"({', '.join(method.statistics)}): collect them with riemerge.statistics.collect_statistics and "
            "name what it wrote under statistics, beside model"
        )


def _base_among_models(recipe: Recipe, method: Method) -> Iterator[str]:
    if method.checkpoints == "weights":
        return
    for i, entry in enumerate(recipe.models):
        if entry.model == recipe.base_model:
            yield (
                f"models[{i}]: {entry.model} is the base_model itself, and its update is zero: "
                "leave it out of models"
            )


# --- what pydantic found, in our words ----------------------------------------------------------------------

_ADVICE = {
    "modules": "list the models under models; parameters may differ between modules by filter",
    "tokenizer.tokens": "tokens have the rows of the models that have them, and none are chosen by hand",
    "tokenizer.pad_to_multiple_of": "a vocabulary is not padded",
    "tokenizer_source": "it is called 'tokenizer' here, and that is given too",
}


def _own_faults(errors: Sequence[Any]) -> Iterator[Any]:
    """Yield the faults but those that lists are too short without the items that have faults."""
    places = [error["loc"] for error in errors]
    for error in errors:
        place = error["loc"]
        inside = (one[: len(place)] == place and len(one) > len(place) for one in places)
        if error["type"] != "too_short" or not any(inside):
            yield error


def _explain(error: Any) -> str:
    """Say a fault that pydantic found."""
    *path, last = error["loc"]
    value, kind = error["input"], error["type"]
    if kind == "extra_forbidden":
        return ": ".join(filter(None, [_path(path), f"unknown key {str(last)!r}", _advice(path, str(last))]))
    where = _path(error["loc"])
    if kind == "missing":
        return f"{where}: missing: a recipe must say it"
    if kind == "literal_error":
        return f"{where}: {value!r} is not known: expected {error['ctx']['expected']}"
    return f"{where}: {describe(value)}: expected {_EXPECTED.get(kind, str(error['msg']))}"


_EXPECTED = {
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "string_too_short": "a text that is not empty",
    "too_short": "at least one item",
    "too_long": "fewer items",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "string_pattern_mismatch": "drop, average or from=NAME",
}


def _advice(path: Sequence[str | int], key: str) -> str:
    """Say what to do about an unknown key of the recipe, or of one of its models."""
    if not path and key in _ADVICE:
        return _ADVICE[key]
    if key in PARAMETERS:
        return "it belongs under parameters"
    return did_you_mean(key, (ModelEntry if path else Recipe).model_fields)


def _path(parts: Sequence[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")
