"""The plan of a merge: all that is known before the first tensor is read."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any, final

import torch

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.adapter import kinds_of
from riemerge.formats.dialects import read_adapter
from riemerge.formats.files.staging import check_output
from riemerge.formats.files.text import list_names
from riemerge.formats.hub import name_model
from riemerge.formats.layers import Linear
from riemerge.frechet.loss import as_loss
from riemerge.merging.adapter_sums import take_adapters
from riemerge.merging.heads import Heads, is_called, plan_heads
from riemerge.merging.identifiability import FEW, doubtful, overlaps
from riemerge.merging.inputs import (
    Input,
    Inputs,
    Models,
    display_names,
    expand,
    folders_of,
    open_inputs,
)
from riemerge.merging.machine import find_device, find_threads
from riemerge.merging.slices import flatten_slices
from riemerge.merging.stacking import StackResolver
from riemerge.methods import COLUMNS, GEOMETRIES, Method, Options, Stack
from riemerge.recipes.recipe import Recipe
from riemerge.recipes.resolve import Resolver
from riemerge.recipes.specs import parts_of
from riemerge.recipes.translations import TOKENIZERS
from riemerge.records.run_record import OutType
from riemerge.statistics import read_statistics
from riemerge.updates import DenseRows, DenseSpan, LowRankUpdate
from riemerge.updates.reduction import Reduction

WEIGHT = ".weight"
# Bytes of factors that are kept where each module is asked for twice: six adapters of rank 16 of all modules
# of Llama-3-8B are 503 MB in half precision.
_KEPT = 2**29
PEFT = "peft"

_OPTIONS = ("rank", "form", "tol", "cost_tol", "max_passes", "max_seconds", "starts", "seed")

REPORTS = ("short", "full")
"""What is measured of a merge: see `plan`."""


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """A merge that has been checked and can be run. Made by `plan`, done by `riemerge.merging.run.run`.

    Attributes:
        recipe: What was asked, with the folder of a run replaced by its checkpoints.
        method: The row of the table.
        inputs: The T models that count, open, in the order of the stack.
        resolver: What the recipe says of each model and module.
        stack: The updates as the method sees them, with their names, weights, parameters and statistics; read
            lazily.
        options: What the recipe asks of the method and what the machine offers.
        device: Where it is computed.
        out_type: What is written: `adapter`, `delta` or `checkpoint`.
        out_dtype: Dtype that is written; None where each tensor keeps that of the inputs.
        heads: What becomes of whole tensors that adapters have beside their factors.
        seconds: Wall seconds that planning took: checking and hashing the inputs.
    """

    recipe: Recipe
    method: Method
    inputs: Inputs
    resolver: Resolver | StackResolver
    stack: Stack
    options: Options
    device: torch.device
    out_type: OutType
    out_dtype: torch.dtype | None
    heads: Heads
    seconds: float

    @property
    def models(self) -> Models:
        """All models that are open, with the base model, by path."""
        return {model.path: model for model in self.inputs.opened}

    @property
    def dialect(self) -> str | None:
        """The dialect in which an adapter is written: that of the recipe, or of the first adapter."""
        if self.out_type != "adapter":
            return None
        return self.recipe.dialect or self.inputs.adapters[self.inputs.order[0]].dialect

    @property
    def resolved(self) -> dict[str, Any]:
        """The completed recipe as it can be written down, with names in place of paths."""
        recipe, out_dtype = self.recipe, self.out_dtype
        names = display_names([entry.model for entry in recipe.models], with_commits=True)
        known = dict(zip((entry.model for entry in recipe.models), names, strict=True))
        asked: dict[str, tuple[Any, Any]] = {
            "out_type": (self.out_type, "adapter"),
            "uniform_rank": (recipe.uniform_rank, None),
            "tokenizer": (recipe.tokenizer and _name_tokenizer(recipe.tokenizer, known), None),
            "chat_template": (recipe.chat_template, None),
            "slices": (self._slices(known), None),
            "earlier": (dict(recipe.earlier), {}),
            "dialect": (self.dialect or PEFT, PEFT),
        }
        scale: dict[str, float] = {}
        if self.inputs.adapters or recipe.base_model:
            scale = {"scale": 1.0}  # whole weights have none
        return {
            "merge_method": recipe.merge_method,
            **{name: getattr(recipe, name) for name in COLUMNS if getattr(recipe, name)},
            "models": [
                {
                    "model": name,
                    "parameters": {"weight": recipe.parameters.get("weight", 1.0), **entry.parameters},
                    **_names_of(statistics=entry.statistics),
                }
                for name, entry in zip(names, recipe.models, strict=True)
            ],
            **_names_of(base_model=recipe.base_model, base_statistics=recipe.base_statistics),
            **{key: value for key, (value, default) in asked.items() if value != default},
            **recipe.adapting,
            "parameters": {**scale, **self.method.defaults, **recipe.parameters},
            "dtype": recipe.dtype,
            "out_dtype": out_dtype and str(out_dtype).removeprefix("torch."),
        }

    def _slices(self, known: Mapping[str, str]) -> list[dict[str, Any]] | None:
        """Return the slices of the recipe as they can be written down; None where there are none."""
        if self.recipe.slices is None:
            return None
        return [
            {
                "sources": [
                    {
                        "model": known[source.model],
                        "layer_range": [*source.layer_range],
                        "parameters": {**source.parameters},
                    }
                    for source in part.sources
                ],
                "parameters": {**part.parameters},
            }
            for part in self.recipe.slices
        ]

    @property
    def read_beside(self) -> dict[str, dict[str, str]]:
        """The sha256 of each file that a merge reads beside its models, as a record has them.

        Raises:
            AdapterError: A file cannot be read.
        """
        recipe, inputs = self.recipe, self.inputs
        folders = {f"models[{i}].statistics": recipe.models[i].statistics for i in sorted(inputs.places)}
        folders["base_statistics"] = recipe.base_statistics
        sums: dict[str, dict[str, str]] = {}
        if inputs.base:
            sums["base_model"] = dict(inputs.base.sha256)
        if inputs.beside and inputs.beside.read:
            sums["tokenizers"] = dict(inputs.beside.read)
        return sums | {key: dict(read_statistics(path).sha256) for key, path in folders.items() if path}


def _name_tokenizer(source: str, known: Mapping[str, str]) -> str:
    """Return the word for a tokenizer, or the name of the model whose tokenizer it is."""
    if source in TOKENIZERS:
        return source
    return known.get(source) or _name_sum(source)


def _names_of(**paths: str | None) -> dict[str, str]:
    """Return the name of what lies at each path that is given, without the rest of its path."""
    return {key: _name_sum(path) for key, path in paths.items() if path}


def _name_sum(path: str) -> str:
    """Return the name of a model, or those of a base model and of the adapter added to it, with a plus."""
    return "+".join(map(name_model, parts_of(path)))


def plan(
    recipe: Recipe,
    *,
    folder: str | Path | None = None,
    opened: Models | None = None,
    optimizer: Any = None,
    device: str = "cpu",
    threads: int | None = None,
    report: str = REPORTS[0],
) -> Plan:
    """Check a recipe against its models, and say all that a merge of them will do.

    Law: what a merge refuses without computing is refused here, and nothing is written. No tensor is read,
    but of modules whose ranks differ where the method needs one rank: an update that is all zero may differ.

    Args:
        recipe: What to merge, and how.
        folder: Where the result will go, if it is to be written.
        opened: Models of the recipe that are open already.
        optimizer: What the recipe's `solver` names, where that is no solver of ours: a Pymanopt optimizer.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: Number of threads that work at once on a CPU; as many as the process may use if None.
        report: What is measured beside norms and distances: `full` the overlaps of all pairs of adapters,
            `short` those only where they are few or the method needs them.

    Raises:
        RecipeError: What was asked makes no sense.
        AdapterError: An input cannot be read exactly, or the inputs do not fit each other.
        OutputError: The folder exists, or overlaps an input.
        ResourceError: The device is not there.
    """
    began = perf_counter()
    recipe = take_adapters(flatten_slices(recipe))
    method = recipe.method
    recipe = expand(recipe, method)
    if folder is not None:
        check_output(folder, folders_of(recipe))
    asked = {**method.defaults, **recipe.parameters}
    where = find_device(device)
    if report not in REPORTS:
        raise RecipeError(f"report: {report!r} is not known: expected {' or '.join(REPORTS)}")
    _check_values(recipe)
    _check_solver_and_rank(asked, method, optimizer)
    count = find_threads(threads, where)
    inputs = open_inputs(recipe, method, opened or {}, threads=count)
    resolver: Resolver | StackResolver
    if recipe.slices is not None:
        resolver = StackResolver(recipe, method, inputs.names)
    else:
        resolver = Resolver(recipe, method, inputs.names)
    options = Options(
        solver=optimizer or asked.get("solver"),
        threads=count,
        dense=recipe.out_type == "delta",
        doubtful=doubtful,
        overlaps=_choose_overlaps(report, method, asked.get("starts"), len(inputs.each)),
        later=bool(resolver.matched),
        **{name: asked[name] for name in _OPTIONS if name in asked},
    )
    out_dtype: torch.dtype | None = getattr(torch, recipe.out_dtype or "", None)
    heads = _plan_heads(recipe, inputs, out_dtype)
    out_type: OutType = "checkpoint"
    if inputs.adapters:
        out_type = recipe.out_type or "adapter"
        out_dtype = out_dtype or reduce(torch.promote_types, inputs.stored)
    return Plan(
        recipe=recipe,
        method=method,
        inputs=inputs,
        resolver=resolver,
        stack=_stack(recipe, method, inputs, resolver, where),
        options=options,
        device=where,
        out_type=out_type,
        out_dtype=out_dtype,
        heads=heads,
        seconds=perf_counter() - began,
    )


def _choose_overlaps(
    report: str, method: Method, starts: Any, count: int
) -> Callable[[Reduction, Sequence[torch.dtype]], Sequence[Any]] | None:
    """Return what measures the overlaps of T adapters, where they are wanted."""
    if report == "full" or count <= FEW or method.may_be_undetermined or starts == "auto":
        return overlaps
    return None


def _plan_heads(recipe: Recipe, inputs: Inputs, out_dtype: torch.dtype | None) -> Heads:
    """Say what becomes of whole tensors, of adapters that fit each other."""
    adapters = {inputs.each[i].name: inputs.adapters[i] for i in inputs.order if inputs.adapters}
    weights = [recipe.weights[inputs.each[i].place] for i in inputs.order if inputs.adapters]
    _, _, wanted = (recipe.heads or "").partition("from=")
    for name, entry in zip(display_names([one.model for one in recipe.models]), recipe.models, strict=True):
        # One that does not count here may be the one whose heads are wanted, as in the parts of a soup.
        if wanted and adapters and name not in adapters and is_called(entry.model, wanted):
            adapters[name] = read_adapter(entry.model).rename(recipe.rename)
            weights.append(0.0)
    return plan_heads(
        recipe.heads,
        adapters,
        weights,
        kinds_of(inputs.adapters),
        out_dtype=out_dtype,
        only_updates=recipe.out_type == "delta" or recipe.dialect not in {None, "peft"},
        skip=recipe.missing == "skip",
    )


def plan_together(
    whole: Recipe, parts: Iterable[Recipe], *, device: str = "cpu", threads: int | None = None
) -> Models:
    """Check before any work that all models of a recipe fit each other, and that parts of it can be merged.

    Args:
        whole: A recipe in which every model counts.
        parts: Recipes of those models with other weights, some of them 0, or another method.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: Number of threads that work at once.

    Returns:
        The models, and the base model if the recipe has one.

    Raises:
        RiemergeError: What `plan` raises.
    """
    opened = plan(whole, device=device, threads=threads).models
    # Problems that no merge computes depend on which models count, and not on how much.
    for part in {tuple(weight != 0 for weight in part.weights): part for part in parts}.values():
        plan(part, opened=opened, device=device, threads=threads)
    return opened


def _check_values(recipe: Recipe) -> None:
    """Refuse a geometry or a loss of the recipe whose options make no sense."""
    if recipe.geometry:
        GEOMETRIES.make(recipe.geometry)
    if recipe.loss:
        as_loss(recipe.loss)


def _check_solver_and_rank(asked: Mapping[str, Any], method: Method, optimizer: Any) -> None:
    """Refuse a solver that is not known, and words for a rank where the method has one rank."""
    named, rank = asked.get("solver"), asked.get("rank")
    if optimizer is None and named is not None:
        from riemerge.frechet.solvers.catalogue import as_solver  # brings Pymanopt, which few rows need

        try:
            as_solver(named)
        except RecipeError as fault:
            raise RecipeError(f"parameters.solver: {problem}" for problem in fault.problems) from None
    fixed = method.truncates_inputs or (method.constrained and rank != "sum")
    if isinstance(rank, str) and fixed:
        raise RecipeError(
            f"parameters.rank: {rank}: {method.name} has one rank: give a number, or leave it out"
        )


# --- the stack ----------------------------------------------------------------------------------------------


def _stack(
    recipe: Recipe,
    method: Method,
    inputs: Inputs,
    resolver: Resolver | StackResolver,
    device: torch.device,
) -> Stack:
    """Stack the inputs: their updates read lazily, their weights and parameters as the recipe has them.

    Raises:
        RecipeError: The rank that is asked for is above those that there are.
        AdapterError: The ranks, or the statistics, are not those that the method needs.
    """
    dtype = getattr(torch, recipe.dtype)
    # What the stored factors say is the update, whatever their dtype: real adapters in half precision have
    # singular values below its round-off that count. But no adapter was trained to more than float32, and
    # what stands below that is noise, unless float64 was stored and is computed with.
    exact = {torch.float64}
    storage = tuple(torch.float64 if {own, dtype} == exact else torch.float32 for own in inputs.stored)
    weights = weights_of(resolver, method, inputs.places, inputs.skipped)
    _check_shares(resolver, method, inputs)
    measured = _shapes_with_statistics(recipe, method, inputs)
    plain: frozenset[str] = frozenset()
    if inputs.adapters:
        _check_ranks(recipe, method, inputs, weights)
    elif method.statistics:
        plain = frozenset(inputs.modules) - {module + WEIGHT for module in measured}
    else:
        plain = inputs.unseen(method.domain)
    *own, base = open_statistics(recipe, method, inputs.places, measured, inputs.skipped)
    return Stack(
        names=tuple(entry.name for entry in inputs.each),
        modules=_Modules(inputs, dtype, device, _KEPT * bool(resolver.matched)),
        weights=weights,
        storage=storage,
        values=values_of(resolver, inputs.places),
        statistics=tuple(own),
        base_statistics=base,
        plain=plain,
        stored=inputs.stored,
        dtype=dtype,
        kinds=partial(inputs.kind, device.type),
    )


def _shapes_with_statistics(recipe: Recipe, method: Method, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Return the shape of each module that must have statistics, by its name in the base model.

    Raises:
        AdapterError: None of those that have statistics is a weight of the checkpoints, or a module of the
            adapters is no linear layer.
    """
    if not method.statistics:
        return {}
    if inputs.adapters:
        kinds = kinds_of(inputs.adapters).items()
        AdapterError.refuse(
            f"{module}: is {layer.layout}: {method.name} needs statistics, which are of the inputs of linear "
            "layers: use a method without statistics"
            for module, layer in sorted(kinds)
            if not isinstance(layer, Linear)
        )
        return {module: inputs.shape(module) for module in inputs.modules}
    folders = [*(recipe.models[i].statistics for i in inputs.places), recipe.base_statistics]
    known = {module for folder in folders if folder for module in read_statistics(folder).modules}
    shapes = {
        name.removesuffix(WEIGHT): inputs.shape(name)
        for name in inputs.modules
        if name.endswith(WEIGHT) and name.removesuffix(WEIGHT) in known
    }
    if not shapes:
        raise AdapterError(
            f"statistics: of {list_names(sorted(known))}, none of them a weight of "
            f"{inputs.checkpoints[0].path}: expected those of its modules, under their names there"
        )
    return shapes


