"""Words of mergekit and PEFT, read as ours: each translation with a sentence that says what it comes to."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, final

from riemerge.errors import RecipeError
from riemerge.formats.hub import identify
from riemerge.formats.kinds import is_checkpoint
from riemerge.methods import METHODS, Method
from riemerge.methods.parameters import EVERY_MODULE, scalars
from riemerge.recipes.specs import parts_of

Data = dict[str, Any]


@final
class Word(NamedTuple):
    """What a word of another package is here.

    Attributes:
        ours: The word here; None where there is nothing to do.
        why: A sentence for the record.
    """

    ours: Any
    why: str


# --- the table ----------------------------------------------------------------------------------------------

_ON_UPDATES = "PEFT's row on dW; on factors it would not be a function of dW"

KEYS: Mapping[str, Word] = {
    "name": Word(None, "the folder of the output is the name"),
    "tokenizer_source": Word("tokenizer", "it is one word here"),
}
"""Keys of a recipe."""

METHOD_WORDS: Mapping[str, Word] = {
    "linear": Word("average", "the weights are divided by their sum, and adapters keep all of it (rank sum)"),
    "magnitude_prune_svd": Word("magnitude_prune", _ON_UPDATES),
    "ties_svd": Word("ties_peft", _ON_UPDATES),
    "dare_linear_svd": Word("dare_linear", _ON_UPDATES),
    "dare_ties_svd": Word("dare_ties_peft", _ON_UPDATES),
}
"""Words for `merge_method`."""

NO_ROWS: Mapping[str, str] = {
    "arcee_fusion": "mergekit's chooses entries by softmaxes of the weights, with a threshold sampled "
    "without a seed in large tensors, which is no function of the updates: the nearest rows are nearswap, "
    "magnitude_prune and ties",
}
"""Methods of mergekit that are not translated, and why."""

COMBINATION_TYPES: Mapping[str, Word] = {
    **METHOD_WORDS,
    "linear": Word("svd", f"the weighted sum of updates, {_ON_UPDATES}"),
    "cat": Word("cat", "the weighted sum of updates, exact"),
    "svd": Word("svd", "the weighted sum of updates, cut to a rank"),
    "ties": METHOD_WORDS["ties_svd"],
    "magnitude_prune": METHOD_WORDS["magnitude_prune_svd"],
    "dare_linear": METHOD_WORDS["dare_linear_svd"],
    "dare_ties": METHOD_WORDS["dare_ties_svd"],
}
"""Words of PEFT for `combination_type`, which stands for `merge_method`."""

PARAMETER_WORDS: Mapping[str, Word] = {
    "lambda": Word("scale", "the factor on the merged update"),
    "max_iter": Word("max_passes", "the budget of iterations"),  # mergekit 0.1.5, 2025
    "svd_rank": Word("rank", "the rank of the result"),
    "int8_mask": Word(None, "masks are exact in any dtype"),
}
"""Names of parameters."""

VALUE_WORDS: Mapping[tuple[str, bool], Word] = {
    ("rescale", True): Word("norm", "mergekit's rule: after a drop each update keeps its Σ|x|"),
    ("rescale", False): Word("none", "updates are not rescaled after a drop"),
}
"""Truth values of parameters that have words here."""

NEEDLESS: Mapping[tuple[str, Any], tuple[str, str]] = {
    ("normalize", True): ("normalised", "the weights are divided by their sum anyway"),
    ("normalize", False): ("", "the weights are used as given anyway"),
    ("rescale", "none"): ("", "nothing is rescaled anyway"),
    ("normalize_weights", True): ("normalised", "the weights are divided by their sum anyway"),
    ("nuslerp_flatten", True): ("normalised", "each tensor counts as one vector anyway"),
    ("nuslerp_row_wise", False): ("normalised", "each tensor counts as one vector anyway"),
    ("filter_wise", False): ("normalised", "one factor is found for each tensor anyway"),
}
"""Values that say what a row without the parameter does: which rows (`normalised`: those that divide by the
sum of the weights; else the others), and the sentence."""

OTHER_ROWS: Mapping[tuple[str, str, bool], Word] = {
    ("average", "normalize", False): Word("svd", "the weighted sum, the weights as given"),
    ("task_arithmetic", "normalize", True): Word("average", "the weights are divided by their sum"),
    ("nuslerp", "nuslerp_flatten", False): Word("nuslerp_rows", "each row counts as a vector"),
}
"""Values of parameters that make another row of a method."""

TOKENIZERS = ("base", "union")
"""Words for `tokenizer` that name no model."""

# --- words, whatever the method -----------------------------------------------------------------------------


def levels(data: Data) -> Iterator[tuple[str, Data]]:
    """Yield what of a recipe may have parameters, as far as it has the shape, each with its path."""
    yield "", data
    for path, entry in _items(data.get("models"), "models"):
        yield f"{path}.", entry
    for path, part in _items(data.get("slices"), "slices"):
        yield f"{path}.", part
        yield from ((f"{path}.{inner}.", entry) for inner, entry in _items(part.get("sources"), "sources"))


def _items(value: Any, path: str) -> Iterator[tuple[str, Data]]:
    if isinstance(value, list):
        yield from ((f"{path}[{i}]", item) for i, item in enumerate(value) if isinstance(item, dict))


def translate_words(data: Data, *, of_file: bool = False) -> list[str]:
    """Put our words in the place of those of mergekit and PEFT that mean one thing whatever the method.

    Law: what has our words only stays as it is, and a second translation changes nothing. A word stays where
    ours is said too, to be refused.

    Args:
        data: The recipe, which is changed.
        of_file: Whether it was written in a file, where a `dtype` below float64 is that of the output, as in
            mergekit's. Said otherwise it is the dtype of the tall factors while computing.

    Returns:
        A sentence for each translation.
    """
    return [
        *_rename(data, "", KEYS),
        *(_translate_dtype(data) if of_file else ()),
        *_translate_tokenizer(data),
        *_translate_method(data),
        *(text for path, level in levels(data) for text in translate_parameters(level, path)),
    ]


def _rename(level: Data, path: str, words: Mapping[str, Word]) -> Iterator[str]:
    for theirs in [name for name in level if name in words]:
        ours, why = words[theirs]
        if ours is None:
            del level[theirs]
            yield f"{path}{theirs}: nothing to do: {why}"
        elif ours not in level:
            level[ours] = level.pop(theirs)
            yield f"{path}{theirs}: read as {ours}: {why}"


def _translate_dtype(data: Data) -> Iterator[str]:
    dtype = data.get("dtype")
    if dtype not in ("bfloat16", "float16", "float32"):
        return
    del data["dtype"]
    if written := data.get("out_dtype"):
        yield f"dtype: {dtype}: nothing to do: computed in float64, written in the out_dtype {written}"
        return
    data["out_dtype"] = dtype
    yield f"dtype: {dtype}: read as out_dtype: the result is computed in float64 and written in {dtype}"


def _translate_tokenizer(data: Data) -> Iterator[str]:
    given = data.get("tokenizer")
    if isinstance(given, Mapping):
        data["tokenizer"] = given.get("source", "union")
        yield "tokenizer.source: read as tokenizer: it is one word here"
        data |= {f"tokenizer.{key}": given[key] for key in given if key != "source"}  # to be refused


def _translate_method(data: Data) -> Iterator[str]:
    key, words = "merge_method", METHOD_WORDS
    if "combination_type" in data and "merge_method" not in data:
        key, words = "combination_type", COMBINATION_TYPES
    theirs = data.get(key)
    if isinstance(theirs, str) and theirs in words and (key != "merge_method" or theirs not in METHODS):
        ours, why = words[theirs]
        del data[key]
        data["merge_method"] = ours
        if theirs == "linear" and ours == "average" and isinstance(data.setdefault("parameters", {}), dict):
            data["parameters"].setdefault("rank", "sum")
        yield f"{key}: {theirs}: read as merge_method {ours}: {why}"


def translate_parameters(level: Data, path: str) -> Iterator[str]:
    """Put our names and values in the place of those of mergekit and PEFT, and yield a sentence for each."""
    parameters = level.get("parameters")
    if not isinstance(parameters, dict):
        return
    path += "parameters."
    yield from _rename(parameters, path, PARAMETER_WORDS)
    for name, value in list(parameters.items()):
        if name == "normalize" and not isinstance(value, bool) and value in (0, 1):
            parameters[name] = bool(value)
            yield f"{path}{name}: {value}: read as {str(bool(value)).lower()}: a truth value"
        elif isinstance(value, bool) and (name, value) in VALUE_WORDS:
            ours, why = VALUE_WORDS[name, value]
            parameters[name] = ours
            yield f"{path}{name}: {str(value).lower()}: read as {ours}: {why}"


# --- what depends on the method -----------------------------------------------------------------------------


def translate_for_method(data: Data) -> list[str]:
    """Put in our words what mergekit says differently for different methods.

    Law: as that of `translate_words`, which comes first.

    Raises:
        RecipeError: `passthrough` of several models; vectors or filters that no row has; weights that cannot
            be divided by their sum.
    """
    return [
        *_translate_passthrough(data),
        *_translate_vectors(data),
        *_divide_weights(data),
        *_translate_needless(data),
        *_translate_base(data),
        *_narrow_epsilon(data),
    ]


def _translate_passthrough(data: Data) -> Iterator[str]:
    models = data.get("models")
    if data.get("merge_method") != "passthrough" or not isinstance(models, list):
        return
    if len(models) != 1:
        raise RecipeError(
            f"merge_method: passthrough takes one model, and there are {len(models)}: name one in models, or "
            "in the sources of each slice"
        )
    data["merge_method"] = "average"
    for _, entry in _items(models, "models"):
        # Of one model, what is said of it is said of all.
        own, every = entry.pop("parameters", None) or {}, data.get("parameters") or {}
        data["parameters"] = put_over(own, every)
    yield "merge_method: passthrough: read as merge_method average: of one model, that model"


def _translate_vectors(data: Data) -> Iterator[str]:
    """Read what mergekit counts as one vector, where that is no word for a row."""
    parameters, method = data.get("parameters"), data.get("merge_method")
    if not isinstance(parameters, dict):
        return
    if method == "model_stock" and parameters.get("filter_wise") is True:
        raise RecipeError(
            "parameters.filter_wise: true: mergekit's then finds a factor for each row of a tensor, and "
            "model_stock has one for each tensor here: leave it out"
        )
    if method == "nuslerp" and parameters.get("nuslerp_row_wise") is True:
        if parameters.get("nuslerp_flatten") is False:
            raise RecipeError(
                "parameters.nuslerp_row_wise: true: mergekit's then counts each column of a tensor as a "
                "vector, which no row here does: without it nuslerp_flatten: false makes each row one"
            )
        del parameters["nuslerp_row_wise"]
        yield (
            "parameters.nuslerp_row_wise: nothing to do: without nuslerp_flatten: false each tensor counts "
            "as one vector anyway"
        )


def _divide_weights(data: Data) -> Iterator[str]:
    """Divide weights by their sum in task_arithmetic, where some are below zero, which no average takes."""
    models, every = data.get("models"), data.get("parameters")
    if data.get("merge_method") != "task_arithmetic" or not isinstance(every, dict):
        return
    entries = [entry for _, entry in _items(models, "models")]
    weights = [{**every, **(entry.get("parameters") or {})}.get("weight", 1.0) for entry in entries]
    parts = [part for weight in weights for _, part in scalars(weight, "")]
    if every.get("normalize") is not True or not any(_is_number(part) and part < 0 for part in parts):
        return
    if not all(map(_is_number, weights)):
        raise RecipeError(
            "parameters.normalize: true: weights of which some are below zero are divided by their sum only "
            "where each is one number: leave normalize out, and give weights that are divided already"
        )
    total = math.fsum(weights)
    if abs(total) < 1e-8:  # mergekit does not divide by less
        raise RecipeError(
            f"parameters.normalize: true: the weights add up to {total:g}, by which nothing can be divided: "
            "leave normalize out, and they are used as given"
        )
    del every["normalize"]
    for entry, weight in zip(entries, weights, strict=True):
        entry["parameters"] = {**(entry.get("parameters") or {}), "weight": weight / total}
    yield f"parameters.normalize: read as weights that are divided by their sum {total:g}, some below zero"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _translate_needless(data: Data) -> Iterator[str]:
    for path, level in levels(data):
        parameters = level.get("parameters")
        if not isinstance(parameters, dict):
            continue
        for name, value in list(parameters.items()):
            row = _row(data)
            if row is None or not isinstance(value, bool | str):
                continue
            if isinstance(value, bool) and (word := OTHER_ROWS.get((row.name, name, value))):
                del parameters[name]
                data["merge_method"] = word.ours
                yield f"{path}parameters.{name}: read as merge_method {word.ours}: {word.why}"
            elif name not in row.parameters and (name, value) in NEEDLESS:
                which, why = NEEDLESS[name, value]
                if row.normalised == bool(which):
                    del parameters[name]
                    yield f"{path}parameters.{name}: nothing to do: {why}"


def _narrow_epsilon(data: Data) -> Iterator[str]:
    """Say an epsilon where none is said, and that of the row would give probabilities outside (0, 1)."""
    row = _row(data)
    if row is None or "epsilon" not in row.defaults:
        return
    usual, every = row.defaults["epsilon"], data.get("parameters") or {}
    for path, level in levels(data):
        own = level.get("parameters")
        if not isinstance(own, dict) or not isinstance(every, dict) or "epsilon" in {**every, **own}:
            continue
        densities = [share for _, share in scalars(own.get("density"), "") if isinstance(share, int | float)]
        room = min((min(share, 1 - share) for share in densities if 0 < share < 1), default=1.0)
        if room <= usual:
            own["epsilon"] = room / 2
            yield (
                f"{path}parameters.epsilon: {room / 2:.6g}: {usual}, which it is if not given, does not fit "
                "the density: probabilities would leave (0, 1)"
            )


def _row(data: Data) -> Method | None:
    """Return the row of a recipe; None where it names none."""
    method = data.get("merge_method")
    return METHODS[method] if isinstance(method, str) and method in METHODS else None


# Methods of mergekit for which the base model is a model among the others.
_WITHOUT_ORIGIN = ("average", "svd", "karcher")


def translate_unlisted_base(data: Data, method: Any) -> list[str]:
    """Do with a base model that is none of a file's models what mergekit does with it.

    Law: mergekit puts it behind the models, but not into slices; where its method has no origin, it is a
    model like the others, and in slices none. Of adapters it stays the model that they were trained from.

    Args:
        data: The recipe in our words, its models located. It is changed.
        method: The merge_method in the words of the file.

    Returns:
        A sentence for each change.
    """
    base, models = data.get("base_model"), data.get("models")
    parameters = data.get("parameters")
    said = {}
    if isinstance(parameters, dict):
        said = parameters
    if not isinstance(base, str) or not base:
        return []
    summed = method == "linear" and said.get("normalize") is False
    if isinstance(data.get("slices"), list) and (method in ("karcher", "passthrough") or summed):
        del data["base_model"]
        if data.get("tokenizer") == "base":
            data["tokenizer"] = base
        return [f"base_model: {_name(base)}: left out: {method} merges the sources of a slice as they are"]
    names = [entry.get("model") for _, entry in _items(models, "models")]
    if method not in ("karcher", "linear") or not names or any(_are_one(name, base) for name in names):
        return []
    if not is_checkpoint(base) or any(map(_is_adapter, names)):
        return []
    if method == "linear" and "weight" not in said:
        kept = "it is not merged with them: their differences from it are, and are added to it"
        return [f"base_model: {_name(base)}: is none of the models, and has no weight: {kept}"]
    data["models"] = [*(models or ()), {"model": base}]
    return [f"models: {_name(base)}: added: mergekit's {method} merges its base_model as one of the models"]


def _is_adapter(model: Any) -> bool:
    """Return whether a model is there and is an adapter; the result of an earlier document is not there."""
    return (
        isinstance(model, str)
        and len(parts_of(model)) == 1
        and os.path.lexists(model)
        and not is_checkpoint(model)
    )


def _translate_base(data: Data) -> Iterator[str]:
    base, models, method = data.get("base_model"), data.get("models"), data.get("merge_method")
    if not isinstance(base, str) or not base or not isinstance(models, list):
        return
    places = [
        i for i, entry in enumerate(models) if isinstance(entry, dict) and _are_one(entry.get("model"), base)
    ]
    if method == "slerp":
        yield from _translate_slerp(data, base, models, places)
    elif not places:
        return
    elif method in _WITHOUT_ORIGIN:
        del data["base_model"]
        yield f"base_model: left out: it is one of the models, and {method} merges those as they are"
    else:
        data["models"] = [entry for i, entry in enumerate(models) if i not in places]
        yield f"models: {_name(base)}: left out: it is the base_model, and its update is zero"


def _translate_slerp(data: Data, base: str, models: list[Any], places: Sequence[int]) -> Iterator[str]:
    """Put the base model of mergekit's slerp first among its two models, where the arc begins."""
    others = [entry for i, entry in enumerate(models) if i not in places]
    if len(others) != 1:
        return
    first = [models[i] for i in places[:1]] or [{"model": base}]
    data["models"] = [*first, *others]
    del data["base_model"]
    yield f"base_model: left out: slerp goes from {_name(base)} (t = 0) to the other model, both as they are"


