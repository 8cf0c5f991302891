"""The plan of a batch: one file of YAML that stands for many recipes, each with a name of its own."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from riemerge.errors import AdapterError, RecipeError, RiemergeError
from riemerge.formats.files.text import is_plain_name, list_names
from riemerge.formats.kinds import holds_model
from riemerge.merging.inputs import display_names
from riemerge.methods import COLUMNS, DEFAULT_METHOD, PARAMETERS, PLAIN_METHOD, find_method
from riemerge.methods.parameters import describe
from riemerge.recipes.candidates import Candidate, parse
from riemerge.recipes.documents import locate_models, places_of_models
from riemerge.recipes.recipe import Recipe, make_recipe
from riemerge.recipes.specs import locate_model, parse_spec
from riemerge.recipes.translations import put_over, translate_unlisted_base, translate_words
from riemerge.recipes.yaml12 import read_yaml
from riemerge.registry import did_you_mean

_OWN = ("models", "slices", "merge_method", "name")


class NamedRecipe(NamedTuple):
    """One merge of a batch.

    Attributes:
        name: Name of its folder: what tells it from the other merges of the plan.
        recipe: What to merge, and how; its paths are absolute.
    """

    name: str
    recipe: Recipe


def _as_mapping(models: object) -> object:
    """Return a list of models as a mapping in which each stands for itself."""
    if isinstance(models, list):
        return {str(model): model for model in models}
    return models


@final
class BatchPlan(BaseModel):
    """The content of a plan.

    Attributes:
        models: Folder of each model, or a pattern such as `adapters/*`, by the name that the plan has for it;
            or a list of these.
        atlas: Folder of `riemerge map`, whose clusters are merged; `from` in the file.
        each: What is merged by every method at every point of the grid: `all` models together, each of the
            `pairs`, or each of the `clusters` of the atlas; nothing where only `merges` are given.
        methods: The methods, each as `method` or `method:parameter=value`.
        grid: Values to try, by the name of a parameter; a method that does not take it is not varied by it.
        recipe: What the recipe of every merge says beside its models and its method.
        merges: Recipes, each with a `name`; a model in them may be a name of `models`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)
    models: Annotated[Mapping[str, str], BeforeValidator(_as_mapping)] = Field(default_factory=dict)
    atlas: str | None = Field(default=None, alias="from", min_length=1)
    each: Literal["all", "pairs", "clusters"] | None = None
    methods: tuple[str, ...] = Field(default=(), strict=False)
    grid: Mapping[str, Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]] = Field(
        default_factory=dict
    )
    recipe: Mapping[str, Any] = Field(default_factory=dict)
    merges: tuple[Mapping[str, Any], ...] = Field(default=(), strict=False)


def read_batch_plan(path: str | Path) -> tuple[NamedRecipe, ...]:
    """Read the recipes that a plan stands for, in the order of the plan.

    Law: a function of the file, of the folders that its patterns match and of the atlas that it names. Paths
    in it are relative to the file. Every recipe is checked; no model is opened.

    Args:
        path: The file of the plan.

    Raises:
        RecipeError: The plan, or a recipe that it stands for, makes no sense: every problem, each with the
            file and the key.
        AdapterError: The atlas cannot be read.
    """
    path = Path(path).absolute()
    data, *others = read_yaml(path)
    if others or not isinstance(data, dict):
        found = describe(data)
        if others:
            found = f"{1 + len(others)} documents"
        raise RecipeError(f"{path.name}: {found}: expected one mapping with models, methods or merges")
    try:
        plan = BatchPlan.model_validate(data)
    except ValidationError as fault:
        raise RecipeError(f"{path.name}: {_explain(error)}" for error in fault.errors()) from None
    return _Expansion(plan, path).recipes()


_EXPECTED = {
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "tuple_type": "a list",
    "too_short": "a list of at least one value",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
}


def _explain(error: Any) -> str:
    """Say a fault that pydantic found in a plan."""
    *path, last = error["loc"]
    where, kind = ".".join(map(str, error["loc"])), error["type"]
    if kind == "extra_forbidden" and not path:
        known = [field.alias or name for name, field in BatchPlan.model_fields.items()]
        return f"unknown key {str(last)!r}: {did_you_mean(str(last), known)}"
    expected = _EXPECTED.get(kind) or error.get("ctx", {}).get("expected") or error["msg"]
    return f"{where}: {describe(error['input'])}: expected {expected}"


@final
@dataclass(frozen=True)
class _Subset:
    """Models that are merged together: what they are called, and their paths."""

    name: str
    paths: tuple[str, ...]