def _check_ranks(
    recipe: Recipe,
    method: Method,
    inputs: Inputs,
    weights: Callable[[str], tuple[float, ...]],
) -> None:
    """Refuse the ranks that no merge has to be done for to see that they will not do."""
    rank = recipe.parameters.get("rank", method.defaults.get("rank"))
    if isinstance(rank, int):
        _check_asked(rank, method, inputs.each)
    elif method.truncates_inputs:
        AdapterError.refuse(
            text for module in inputs.modules for text in _rank_problems(module, inputs, weights(module))
        )


def _check_asked(rank: int, method: Method, inputs: Sequence[Input]) -> None:
    """Refuse a rank above that of every module; for a method that cuts its inputs, above any of theirs."""
    least, most, problems = rank, 1, []
    for entry in inputs:
        stored = entry.model.ranks
        full = {module: min(entry.model.shape(module)) for module in stored}
        most = max(most, *stored.values(), *full.values())
        # An update that has just as many columns stays as it is.
        cut = {module: min(have, full[module]) for module, have in stored.items() if have != rank}
        if below := [module for module, have in cut.items() if have < rank]:
            least = min(least, *cut.values())
            problems.append(
                f"{entry.name} has less in {len(below)} of {len(stored)} modules ({list_names(below)})"
            )
    if problems and method.truncates_inputs:
        raise RecipeError(
            f"parameters.rank: {rank}: {method.name} truncates its inputs to that rank, but {text}: give at "
            f"most {least}"
            for text in problems
        )
    if rank > most:
        raise RecipeError(f"parameters.rank: {rank}: no module has a rank above {most}: give at most that")


