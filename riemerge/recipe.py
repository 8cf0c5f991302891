"""Recipes: what was asked for, in YAML or on the command line, checked before any adapter is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from riemerge.errors import RecipeError
from riemerge.methods import DEFAULT_METHOD, METHODS, did_you_mean, find_method

MAX_RECIPE_BYTES = 1 << 20
MAX_DEPTH = 16

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


@final
class ModelParameters(BaseModel):
    """What a recipe says about one adapter."""

    model_config = _STRICT
    weight: float = 1.0


@final
class ModelEntry(BaseModel):
    """One adapter of a recipe: its folder and its parameters."""

    model_config = _STRICT
    model: str = Field(min_length=1)
    parameters: ModelParameters = ModelParameters()


@final
class Parameters(BaseModel):
    """What a recipe asks of the method; None means that the method decides."""

    model_config = _STRICT
    rank: int | None = Field(default=None, gt=0)
    scale: float = 1.0
    solver: str | None = None
    tol: float | None = Field(default=None, gt=0)
    cost_tol: float | None = Field(default=None, ge=0)
    max_passes: int | None = Field(default=None, gt=0)
    max_seconds: float | None = Field(default=None, gt=0)
    starts: int | None = Field(default=None, gt=0)
    seed: int | None = Field(default=None, ge=0, lt=2**31)


@final
class Recipe(BaseModel):
    """A merge as asked for, in mergekit's vocabulary; every unknown key is an error.

    Attributes:
        merge_method: A name of `riemerge.methods.METHODS`.
        models: The adapters with their weights, at least one.
        parameters: What is asked of the method.
        dtype: The dtype of the tall factors while computing; the reduced problem is always float64.
        out_dtype: The dtype written; None keeps that of the inputs.
    """

    model_config = _STRICT
    merge_method: str
    models: tuple[ModelEntry, ...] = Field(strict=False)
    parameters: Parameters = Parameters()
    dtype: Literal["float32", "float64"] = "float64"
    out_dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = None

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights as given, one for each model."""
        return tuple(entry.parameters.weight for entry in self.models)


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
        raise RecipeError(f"{before}a recipe is a mapping with merge_method and models; found {_kind(raw)}")
    try:
        recipe = Recipe.model_validate(dict(raw))
    except ValidationError as fault:
        errors = [error for error in fault.errors() if error["type"] != "too_short"]
        raise RecipeError([before + _explain(dict(error)) for error in errors]) from None
    problems = _contradictions(recipe)
    if problems:
        raise RecipeError([before + problem for problem in problems])
    return recipe


def read_recipe(sources: Sequence[str], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read what to merge: one YAML file, or folders with weights such as `a:0.5 b:0.5`.

    Law: an override wins over the file; everything else is as in the file or at its default.

    Args:
        sources: A single path that ends in .yaml or .yml, or one `folder[:weight]` for each adapter.
        overrides: Values for `merge_method`, `dtype`, `out_dtype` or any of `parameters`; None is no
            override.

    Raises:
        RecipeError: The file cannot be read as plain YAML 1.2, or the recipe makes no sense.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    top = {key: given.pop(key) for key in ("merge_method", "dtype", "out_dtype") if key in given}
    recipes = [source for source in sources if Path(source).suffix.lower() in {".yaml", ".yml"}]
    if recipes and len(sources) > 1:
        raise RecipeError(f"{recipes[0]}: a recipe stands alone: it names its adapters itself")
    if recipes:
        path = Path(recipes[0])
        raw, where = _read_file(path), path.name
    else:
        specs = [parse_spec(source) for source in sources]
        models = [{"model": folder, "parameters": {"weight": weight}} for folder, weight in specs]
        raw, where = {"merge_method": DEFAULT_METHOD, "models": models}, ""
    if isinstance(raw, dict):
        raw |= top
        if given and isinstance(raw.get("parameters", {}), dict):
            raw["parameters"] = raw.get("parameters", {}) | given
    return make_recipe(raw, where=where)


def parse_spec(text: str) -> tuple[str, float]:
    """Split `folder:weight` at its last colon, if a number follows it; a folder alone has weight 1.

    >>> parse_spec("adapters/law:0.5")
    ('adapters/law', 0.5)
    >>> parse_spec("C:/adapters/law")
    ('C:/adapters/law', 1.0)
    """
    folder, colon, number = text.rpartition(":")
    if not colon or not folder:
        return text, 1.0
    try:
        return folder, float(number)
    except ValueError:
        return text, 1.0


def _contradictions(recipe: Recipe) -> list[str]:
    """What is wrong between the fields of a recipe whose fields are each right."""
    try:
        method = find_method(recipe.merge_method)
    except RecipeError as fault:
        return list(fault.problems)
    problems = []
    if not recipe.models:
        problems.append("models: no adapter to merge: name at least one folder")
    elif all(weight == 0 for weight in recipe.weights):
        problems.append("models: every weight is 0: at least one adapter must count")
    if not method.negative_weights:
        allowing = ", ".join(row.name for row in METHODS.values() if row.negative_weights)
        problems += [
            f"models[{index}]: weight {entry.parameters.weight:g} of {entry.model}: {method.name} is a mean "
            "and takes "
            f"no weight below zero: use a weight of at least 0, or merge_method {allowing}"
            for index, entry in enumerate(recipe.models)
            if entry.parameters.weight < 0
        ]
    asked = recipe.parameters.model_dump(exclude_defaults=True)
    takes = ", ".join(method.parameters)
    problems += [
        f"parameters: {method.name} takes no {name}: leave it out ({method.name} takes {takes})"
        for name in asked
        if name not in method.parameters
    ]
    return problems


# --- what pydantic found, in our words ----------------------------------------------------------------------

_ADVICE = {
    "base_model": "the base model is not needed to merge adapters: leave it out",
    "slices": "only whole adapters are merged: list them under models",
    "modules": "list the adapters under models",
}


def _explain(error: dict[str, Any]) -> str:
    *path, last = error["loc"]
    found, kind = error["input"], error["type"]
    if kind == "extra_forbidden":
        where = _path(path)
        known = _fields(path)
        advice = _ADVICE.get(str(last)) if not path else None
        before = f"{where}: " if where else ""
        return f"{before}unknown key {str(last)!r}: {advice or did_you_mean(str(last), known)}"
    where = _path(error["loc"])
    if kind == "missing":
        return f"{where}: missing: a recipe must say it"
    if kind == "literal_error":
        return f"{where}: {found!r} is not known: expected {error['ctx']['expected']}"
    expected = _EXPECTED.get(kind, str(error["msg"]))
    bound = next((value for value in error.get("ctx", {}).values() if isinstance(value, int | float)), "")
    return f"{where}: {_kind(found)}: expected {expected}{bound}{_hint(kind, found)}"


_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "a text",
    "tuple_type": "a list",
    "model_type": "a mapping",
    "finite_number": "a finite number",
    "greater_than": "more than ",
    "greater_than_equal": "at least ",
    "less_than": "less than ",
    "string_too_short": "a text that is not empty; its least length is ",
}