@final
class _Expansion:
    """A plan on its way to recipes. All problems are collected before any is told."""

    def __init__(self, plan: BatchPlan, path: Path) -> None:
        self._plan, self._file, self._beside = plan, path.name, path.parent
        self._problems: dict[str, None] = {}
        self._words = {name: self._find(name, text) for name, text in plan.models.items()}

    def recipes(self) -> tuple[NamedRecipe, ...]:
        """Return the recipes, or refuse all that is wrong."""
        plan = self._plan
        if not plan.merges and not (plan.models or plan.atlas):
            self._tell("models: none: name models, an atlas of `riemerge map` under from, or merges")
        generated = [*self._generate()] if self._is_generating else []
        given = [recipe for i, data in enumerate(plan.merges) for recipe in self._given(i, data)]
        for name, count in Counter(recipe.name for recipe in given).items():
            if count > 1:
                self._tell(f"merges: {count} have the name {name!r}: give each a name of its own")
        RecipeError.refuse(f"{self._file}: {problem}" for problem in self._problems)
        taken = {recipe.name for recipe in given}
        return (*_tell_apart(generated, taken), *given)

    @property
    def _is_generating(self) -> bool:
        plan = self._plan
        return bool(plan.each or plan.methods or plan.grid or not plan.merges)

    def _tell(self, problem: str) -> None:
        self._problems[problem] = None

    # --- models -------------------------------------------------------------------------------------------------

    def _find(self, name: str, text: str) -> tuple[str, ...]:
        """Return the absolute paths of the models that a word of the plan stands for."""
        located = str(Path(locate_model(text, self._beside)))
        if os.path.lexists(located) or "+" in text:
            return (located,)
        if glob.has_magic(text):
            matches = sorted(glob.glob(str(self._beside / text)))
            models = tuple(match for match in matches if _is_model(Path(match)))
            if not models:
                self._tell(f"models.{name}: {text}: matches {len(matches)} paths, and no model among them")
            return models
        self._tell(f"models.{name}: {text}: there is no such file or folder: name that of a model")
        return ()

    def _labels(self) -> dict[str, str]:
        """Return the name of each model of the plan by its path."""
        labels: dict[str, str] = {}
        for name, paths in self._words.items():
            alone = name != self._plan.models[name] and len(paths) == 1
            labels |= {path: name for path in paths if alone}
        unnamed = [path for paths in self._words.values() for path in paths if path not in labels]
        return labels | dict(zip(unnamed, display_names(unnamed), strict=True))

    def _subsets(self) -> list[_Subset]:
        """Return what is merged by every method."""
        plan, labels = self._plan, self._labels()
        clusters: list[_Subset] = []
        if plan.atlas is not None:
            clusters = [_Subset(name, paths) for name, paths in read_clusters(self._beside / plan.atlas)]
        if plan.each == "clusters":
            if plan.atlas is None:
                self._tell("each: clusters: there are none without an atlas: name it under from")
            return [cluster for cluster in clusters if len(cluster.paths) > 1]
        paths = [path for own in self._words.values() for path in own]
        if not plan.models:
            paths = [path for cluster in clusters for path in cluster.paths]
            labels = dict(zip(paths, display_names(paths), strict=True))
        paths = [*dict.fromkeys(paths)]
        if plan.each != "pairs":
            return [_Subset("all", tuple(paths))] if paths else []
        if len(paths) < 2:
            self._tell(f"each: pairs: {len(paths)} models: expected at least 2")
        return [_Subset("-".join(labels[path] for path in pair), pair) for pair in combinations(paths, 2)]

    # --- recipes ------------------------------------------------------------------------------------------------

    def _generate(self) -> Iterator[NamedRecipe]:
        """Yield a recipe of each subset by each method at each point of the grid."""
        plan = self._plan
        if misplaced := sorted({*_OWN} & plan.recipe.keys()):
            self._tell(f"recipe: {', '.join(misplaced)}: is not the same in every merge: leave it out")
            return
        candidates, subsets = self._candidates(), self._subsets()
        for subset, candidate in product(subsets, candidates):
            takes = find_method(candidate.method).parameters
            varied = {
                name: values
                for name, values in plan.grid.items()
                if name in takes and name not in candidate.parameters
            }
            for values in product(*varied.values()):
                point = dict(zip(varied, values, strict=True))
                parts = [
                    *[subset.name] * (len(subsets) > 1),
                    *[candidate.name.replace(":", "-")] * (len(candidates) > 1),
                    *(f"{name}={_spell(point[name])}" for name in point if len(varied[name]) > 1),
                ]
                data = {
                    "merge_method": candidate.method,
                    "models": [{"model": path} for path in subset.paths],
                    "parameters": {**candidate.parameters, **point},
                }
                where = ", ".join([candidate.method, *(f"{name}: {value}" for name, value in point.items())])
                yield from self._make(_clean("--".join(parts) or subset.name), data, where)

    def _candidates(self) -> list[Candidate]:
        """Return the methods of the plan, after a check that the grid varies some of them."""
        plan, candidates = self._plan, list[Candidate]()
        silent = DEFAULT_METHOD
        if any(name in plan.recipe for name in COLUMNS):
            silent = PLAIN_METHOD
        for text in plan.methods or (silent,):
            try:
                candidates.append(parse(text))
            except RecipeError as fault:
                for problem in fault.problems:
                    self._tell(f"methods: {problem}")
        takes = {name for one in candidates for name in find_method(one.method).parameters}
        for name in plan.grid:
            if name == "weight":
                self._tell("grid.weight: each model has a weight: `riemerge sweep` merges a grid of them")
            elif name not in PARAMETERS:
                self._tell(f"grid: unknown parameter {name!r}: {did_you_mean(name, sorted(takes))}")
            elif candidates and name not in takes:
                self._tell(f"grid.{name}: none of the methods takes it: leave it out")
        return candidates

    def _given(self, place: int, data: Mapping[str, Any]) -> Iterator[NamedRecipe]:
        """Yield a recipe that the plan spells out."""
        data, where = dict(data), f"merges[{place}]"
        name = data.pop("name", None)
        if not isinstance(name, str) or not is_plain_name(name) or name.startswith("."):
            self._tell(f"{where}.name: {describe(name)}: expected a name for the folder of this merge")
            return
        if "slices" not in data:
            listed = data.get("models", [*self._plan.models])
            if isinstance(listed, list):
                data["models"] = [entry for said in listed for entry in self._entries(said)]
        yield from self._make(name, data, where)

    def _entries(self, said: Any) -> Iterator[Any]:
        """Yield the entries of a recipe that a model of an explicit merge stands for."""
        entry, weight = said, 1.0
        if isinstance(said, str):
            word, _, _ = said.rpartition(":")
            name = said
            if said not in self._words:
                name, weight = parse_spec(said)
            if word in self._words and said not in self._words:
                name = word
            entry = {"model": name}
            if weight != 1.0:
                entry["parameters"] = {"weight": weight}
        if not isinstance(entry, dict) or entry.get("model") not in self._words:
            yield entry
            return
        yield from ({**entry, "model": path} for path in self._words[entry["model"]])

    def _make(self, name: str, data: Mapping[str, Any], where: str) -> Iterator[NamedRecipe]:
        """Yield a recipe of plain data, under what the plan says of all."""
        common = {key: value for key, value in self._plan.recipe.items() if key not in _OWN}
        raw: dict[str, Any] = {**common, **data}
        own, every = data.get("parameters"), common.get("parameters")
        if isinstance(own, dict) and isinstance(every, dict):
            raw["parameters"] = put_over(own, every)
        raw = _copy(raw)
        for level, key, text in places_of_models(raw):
            if len(found := self._words.get(text, ())) == 1:
                level[key] = found[0]
        method = raw.get("merge_method")
        translations = translate_words(raw, of_file=True)
        locate_models(raw, self._beside, ())
        translations += translate_unlisted_base(raw, method)
        try:
            recipe = make_recipe({**raw, "translations": translations}, where=where)
        except RiemergeError as fault:
            for problem in fault.problems:
                self._tell(problem)
            return
        yield NamedRecipe(name, recipe)


