"""Inputs: models as a recipe names them, opened together, told apart by name, put in one order, read."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from operator import attrgetter
from pathlib import Path
from typing import TypeAlias, TypeVar, cast, final

import torch

from riemerge.errors import AdapterError, RecipeError, try_each
from riemerge.formats.adapter import Adapter
from riemerge.formats.base_names import agree_on_base
from riemerge.formats.checkpoint import Checkpoint, read_checkpoint, read_patched
from riemerge.formats.checkpoint.embedded import find_head
from riemerge.formats.checkpoint.settings import is_untied, take_dtype, untie_settings
from riemerge.formats.checkpoint.stacked import untie
from riemerge.formats.dialects import find_doubts, name_alike, read_adapter
from riemerge.formats.files.text import list_names, show
from riemerge.formats.fit import Missing, check_checkpoints, check_collection
from riemerge.formats.hub import identify, locate
from riemerge.formats.kinds import holds_model, is_checkpoint, models_below
from riemerge.formats.layers import NEEDS_BASE, Dora, Expert
from riemerge.merging.beside import Beside, put_beside
from riemerge.merging.heads import copy_notes
from riemerge.merging.machine import find_dtype
from riemerge.merging.stacking import stack_models
from riemerge.methods import Method
from riemerge.methods.method import SUMS
from riemerge.methods.threads import in_order
from riemerge.recipes.recipe import Recipe
from riemerge.recipes.specs import parts_of
from riemerge.updates import DenseRows, DenseSpan, LowRankUpdate
from riemerge.updates.reduction import Kind

Model: TypeAlias = Adapter | Checkpoint
Models: TypeAlias = Mapping[Path, Model]
"""Models that are open, by path: what is read of them later is what was checked, or an error."""

LARGE = 2**24
"""Numbers of T updates from which on they are read by rows: 128 MiB of float64."""

BLOCK = 2**19
"""Numbers of the rows of T updates that are read together: what a cache holds, 3 times as fast as more."""

_Read = TypeVar("_Read")


@final
@dataclass(frozen=True, slots=True)
class Input:
    """One model that takes part in a merge.

    Attributes:
        place: The place of the model among those asked for.
        name: The name of the model in messages and records.
        model: The open adapter or checkpoint.
    """

    place: int
    name: str
    model: Model


@final
@dataclass(frozen=True, eq=False)
class Inputs:
    """The T models that count in a merge, all of one kind, in the order of the stack; and their reader.

    Attributes:
        each: The T inputs.
        base: The base model, where full checkpoints are merged by their differences from it, or where the
            updates of adapters depend on it (DoRA).
        opened: The models as they were opened: before adapters are renamed, and views taken of checkpoints.
        missing: What a module counts as that some adapters lack.
        notes: What was taken to be the same in adapters, and what may have been meant otherwise.
        beside: What lies beside the result, of full checkpoints.
    """

    each: tuple[Input, ...]
    base: Checkpoint | None = None
    opened: tuple[Model, ...] = ()
    missing: Missing = "error"
    notes: tuple[str, ...] = ()
    beside: Beside | None = None

    @cached_property
    def adapters(self) -> tuple[Adapter, ...]:
        """The T open adapters; none where the inputs are full checkpoints."""
        return tuple(entry.model for entry in self.each if isinstance(entry.model, Adapter))

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The T open checkpoints; none where the inputs are adapters."""
        return tuple(entry.model for entry in self.each if isinstance(entry.model, Checkpoint))

    @property
    def carried(self) -> Checkpoint:
        """The checkpoint whose other files go with the result: the base model, or the first asked for."""
        return self.base or self.checkpoints[self.order[0]]

    @property
    def places(self) -> tuple[int, ...]:
        """The places of the T models among those asked for."""
        return tuple(entry.place for entry in self.each)

    @property
    def order(self) -> list[int]:
        """Places in the stack, in the order in which the record names the inputs."""
        return sorted(range(len(self.each)), key=lambda i: self.each[i].place)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The names of all that is merged, sorted: modules of adapters, tensors of floats of checkpoints."""
        return tuple(sorted({name for entry in self.each for name in entry.model.modules}))

    @cached_property
    def lacking(self) -> Mapping[str, frozenset[int]]:
        """The places in the stack of the adapters that lack a module, by its name, where some do."""
        places = {
            module: frozenset(i for i, adapter in enumerate(self.adapters) if module not in adapter.ranks)
            for module in self.modules
        }
        return {module: lacking for module, lacking in places.items() if lacking}

    @property
    def skipped(self) -> Mapping[str, frozenset[int]]:
        """The places in the stack of the adapters that take no part in a module, by its name."""
        if self.missing == "skip":
            return self.lacking
        return {}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all modules or tensors, sorted: also of tensors of integers, which are only copied."""
        return tuple(sorted({*self.modules, *(name for one in self.checkpoints for name in one.names)}))

    @property
    def stored(self) -> tuple[torch.dtype, ...]:
        """The T dtypes in which factors are stored; float64 for each checkpoint, which has none."""
        return tuple(adapter.dtype for adapter in self.adapters) or (torch.float64,) * len(self.each)

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the shape that a module has in all inputs that have it."""
        lacking = self.lacking.get(module, ())
        first = next(i for i, _ in enumerate(self.each) if i not in lacking)
        return self.each[first].model.shape(module)

    def kind(self, device: str, module: str) -> Kind | None:
        """Return what a module of adapters has in common with those that are reduced together, where they go
        to a type of device; None of full checkpoints, which have no factors.
        """
        if not self.adapters:
            return None
        lacking = self.lacking.get(module, ())
        ranks = (1 if i in lacking else adapter.ranks[module] for i, adapter in enumerate(self.adapters))
        m, n = self.shape(module)
        return Kind((m, n), tuple(ranks), device)

    def read(
        self, module: str, dtype: torch.dtype, device: torch.device
    ) -> tuple[LowRankUpdate, ...] | DenseSpan | DenseRows:
        """Read the T updates of a module: factors, or tensors less those of the base model.

        Law: a matrix or larger tensor of more than `LARGE` numbers, of all T together, is read by rows.

        Law: the update of an adapter that lacks the module is zero, of rank 1.

        Args:
            module: One of `modules`.
            dtype: The dtype of tall factors; dense updates are float64.
            device: Where they go.

        Raises:
            AdapterError: A tensor cannot be read.
        """
        if self.adapters:
            return tuple(self.update(i, module, dtype, device) for i, _ in enumerate(self.adapters))
        shape, count = self.shape(module), len(self.checkpoints)
        numbers = count * math.prod(shape)
        if len(shape) < 2 or numbers <= LARGE:
            return DenseSpan(self._read_dense(module, device, None))
        rows = max(1, BLOCK // (numbers // shape[0]))
        return DenseRows(count, shape, lambda run: self._read_dense(module, device, [run]), rows)

    def _read_dense(self, name: str, device: torch.device, rows: Sequence[range] | None) -> torch.Tensor:
        """Read a tensor of all checkpoints, or rows of it, less that of the base model: (T, ...)."""
        x = torch.stack([one.tensor(name, device=device, rows=rows) for one in self.checkpoints])
        if self.base is not None:
            x -= self.base.tensor(name, device=device, rows=rows)
        return x

    def update(self, place: int, module: str, dtype: torch.dtype, device: torch.device) -> LowRankUpdate:
        """Read the update of the adapter at a place of the stack, in the dtype in which it is stored where
        the given one holds that exactly; zero where it lacks the module.
        """
        if place in self.lacking.get(module, ()):
            m, n = self.shape(module)
            zeros = partial(torch.zeros, dtype=dtype, device=device)
            return LowRankUpdate(zeros(m, 1), zeros(1, n))
        return self.adapters[place].update(module, dtype=dtype, device=device, narrow=True)

    def unseen(self, domain: str) -> frozenset[str]:
        """Return the modules that rows of a domain do not see: tensors of a shape that it has no use for."""
        return frozenset(name for name in self.modules if not _sees(domain, self.shape(name)))


def _sees(domain: str, shape: tuple[int, ...]) -> bool:
    """Return whether rows of a domain see tensors of a shape."""
    if domain in SUMS:
        return math.prod(shape) > 1  # a number has no direction, and its sign is no angle
    return domain == "entries" or (len(shape) == 2 and 0 not in shape)


# --- opening ------------------------------------------------------------------------------------------------


def open_inputs(recipe: Recipe, method: Method, opened: Models, *, threads: int = 1) -> Inputs:
    """Open the models that count somewhere, and put them in an order that depends on their content alone.

    Law: a model of weight 0 is not touched; the order asked for changes nothing but `place`, except for a
    method whose models are a sequence.

    Args:
        recipe: What names the models, expanded (see `expand`).
        method: The row of the table.
        opened: Models that are open already.
        threads: How many files are hashed at once.

    Raises:
        RecipeError: The models are of two kinds, or the recipe asks what makes no sense for their kind.
        AdapterError: Every problem of every model; or the models do not fit each other.
    """
    paths = [entry.model for entry in recipe.models]
    used = [paths[i] for i in counting(recipe)]
    # One that is not there is refused by the reader of the others.
    kinds = {_is_checkpoint(path) for path in paths if len(parts_of(path)) > 1 or os.path.lexists(path)}
    if kinds != {True} and (True in kinds or recipe.base_model or recipe.out_type == "checkpoint"):
        # First what is wrong with a path, which may not be of the kind that it seems to be.
        try_each(partial(_open, opened, _read_as_it_is), used)
    if len(kinds) > 1:
        named = ", ".join(path for path in paths if _is_checkpoint(path))
        raise RecipeError(
            f"models: {named}: full checkpoints, the others are adapters: merge one kind at a time"
        )
    if kinds != {True}:
        _check_for_adapters(recipe, method)
        adapters = try_each(partial(_open, opened, read_adapter), used)
        deque(in_order(attrgetter("sha256"), adapters, threads), maxlen=0)
        return _fit(recipe, method, adapters, opened)
    # Here too: what is asked of a path may have been meant otherwise.
    folders = [*used, *filter(None, [recipe.base_model])]
    checkpoints = try_each(partial(_open, opened, partial(_read_checkpoint, recipe.rename)), folders)
    _check_for_checkpoints(recipe, method)
    models = list(checkpoints)
    if recipe.slices is not None:
        models = untie(models)
    lead = models[0]
    if recipe.base_model:
        lead = models[-1]
    beside = put_beside(recipe, models, lead)
    views = list(beside.checkpoints)
    if recipe.slices is not None:
        views, settings = stack_models(recipe, method, views, beside.settings)
        beside = _untie_settings(beside.with_settings(settings), views)
    check_checkpoints(views)
    merged, base = views[: len(used)], next(iter(views[len(used) :]), None)
    if beside.settings is not None:
        dtypes = {written_dtype(recipe.out_dtype, merged, name) for name in merged[0].modules}
        beside = beside.with_settings(take_dtype(beside.settings, dtypes))
    ordered = _in_order(recipe, method, merged)
    return Inputs(ordered, base, tuple(checkpoints), notes=beside.notes, beside=beside)


def _untie_settings(beside: Beside, views: Sequence[Checkpoint]) -> Beside:
    """Let the settings of a stack of several models say that its head is not its embedding, if it has one."""
    pair, settings = find_head(views[0]), beside.settings
    if len(views) == 1 or not pair or not pair[1] or settings is None or is_untied(settings):
        return beside
    note = f"config.json: tie_word_embeddings is false now: {pair[1]} is of the last slice, and no embedding"
    return replace(beside.with_settings(untie_settings(settings)), notes=(*beside.notes, note))


def written_dtype(asked: str | None, checkpoints: Sequence[Checkpoint], name: str) -> torch.dtype:
    """Return the dtype in which a tensor of full checkpoints is written."""
    if asked is not None:
        return find_dtype(asked)
    return reduce(torch.promote_types, (checkpoint.dtypes[name] for checkpoint in checkpoints))


def _fit(recipe: Recipe, method: Method, given: Sequence[Adapter], opened: Models) -> Inputs:
    """Make adapters fit each other, as far as the recipe says how."""
    check_prefixes(recipe.rename, given)
    adapters = list(given)
    if recipe.rename:
        adapters = try_each(lambda adapter: adapter.rename(recipe.rename), given)
    AdapterError.refuse(filter(None, map(_why_wrapped, adapters)))
    adapters, translated = _translate(recipe, adapters)
    fit = check_collection(
        adapters, same_base=recipe.same_base, base_name=recipe.base_name, missing=recipe.missing
    )
    _check_base_name(recipe, adapters)
    adapters = [adapter.on_base(fit.base) for adapter in adapters]
    base, models = _open_weights(recipe, method, adapters, opened), tuple[Model, ...](given)
    if base is not None:
        adapters, models = try_each(partial(Adapter.with_base, base=base), adapters), (*models, base)
    ordered = _in_order(recipe, method, adapters)
    unused = [
        f"{key}: left out: it is for full checkpoints, and adapters have none"
        for key in ("tokenizer", "chat_template")
        if getattr(recipe, key) is not None
    ]
    notes = (*translated, *fit.notes, *copy_notes(adapters), *unused)
    return Inputs(ordered, base, opened=models, missing=recipe.missing, notes=notes)


def _translate(recipe: Recipe, adapters: Sequence[Adapter]) -> tuple[list[Adapter], list[str]]:
    """Return adapters with their modules named as the output names them, and which of them were renamed."""
    dialect = recipe.dialect or adapters[0].dialect
    if recipe.out_type == "delta" and dialect == "kohya":
        dialect = "diffusers"  # a base model has names with dots
    named = name_alike(adapters, dialect)
    notes = [
        f"{old.name}: its {len(old.modules)} modules are named as in the dialect {dialect}"
        for old, new in zip(adapters, named, strict=True)
        if new is not old
    ]
    return named, [*notes, *find_doubts(adapters[0], dialect)]


def _open_weights(
    recipe: Recipe, method: Method, adapters: Sequence[Adapter], opened: Models
) -> Checkpoint | None:
    """Open the base model where adapters cannot be merged without its weights; None where they can.

    Raises:
        AdapterError: The recipe does not name it, or not a checkpoint that is there.
        RecipeError: The rank that is asked for makes no sense of updates of full rank.
    """
    needing = {
        adapter: [
            module
            for module, layer in adapter.layers.items()
            if isinstance(layer, Dora) or (isinstance(layer, Expert) and recipe.out_type == "delta")
        ]
        for adapter in adapters
    }
    if not any(needing.values()):
        return None
    if recipe.base_model is None:
        AdapterError.refuse(
            f"{adapter.path}: {list_names(modules)}: {NEEDS_BASE}"
            for adapter, modules in needing.items()
            if modules
        )
    has_dora = any(isinstance(layer, Dora) for adapter in adapters for layer in adapter.layers.values())
    rank = recipe.parameters.get("rank", method.defaults.get("rank"))
    if has_dora and rank is None and recipe.out_type != "delta":
        raise RecipeError(
            "parameters.rank: missing: DoRA's dW has full rank: give a number or a share of the energy, such "
            "as 95%, or out_type: delta, which writes the whole dW"
        )
    return _open(opened, partial(_read_checkpoint, {}), str(recipe.base_model))


def check_prefixes(prefixes: Iterable[str], adapters: Sequence[Adapter]) -> None:
    """Refuse prefixes with which no module of any adapter begins.

    Raises:
        RecipeError: There are some: all are named.
    """
    names = [name for adapter in adapters for name in adapter.modules]
    RecipeError.refuse(
        f"rename: {show(prefix)}: no module of any adapter begins so: they are {list_names(names)}"
        for prefix in prefixes
        if not any(name.startswith(prefix) for name in names)
    )


def _why_wrapped(adapter: Adapter) -> str | None:
    """Say why the names of an adapter's modules are of no model but a wrapped one; None where they are."""
    firsts = {name.partition(".")[0] for name in adapter.modules}
    for wrapper in sorted(firsts & {"_orig_mod", "_fsdp_wrapped_module"}):
        return (
            f"{adapter.path}: was saved from a model that torch.compile or FSDP had wrapped, and no other "
            f"model has its names: --rename {wrapper}.= reads those of the model itself"
        )
    return None