def _name(path: str) -> str:
    if model := identify(path):
        return f"{model.repository}{model.folder}"
    return os.path.basename(os.path.normpath(path))  # noqa: PTH119 - records hold no paths


def _are_one(model: Any, base: str) -> bool:
    return isinstance(model, str) and os.path.normpath(model) == os.path.normpath(base)


def put_over(own: Mapping[str, Any], every: Mapping[str, Any]) -> Data:
    """Return parameters that hold first as `own` says, and as `every` says where that says nothing.

    Law: a list of filters of which none fits says nothing.
    """
    merged = {**every, **own}
    for name in own.keys() & every.keys():
        if _is_open(own[name]):
            merged[name] = [*_as_filters(own[name]), *_as_filters(every[name])]
    return merged


def _has_filters(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
    )


def _as_filters(value: Any) -> list[Any]:
    """Return a value as a list of filters."""
    if isinstance(value, Mapping):
        return [value]
    return list(value) if _has_filters(value) else [{"value": value}]


def _is_open(value: Any) -> bool:
    """Return whether a value is a list of filters that some module may pass by."""
    if not _has_filters(value):
        return False
    last = _as_filters(value)[-1]
    return isinstance(last, Mapping) and last.get("filter", EVERY_MODULE) != EVERY_MODULE