def _is_model(path: Path) -> bool:
    """Return whether what a pattern matches is a model; files and folders of other kinds are passed over."""
    try:
        return holds_model(path) if path.is_dir() else path.suffix == ".safetensors"
    except (AdapterError, OSError):
        return True  # its reader says what is wrong with it


def _copy(value: Any) -> Any:
    """Return plain data that shares no list or mapping with what it is a copy of."""
    if isinstance(value, Mapping):
        return {key: _copy(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(part) for part in value]
    return value


def _spell(value: Any) -> str:
    """Return a value of a parameter as a part of a name.

    >>> _spell(0.5), _spell([0.25, 1]), _spell(True)
    ('0.5', '0.25,1', 'true')
    """
    if isinstance(value, list | tuple):
        return ",".join(map(_spell, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _clean(text: str) -> str:
    """Return a name that a file system and a shell take as it is.

    >>> _clean("runs/law-code--ties--rank=95%")
    'runs-law-code--ties--rank=95%'
    """
    return re.sub(r"[^\w.,=%+-]", "-", text).lstrip(".-") or "merge"


def _tell_apart(recipes: Sequence[NamedRecipe], taken: set[str]) -> list[NamedRecipe]:
    """Return recipes with a number behind a name that another has already."""
    named = []
    for name, recipe in recipes:
        number, own = 1, name
        while own in taken:
            number += 1
            own = f"{name}-{number}"
        taken.add(own)
        named.append(NamedRecipe(own, recipe))
    return named


def read_clusters(folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Return the clusters of an atlas: a name and the paths of its members.

    Raises:
        AdapterError: There is no atlas, or its models are not where they were.
    """
    raise AdapterError(f"{folder}: no atlas of `riemerge map`")