def _open(opened: Models, read: Callable[[str], _Read], path: str) -> _Read:
    """Return a model that is open already, or open it."""
    return cast("_Read", opened.get(Path(path))) or read(path)


def _is_checkpoint(path: str) -> bool:
    """Return whether a model is a full checkpoint, or one with an adapter added to it."""
    return len(parts_of(path)) > 1 or is_checkpoint(path)


def _read_checkpoint(rename: Mapping[str, str], path: str) -> Checkpoint:
    """Open a full checkpoint, or one with the adapter behind its plus merged into it."""
    match parts_of(path):
        case (base, adapter):
            return read_patched(base, adapter, rename)
    return read_checkpoint(path)


def _read_as_it_is(path: str) -> Model:
    if _is_checkpoint(path):
        return _read_checkpoint({}, path)
    return read_adapter(path)


def _check_base_name(recipe: Recipe, adapters: Sequence[Adapter]) -> None:
    """Refuse a base model by another name than the adapters have for it; a local folder has no name to tell.

    Raises:
        RecipeError: The names differ, and the recipe does not say that they are of one model.
    """
    base = recipe.base_model
    if base is None or recipe.same_base or os.path.lexists(base):
        return
    named = {adapter.path: adapter.config.base_model_name_or_path for adapter in adapters}
    names = {*named.values()} - {None, "", base}
    if not agree_on_base({**named, Path("base_model"): base}).problems:
        return
    RecipeError.refuse(
        f"base_model: {base}: the adapters name {name} as their base model: leave base_model out, or say "
        "same_base: true if these are one model"
        for name in sorted(map(str, names))
    )