def _hint(kind: str, found: object) -> str:
    if kind in {"float_type", "int_type"} and isinstance(found, str):
        try:
            float(found)
        except ValueError:
            return ""
        return f": write {found} without quotes"
    return ""


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else repr(value)


def _path(parts: Sequence[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def _fields(path: Sequence[str | int]) -> list[str]:
    owner: type[BaseModel] = Recipe
    if path and path[0] == "models":
        owner = ModelParameters if path[-1] == "parameters" else ModelEntry
    elif path and path[0] == "parameters":
        owner = Parameters
    return list(owner.model_fields)


# --- YAML: 1.2 scalars, no aliases, no tags, no duplicate keys ----------------------------------------------


def _read_file(path: Path) -> Any:
    """Read a recipe file, with the folders of its models taken relative to it."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_RECIPE_BYTES + 1)
        if len(content) > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path.name}: larger than {MAX_RECIPE_BYTES} bytes: this is no recipe")
        raw = parse_yaml(content.decode("utf-8-sig"), where=path.name)
    except OSError as fault:
        raise RecipeError(f"{path}: cannot be read: {fault.strerror}") from None
    except UnicodeDecodeError as fault:
        raise RecipeError(f"{path.name}: is not UTF-8 (byte {fault.start}): save it as UTF-8") from None
    models = raw.get("models") if isinstance(raw, dict) else None
    for entry in models if isinstance(models, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("model"), str) and entry["model"]:
            entry["model"] = str(path.parent / entry["model"])
    return raw


def parse_yaml(text: str, *, where: str = "recipe") -> Any:
    """Read plain data from YAML with the scalars of YAML 1.2: `1e-3` is a number, `no` and `12:30` are not.

    Raises:
        RecipeError: Broken YAML, more than one document, a key twice in one mapping, an alias, an anchor or a
            tag, nesting beyond MAX_DEPTH: each with its line.
    """
    try:
        problems: list[str] = []
        depth = 0
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            line = f"{where}: line {event.start_mark.line + 1 if event.start_mark else 1}"
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise RecipeError([*problems, f"{line}: nested deeper than {MAX_DEPTH} levels"])
            if getattr(event, "anchor", None) is not None:
                problems.append(f"{line}: anchors and aliases are refused: write the value out")
            if (tag := getattr(event, "tag", None)) is not None:
                problems.append(f"{line}: the tag {tag!r} is refused: recipes hold plain data only")
        if problems:
            raise RecipeError(problems)
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = getattr(fault, "problem", None) or getattr(fault, "reason", None) or str(fault)
        raise RecipeError(f"{where}: {place}{what}") from None
    if node is None:
        raise RecipeError(f"{where}: is empty: a recipe is a mapping with merge_method and models")
    data = _plain(node, where, problems)
    if problems:
        raise RecipeError(problems)
    return data


def _plain(node: yaml.Node, where: str, problems: list[str]) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where, problems) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                problems.append(f"{where}: line {line}: a key must be a word")
            elif key.value in lines:
                before = lines[key.value]
                problems.append(f"{where}: line {line}: {key.value!r} stands already on line {before}")
            else:
                lines[key.value] = line
                mapping[key.value] = _plain(value, where, problems)
        return mapping
    text: str = node.value
    return _scalar(text) if getattr(node, "style", None) is None else text


_NULL = {"", "~", "null", "Null", "NULL"}
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)\Z")


def _scalar(text: str) -> Any:
    """The value of a plain scalar by YAML 1.2's core schema (10.3.2), without octal and hexadecimal."""
    if text in _NULL:
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    if _INTEGER.match(text):
        return int(text) if len(text) <= 19 else float(text)
    if _FLOAT.match(text):
        return float(text)
    if special := _SPECIAL.match(text):
        return float(special[1] + special[2])
    return text