def _rank_problems(module: str, inputs: Inputs, weights: Sequence[float]) -> list[str]:
    """Return what is wrong with the ranks of one module; only where they differ is it read."""
    each = zip(inputs.each, inputs.adapters, weights, strict=True)
    counting = {
        entry.name: adapter for entry, adapter, weight in each if weight > 0 and module in adapter.ranks
    }
    ranks = {name: adapter.ranks[module] for name, adapter in counting.items()}
    if len(set(ranks.values())) < 2:
        return []
    from riemerge.methods.geodesic.quotient_mean import refuse_mixed  # brings Pymanopt, which few rows need

    # An update that is all zero is left out of its module.
    return refuse_mixed(
        module, [(name, r) for name, r in ranks.items() if counting[name].update(module).norm() > 0]
    )


def open_statistics(
    recipe: Recipe,
    method: Method,
    places: Sequence[int],
    shapes: Mapping[str, tuple[int, ...]],
    skipped: Mapping[str, Collection[int]],
) -> list[Callable[[str], Mapping[str, torch.Tensor]]]:
    """Open the statistics that a recipe names: what gives those of a module, for each model and the base.

    Args:
        recipe: What names them.
        method: The row that says which kinds are needed.
        places: The places of the models that count.
        shapes: (m, n) of each module that they must have, by its name in the base model.
        skipped: Models among those that count that take no part in a module, by its name; they need no
            statistics of it.

    Raises:
        AdapterError: Statistics cannot be read, or lack something: all of it.
    """
    folders = [(method.statistics and recipe.models[i].statistics) or None for i in places]
    opened = [folder and read_statistics(folder) for folder in (*folders, recipe.base_statistics)]
    problems: list[str] = []
    for i, data in enumerate(opened):
        needed = {module: shape for module, shape in shapes.items() if i not in skipped.get(module, ())}
        problems += (data and data.problems(needed, method.statistics)) or []
    AdapterError.refuse(problems)

    def of(data: Any, module: str) -> Mapping[str, torch.Tensor]:
        if not data:
            return {}
        kept: Mapping[str, torch.Tensor] = data.of(module.removesuffix(WEIGHT), kinds=method.statistics)
        return kept

    return [partial(of, data) for data in opened]