def _check_for_adapters(recipe: Recipe, method: Method) -> None:
    """Refuse what makes no sense for adapters."""
    if recipe.slices is not None:
        raise RecipeError(
            "slices: take some layers only: those of adapters belong to the layers of one base model and are "
            "not put together: name whole models under models"
        )
    if recipe.out_type == "checkpoint":
        raise RecipeError(
            "out_type: checkpoint: adapters merge to an adapter or a delta: add a delta to the base"
        )
    if recipe.out_type != "delta":
        return
    whole = "out_type delta writes the whole dW, which has no rank: leave it out"
    cut = recipe.parameters.get("rank") not in {None, "sum"}
    if cut and not (method.truncates_inputs or method.constrained):
        raise RecipeError(f"parameters.rank: {whole}")
    if recipe.uniform_rank is not None:
        raise RecipeError(f"uniform_rank: {whole}")


def _check_for_checkpoints(recipe: Recipe, method: Method) -> None:
    """Refuse what makes no sense for full checkpoints."""
    problems = []
    if method.checkpoints == "no":
        problems.append(f"merge_method: {method.name} merges adapters only, and these are full checkpoints")
    if method.checkpoints == "updates" and not recipe.base_model:
        problems.append(
            f"base_model: missing: {method.name} merges what each model changed of a common base: name it"
        )
    if recipe.base_model and method.checkpoints == "weights":
        base = Path(recipe.base_model).resolve()
        problems += [
            f"models[{i}]: {entry.model} is the base_model itself, and its difference from it is zero: "
            "leave base_model out to merge the weights as they are"
            for i, entry in enumerate(recipe.models)
            if Path(entry.model).resolve() == base
        ]
    several = recipe.slices is None and len(recipe.models) > 1
    # The scale of one model is that of its weights, as in a slice.
    if "scale" in recipe.parameters and not recipe.base_model and several:
        problems.append("parameters.scale: scales the merged update, which needs base_model: name it")
    if recipe.parameters.get("rank", "sum") != "sum":
        problems.append("parameters.rank: full checkpoints are not cut to a rank: leave it out")
    if recipe.uniform_rank is not None:
        problems.append("uniform_rank: full checkpoints have no rank: leave it out")
    if recipe.dtype != "float64":
        problems.append(f"dtype: {recipe.dtype}: full checkpoints are merged in float64: leave it out")
    if recipe.out_type not in {None, "checkpoint"}:
        problems.append(f"out_type: {recipe.out_type}: full checkpoints merge to a checkpoint")
    problems += [
        f"{field}: is for adapters, and these are full checkpoints: leave it out"
        for field in recipe.adapting
        if field != "base_name"
    ]
    RecipeError.refuse(problems)


