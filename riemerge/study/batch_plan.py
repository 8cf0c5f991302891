"""The plan of a batch: one file of YAML that stands for many recipes, each with a name of its own."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from glob import glob
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from riemerge.errors import AdapterError, RecipeError, try_each
from riemerge.formats.files.staging import file_sha256
from riemerge.formats.files.text import is_plain_name, list_names
from riemerge.formats.kinds import holds_model
from riemerge.merging.inputs import display_names
from riemerge.methods import COLUMNS, DEFAULT_METHOD, PARAMETERS, PLAIN_METHOD, find_method
from riemerge.methods.parameters import describe
from riemerge.recipes.candidates import Candidate, parse
from riemerge.recipes.documents import locate_models, places_of_models
from riemerge.recipes.recipe import Recipe, make_recipe
from riemerge.recipes.specs import locate_model, parse_spec, parts_of
from riemerge.recipes.translations import put_over, translate_unlisted_base, translate_words
from riemerge.recipes.yaml12 import read_yaml
from riemerge.records.collection_record import CollectedAdapter, CollectionRecord
from riemerge.registry import did_you_mean

_OWN = ("models", "slices", "merge_method", "name")
_ATLAS = "collection.json"

_OPTION = re.compile(r"(?<![^\s(`'])--([a-z]+(?:-[a-z]+)*)")
_KEYS = {"base": "base_model", "to": "dialect"}

_Subset = tuple[str, tuple[str, ...]]


class NamedRecipe(NamedTuple):
    """One merge of a batch.

    Attributes:
        name: Name of its folder: its models, its method, its point of the grid; whatever else the plan has.
        recipe: What to merge, and how; its paths are absolute.
    """

    name: str
    recipe: Recipe


def _as_mapping(models: object) -> object:
    """Return a list of models as a mapping in which each stands for itself."""
    return {str(model): model for model in models} if isinstance(models, list) else models


@final
class BatchPlan(BaseModel):
    """The content of a plan.

    Attributes:
        models: Folder of each model, or a pattern such as `adapters/*`, by the name that the plan has for it;
            or a list of these.
        atlas: Folder of `riemerge map`; `from` in the file. Its names are looked up among `models`.
        each: What is merged by every method at every point of the grid: `all` models together, each of the
            `pairs`, or each of the `clusters`: the families of the atlas, without copies of their members. By
            default all, or nothing where there are `merges` and neither methods nor a grid.
        methods: The methods, each as `method` or `method:parameter=value`.
        grid: Values to try, by the name of a parameter; a method that does not take it is not varied by it.
        recipe: What the recipe of every merge says beside its models and its method.
        merges: Recipes, each with a `name`; their models may be names of `models`, and are all if none are
            listed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
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
    in it are relative to the file. Every recipe is checked; no model is opened, but the files of adapters of
    an atlas are compared with those that were mapped.

    Args:
        path: The file of the plan.

    Raises:
        RecipeError: The plan, or a recipe that it stands for, makes no sense: every problem, each with the
            file and the key.
        AdapterError: The atlas cannot be read.
    """
    path = Path(_normalise(str(Path(path).absolute())))
    data, *others = read_yaml(path)
    if others or not isinstance(data, dict):
        raise RecipeError(
            f"{path.name}: {1 + len(others)} documents, the first {describe(data)}: expected one mapping "
            "of models and methods"
        )
    try:
        plan = BatchPlan.model_validate(data)
    except ValidationError as fault:
        raise RecipeError(f"{path.name}: {_explain(error)}" for error in fault.errors()) from None
    return _Expansion(plan, path).recipes()


_EXPECTED = {
    "string_type": "a text",
    "tuple_type": "a list",
    "too_short": "at least one value",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
}


def _explain(error: Any) -> str:
    """Say a fault that pydantic found in a plan."""
    where, kind = ".".join(map(str, error["loc"])), error["type"]
    if kind == "extra_forbidden":
        known = [field.alias or name for name, field in BatchPlan.model_fields.items()]
        return f"unknown key {where!r}: {did_you_mean(where, known)}"
    expected = _EXPECTED.get(kind) or error.get("ctx", {}).get("expected") or error["msg"]
    return f"{where}: {describe(error['input'])}: expected {expected}"


@final
class _Expansion:
    """A plan on its way to recipes; all problems are collected before any is told."""

    def __init__(self, plan: BatchPlan, path: Path) -> None:
        self._plan, self._file, self._beside = plan, path.name, path.parent
        self._problems: dict[str, None] = {}
        self._words = {name: self._find(name, text) for name, text in plan.models.items()}
        self._paths = [*dict.fromkeys(path for paths in self._words.values() for path in paths)]

    def recipes(self) -> tuple[NamedRecipe, ...]:
        """Return the recipes, or refuse all that is wrong."""
        plan, generated = self._plan, list[NamedRecipe]()
        if plan.each or plan.methods or plan.grid or not plan.merges:
            generated = [*self._generate()]
            self._refuse_repetitions(generated)
        given = [one for i, data in enumerate(plan.merges) for one in self._spell_out(f"merges[{i}]", data)]
        taken = Counter(name for name, _ in given)
        self._tell(
            *(f"merges: {n} have the name {name!r}: expected one" for name, n in taken.items() if n > 1)
        )
        RecipeError.refuse(f"{self._file}: {problem}" for problem in self._problems)
        return (*_tell_apart(generated, {*taken}), *given)

    def _tell(self, *problems: str) -> None:
        self._problems |= dict.fromkeys(map(name_keys, problems))

    def _find(self, name: str, text: str) -> tuple[str, ...]:
        """Return the absolute paths of the models that a word of the plan stands for."""
        located = locate_model(text, self._beside)
        if len(parts := parts_of(located)) > 1 or os.path.lexists(located):
            return ("+".join(map(_normalise, parts)),)
        matches = sorted(glob(str(self._beside / text)))  # noqa: PTH207 - a pattern may be absolute
        models = tuple(_normalise(path) for path in matches if _is_model(Path(path)))
        if not models:
            self._tell(
                f"models.{name}: {text}: {len(matches)} files and folders, and no model: expected the folder "
                "of one, or a pattern such as adapters/*"
            )
        return models

    # --- what every method merges ---------------------------------------------------------------------------

    def _subsets(self) -> list[_Subset]:
        """Return the models that are merged together, behind what they are called."""
        plan, paths = self._plan, self._paths
        if plan.each == "clusters":
            return self._clusters()
        if len(paths) < 2:
            self._tell(f"models: {len(paths)}: expected at least 2 to merge")
        if plan.each != "pairs":
            return [("all", tuple(paths))]
        names = dict(zip(paths, display_names(paths), strict=True))
        said = [(word, own) for word, own in self._words.items() if word != plan.models[word]]
        names |= {own[0]: word for word, own in said if len(own) == 1}
        return [("-".join(names[path] for path in pair), pair) for pair in combinations(paths, 2)]

    def _clusters(self) -> list[_Subset]:
        """Return the families of an atlas, without copies of their members."""
        if self._plan.atlas is None:
            self._tell("each: clusters: there are none without an atlas: name the folder of one under from")
            return []
        atlas = read_atlas(Path(_normalise(str(self._beside / self._plan.atlas))))
        copies = {copy.name for group in atlas.copies for copy in group.repetitions}
        mapped = {adapter.name: adapter for adapter in atlas.adapters}
        families = [
            (f"cluster-{one.label}", [name for name in one.members if name not in copies])
            for one in atlas.clusters
            if one.kind == "family"
        ]
        subsets = [
            (name, tuple(path for member in members for path in self._member(mapped[member])))
            for name, members in families
            if len(members) > 1
        ]
        if not subsets:
            self._tell(f"from: {self._plan.atlas}: found no family of two adapters or more to merge")
        return subsets

    def _member(self, adapter: CollectedAdapter) -> list[str]:
        """Return the path of an adapter of the atlas, which knows names only, and what their files were."""
        name, parts = adapter.name, Path(adapter.name).parts
        paths = [path for path in self._paths if Path(path).parts[-len(parts) :] == parts]
        if len(paths) != 1:
            self._tell(f"from: {name}: found {len(paths)} models called so: expected one under models")
        elif changed := [*_find_changes(Path(paths[0]), adapter.sha256)]:
            self._tell(
                f"from: {name}: {list_names(changed)} in {paths[0]} not as mapped: this is another adapter, "
                "or it was changed: run riemerge map again"
            )
        return paths

    def _candidates(self) -> list[Candidate]:
        """Return the methods of the plan, after a check that each parameter of the grid varies one."""
        plan, texts = self._plan, self._plan.methods
        if not texts:
            texts = (PLAIN_METHOD if plan.recipe.keys() & {*COLUMNS} else DEFAULT_METHOD,)
        try:
            candidates = try_each(parse, texts)
        except RecipeError as fault:
            self._tell(*(f"methods: {problem}" for problem in fault.problems))
            return []
        takes = {name for one in candidates for name in find_method(one.method).parameters}
        for name in plan.grid:
            if name == "weight":
                self._tell("grid.weight: each model has its own: `riemerge sweep` tries a grid of them")
            elif name not in PARAMETERS:
                self._tell(f"grid: unknown parameter {name!r}: {did_you_mean(name, sorted(takes))}")
            elif name not in takes:
                self._tell(f"grid.{name}: none of the methods takes it: leave it out")
        return candidates

    def _generate(self) -> Iterator[NamedRecipe]:
        """Yield a recipe of each subset by each method at each point of the grid."""
        plan, candidates, subsets = self._plan, self._candidates(), self._subsets()
        if own := sorted({*_OWN} & plan.recipe.keys()):
            self._tell(f"recipe: {', '.join(own)}: differs from merge to merge: leave it out")
        if self._problems:
            return
        for (subset, paths), candidate in product(subsets, candidates):
            takes = {*find_method(candidate.method).parameters} - {*candidate.parameters}
            varied = {name: values for name, values in plan.grid.items() if name in takes}
            for values in product(*varied.values()):
                point = dict(zip(varied, values, strict=True))
                grid = (f"{name}={_spell(value)}" for name, value in point.items())
                name = _clean("--".join([subset, candidate.name, *grid]))
                data = {
                    "merge_method": candidate.method,
                    "models": [{"model": path} for path in paths],
                    "parameters": {**candidate.parameters, **point},
                }
                yield from self._make(name, data, candidate.name)

    def _refuse_repetitions(self, generated: Sequence[NamedRecipe]) -> None:
        """Refuse methods and values of the grid that say one thing twice, as the first subset shows."""
        seen: list[NamedRecipe] = []
        for name, made in generated:
            recipe = made.model_copy(update={"translations": ()})
            if seen and recipe.models != seen[0].recipe.models:
                return
            for other in seen:
                if other.recipe == recipe:
                    both = list_names([*dict.fromkeys([other.name, name])])
                    self._tell(f"methods, grid: {both}: stands for one recipe twice: list it once")
            seen.append(NamedRecipe(name, recipe))

    # --- what the plan spells out ---------------------------------------------------------------------------

    def _spell_out(self, where: str, data: Mapping[str, Any]) -> Iterator[NamedRecipe]:
        """Yield a recipe of `merges`."""
        data = dict(data)
        name = data.pop("name", None)
        if not isinstance(name, str) or not is_plain_name(name) or name.startswith("."):
            self._tell(f"{where}.name: {describe(name)}: expected a name for the folder of this merge")
            return
        listed = data.get("models", [*self._words])
        if "slices" not in data and isinstance(listed, list):
            data["models"] = [entry for said in listed for entry in self._entries(said)]
        yield from self._make(name, data, where)

    def _entries(self, said: Any) -> Iterator[Any]:
        """Yield the entries of a recipe for a model, or for each that a word of the plan stands for."""
        entry = said
        if isinstance(said, str):
            model, weight = said, 1.0
            if said not in self._words:
                model, weight = parse_spec(said)
            entry = {"model": model, "parameters": {"weight": weight}}
        known: Sequence[str] = ()
        if isinstance(entry, dict):
            known = self._words.get(str(entry.get("model")), ())
        yield from ({**entry, "model": path} for path in known)
        if not known:
            yield entry

    def _make(self, name: str, data: Mapping[str, Any], where: str) -> Iterator[NamedRecipe]:
        """Yield the recipe of plain data, with what the plan says of every merge."""
        raw: dict[str, Any] = deepcopy({**self._plan.recipe, **data})
        own, every = data.get("parameters"), self._plan.recipe.get("parameters")
        if isinstance(own, dict) and isinstance(every, dict):
            raw["parameters"] = deepcopy(put_over(own, every))
        for level, key, text in places_of_models(raw):
            level[key] = next(iter(self._words.get(text, ())), text)
        method, translations = raw.get("merge_method"), translate_words(raw, of_file=True)
        locate_models(raw, self._beside, ())
        for level, key, text in places_of_models(raw):
            level[key] = "+".join(map(_normalise, parts_of(text)))
        translations += translate_unlisted_base(raw, method)
        try:
            yield NamedRecipe(name, make_recipe({**raw, "translations": translations}, where=where))
        except RecipeError as fault:
            self._tell(*fault.problems)


def name_keys(problem: str) -> str:
    """Return a problem, with the keys of a plan behind it where it names options of a command.

    >>> name_keys("x: --heads drop leaves them out")
    'x: --heads drop leaves them out (in a plan, --heads is recipe.heads)'
    """
    keys: dict[str, None] = {}
    for option in _OPTION.findall(problem):
        key = _KEYS.get(option, option.replace("-", "_"))
        if key in Recipe.model_fields:
            keys[f"--{option} is recipe.{key}"] = None
        elif key in PARAMETERS:
            keys[f"--{option} is recipe.parameters.{key}"] = None
    if not keys:
        return problem
    return f"{problem} (in a plan, {', '.join(keys)})"


def _is_model(path: Path) -> bool:
    """Return whether what a pattern matches is a model: files and folders of other kinds are passed over."""
    return holds_model(path) if path.is_dir() else path.suffix == ".safetensors"


def _find_changes(model: Path, sha256: Mapping[str, str]) -> Iterator[str]:
    """Yield the names of files of a model that are not there with these sha256."""
    folder = model.parent if model.is_file() else model
    for name, expected in sha256.items():
        try:
            same = file_sha256(folder / name) == expected
        except OSError:
            same = False
        if not same:
            yield name


def _normalise(path: str) -> str:
    """Return an absolute path without `..` and the like; as it is where that would name something else."""
    short = os.path.normpath(path)
    if Path(path).is_absolute() and os.path.realpath(short) == os.path.realpath(path):
        return short
    return path


def _spell(value: Any) -> str:
    """Return a value of a parameter as a part of a name.

    >>> _spell(0.5), _spell([0.25, 1]), _spell(True)
    ('0.5', '0.25,1', 'true')
    """
    if isinstance(value, list | tuple):
        return ",".join(map(_spell, value))
    return str(value).lower()


def _clean(text: str) -> str:
    """Return a name that file systems and shells take as it is.

    >>> _clean("runs/law-code--ties:density=0.2--rank=95%")
    'runs-law-code--ties-density=0.2--rank=95%'
    """
    return re.sub(r"[^\w.,=%+-]", "-", text).lstrip(".-") or "merge"


def _tell_apart(recipes: Sequence[NamedRecipe], taken: set[str]) -> Iterator[NamedRecipe]:
    """Yield recipes with a number behind a name that another has already."""
    for name, recipe in recipes:
        number, own = 1, name
        while own in taken:
            number += 1
            own = f"{name}-{number}"
        taken.add(own)
        yield NamedRecipe(own, recipe)


def read_atlas(folder: Path) -> CollectionRecord:
    """Return what `riemerge map` wrote to a folder.

    Raises:
        AdapterError: There is no such record, or it cannot be read.
    """
    try:
        return CollectionRecord.model_validate_json((folder / _ATLAS).read_bytes())
    except (OSError, ValidationError) as fault:
        reason = getattr(fault, "strerror", None) or "is no record of a collection of this version"
        raise AdapterError(f"{folder / _ATLAS}: {reason}: expected what `riemerge map` writes") from None