def weights_of(
    resolver: Resolver | StackResolver,
    method: Method,
    places: Sequence[int],
    skipped: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> Callable[[str], tuple[float, ...]]:
    """Return what gives the weights of a module, of the models at some places, as the method uses them.

    Law: weights have the sum 1 where the method divides by their sum, and else the sum that they were given;
    those of models that take no part in a module are 0 there, and the others count in proportion.

    Args:
        resolver: What the recipe says of each model and module.
        method: The row of the table.
        places: The places of the models that count among those asked for.
        skipped: Models among them that take no part in a module, by its name.
    """

    def weights(module: str) -> tuple[float, ...]:
        every = resolver.weights(module)
        given = [every[i] for i in places]
        out = skipped.get(module, ())
        if not method.normalised and not out:
            return tuple(given)
        kept = [weight * (i not in out) for i, weight in enumerate(given)]
        # Not 0: the resolver, and `_check_shares`, have seen to that.
        total = math.fsum(kept)
        if not method.normalised:
            total /= math.fsum(given)
        return tuple(weight / total for weight in kept)

    return weights


def _check_shares(resolver: Resolver | StackResolver, method: Method, inputs: Inputs) -> None:
    """Refuse modules in which the weights of those that have them cannot stand for all.

    Raises:
        RecipeError: All such modules.
    """
    unfit = []
    for module, out in inputs.skipped.items():
        every = resolver.weights(module)
        given = [every[i] for i in inputs.places]
        kept = [weight for i, weight in enumerate(given) if i not in out]
        least = sys.float_info.epsilon * math.fsum(map(abs, given))
        signed = math.fsum(kept) * math.copysign(1.0, math.fsum(given))
        if signed <= least or (not method.normalised and abs(math.fsum(given)) <= least):
            unfit.append(module)
    if unfit:
        raise RecipeError(
            f"missing: skip: {list_names(unfit)}: the weights of the adapters that have it do not add up to "
            "a number of the sign that the sum of all has, so they cannot count in proportion: choose "
            "--missing zero, or other weights"
        )


def values_of(
    resolver: Resolver | StackResolver, places: Sequence[int]
) -> Callable[[str], Mapping[str, Any]]:
    """Return what gives the parameters of a module; those per model are of the models at some places."""

    def values(module: str) -> Mapping[str, Any]:
        return {
            name: tuple(value[i] for i in places) if isinstance(value, tuple) else value
            for name, value in resolver.values(module).items()
        }

    return values


@final
class _Modules(Mapping[str, tuple[LowRankUpdate, ...] | DenseSpan | DenseRows]):
    """The T updates of each module, read from disk at each access; factors stay until they are asked for a
    second time, as many as `most` bytes hold.
    """

    def __init__(self, inputs: Inputs, dtype: torch.dtype, device: torch.device, most: int) -> None:
        self._inputs = inputs
        self._dtype = dtype
        self._device = device
        self._kept: dict[str, tuple[LowRankUpdate, ...]] = {}
        self._left, self._lock = most, threading.Lock()

    def __getitem__(self, module: str) -> tuple[LowRankUpdate, ...] | DenseSpan | DenseRows:
        with self._lock:
            kept = self._kept.pop(module, None)
        if kept is not None:
            return kept
        updates = self._inputs.read(module, self._dtype, self._device)
        if isinstance(updates, tuple):
            size = sum(update.A.nbytes + update.B.nbytes for update in updates)
            with self._lock:
                if size <= self._left:
                    self._kept[module], self._left = updates, self._left - size
        return updates

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs.modules)

    def __len__(self) -> int:
        return len(self._inputs.modules)