def _in_order(recipe: Recipe, method: Method, models: Sequence[Model]) -> tuple[Input, ...]:
    """Put the models that count in an order that depends on their content alone, if the method lets it.

    Args:
        recipe: What names them.
        method: The row of the table.
        models: The open models, in the order asked for.
    """
    names, entries = display_names([entry.model for entry in recipe.models]), recipe.models
    inputs = [Input(i, names[i], model) for i, model in zip(counting(recipe), models, strict=True)]
    if method.ordered:
        return tuple(inputs)
    # Two entries may share a file, but not their parameters: these break the tie.
    said = [json.dumps((entry.statistics or "", dict(entry.parameters)), sort_keys=True) for entry in entries]
    return tuple(sorted(inputs, key=lambda entry: (*entry.model.sha256.values(), said[entry.place])))


def expand(recipe: Recipe, method: Method) -> Recipe:
    """Return a recipe with the folder of a run replaced by the checkpoints in it, for a method of a sequence.

    Law: a folder that is no model itself stands for the models in it, each with what was said of the folder,
    in the order of the last number in their names (`checkpoint-500` before `checkpoint-1000`), else of the
    names.
    """
    if not method.ordered or method.models[1] is not None:
        return recipe
    models = [
        entry.model_copy(update={"model": str(path)})
        for entry in recipe.models
        for path in _steps(Path(entry.model))
    ]
    return recipe.model_copy(update={"models": tuple(models)})


def _steps(folder: Path) -> list[Path]:
    """Return the checkpoints in the folder of a run; the folder itself where it is none."""
    if holds_model(folder):
        return [folder]
    # Pickles are steps too, and are refused by name later: none is left out in silence.
    names = sorted(models_below(folder), key=lambda name: (_step(name), name))
    return [folder / name for name in names] or [folder]


def _step(name: str) -> int:
    """Return the last number in a name; -1 without one."""
    return int(["-1", *re.findall(r"\d+", name)][-1])


def counting(recipe: Recipe) -> tuple[int, ...]:
    """Return the places of the models whose weight is not 0 everywhere; of slices, those of all models."""
    if recipe.slices is not None:
        return tuple(range(len(recipe.models)))
    return tuple(i for i, weight in enumerate(recipe.weights) if weight is None or weight != 0)


def folders_of(recipe: Recipe) -> list[str]:
    """Return the folders of models that a recipe reads, which no output may touch."""
    models = [*(entry.model for entry in recipe.models), *filter(None, [recipe.base_model])]
    return [part for model in models for part in parts_of(model)]


def read_all(paths: Sequence[str | Path]) -> list[Adapter]:
    """Open adapters, and report the problems of all of them at once.

    Raises:
        AdapterError: Every problem of every folder.
    """
    return try_each(read_adapter, map(locate, paths))


def display_names(paths: Sequence[str | Path], *, with_commits: bool = False) -> tuple[str, ...]:
    """Return short names that tell folders apart: as many of the last parts of each path as that takes.

    Law: a model in the cache of the hub is called by its id there, and where two of its revisions occur by
    its commit too; a base model with an adapter added to it by both names, with a plus.

    >>> display_names(["runs/a/law", "runs/b/law", "runs/b/med"])
    ('a/law', 'b/law', 'med')

    Args:
        paths: The paths of the models.
        with_commits: Whether each model of the hub is called by its commit too.
    """
    sums = [parts_of(str(path)) for path in paths]
    names = iter(_display_names([part for parts in sums for part in parts], with_commits))
    return tuple("+".join(next(names) for _ in parts) for parts in sums)


def _display_names(paths: Sequence[str], with_commits: bool) -> list[str]:
    located = [locate(path) for path in paths]
    models = {path: model for path in located if (model := identify(path))}
    ids = {path: f"{model.repository}{model.folder}" for path, model in models.items()}
    several = {name for name, count in Counter(ids.values()).items() if with_commits or count > 1}
    parts = {path: path.absolute().parts for path in located}
    names = []
    for path in located:
        if path in models:
            name = ids[path]
            names.append(str(models[path]) if name in several else name)
            continue
        own = parts[path]
        others = [other for other in parts.values() if other != own]
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]))
    return names
