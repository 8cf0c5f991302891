"""Stacking: adapters that are open, with what their recipe says of each, as a method sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.files.text import listed
from riemerge.formats.peft import Adapter
from riemerge.merging.inputs import Input
from riemerge.methods import Method, Stack
from riemerge.methods.geodesic.quotient_mean import mixed
from riemerge.recipes.recipe import Recipe
from riemerge.recipes.resolve import Resolver
from riemerge.statistics import read_statistics
from riemerge.updates.low_rank import LowRankUpdate


def stack(
    recipe: Recipe,
    inputs: Sequence[Input[Adapter]],
    resolver: Resolver,
    method: Method,
    dtype: torch.dtype,
    device: torch.device,
) -> Stack:
    """Stack the inputs: their updates read lazily, their weights and parameters as the recipe has them.

    Args:
        recipe: What names the statistics.
        inputs: The T inputs that count, in the order of the stack.
        resolver: What the recipe says of each model and module.
        method: The row of the table.
        dtype: Of the tall factors.
        device: Where they go.

    Raises:
        RecipeError: The rank that is asked for is above those that there are.
        AdapterError: The ranks, or the statistics, are not those that the method needs.
    """
    # What the stored factors say is the update, whatever their dtype: real adapters in half precision have
    # singular values below its round-off that count. But no adapter was trained to more than float32, and
    # what stands below that is noise, unless float64 was stored and is computed with.
    exact = {torch.float64}
    storage = tuple(torch.float64 if {one.model.dtype, dtype} == exact else torch.float32 for one in inputs)
    places = [one.place for one in inputs]
    weights = weights_of(resolver, method, places)
    _check_ranks(recipe, method, inputs, weights)
    one = inputs[0].model
    shapes = {module: one.shape(module) for module in one.modules}
    *own, base = open_statistics(recipe, method, places, shapes)
    return Stack(
        names=tuple(one.name for one in inputs),
        modules=_Modules(inputs, dtype, device),
        weights=weights,
        storage=storage,
        values=values_of(resolver, places),
        statistics=tuple(own),
        base_statistics=base,
    )


def _check_ranks(
    recipe: Recipe,
    method: Method,
    inputs: Sequence[Input[Adapter]],
    weights: Callable[[str], tuple[float, ...]],
) -> None:
    """Refuse the ranks that no merge has to be done for to see that they will not do."""
    rank = recipe.parameters.get("rank", method.defaults.get("rank"))
    if isinstance(rank, int):
        _check_asked(rank, method, inputs)
    elif method.truncates_inputs:
        problems = [
            text for module in inputs[0].model.modules for text in _mixed(module, inputs, weights(module))
        ]
        if problems:
            raise AdapterError(problems)


def _check_asked(rank: int, method: Method, inputs: Sequence[Input[Adapter]]) -> None:
    """Refuse a rank above that of every module; for a method that cuts its inputs, above any of theirs."""
    least, most, problems = rank, 1, []
    for one in inputs:
        stored = one.model.ranks
        full = {module: min(one.model.shape(module)) for module in stored}
        most = max(most, *stored.values(), *full.values())
        # An update that has just as many columns stays as it is.
        cut = {module: min(have, full[module]) for module, have in stored.items() if have != rank}
        if below := [module for module, have in cut.items() if have < rank]:
            least = min(least, *cut.values())
            problems.append(f"{one.name} has less in {len(below)} of {len(stored)} modules ({listed(below)})")
    if problems and method.truncates_inputs:
        raise RecipeError(
            f"parameters.rank: {rank}: {method.name} truncates its inputs to that rank, but {text}: give at "
            f"most {least}"
            for text in problems
        )
    if rank > most:
        raise RecipeError(f"parameters.rank: {rank}: no module has a rank above {most}: give at most that")


def _mixed(module: str, inputs: Sequence[Input[Adapter]], weights: Sequence[float]) -> list[str]:
    """What is wrong with the ranks of one module; only where they differ is it read."""
    counting = [one for one, weight in zip(inputs, weights, strict=True) if weight > 0]
    if len({one.model.ranks[module] for one in counting}) == 1:
        return []
    # An update that is all zero is left out of its module.
    there = [one for one in counting if one.model.update(module).norm() > 0.0]
    return mixed(module, [(one.name, one.model.ranks[module]) for one in there])


def open_statistics(
    recipe: Recipe, method: Method, places: Sequence[int], shapes: Mapping[str, tuple[int, ...]]
) -> list[Callable[[str], Mapping[str, torch.Tensor]]]:
    """Open the statistics that a recipe names: what gives those of a module, for each model and the base.

    Args:
        recipe: What names them.
        method: Which kinds it needs.
        places: Of the models that count.
        shapes: (m, n) of each module that they must have.

    Raises:
        AdapterError: They cannot be read, or lack something: all of it.
    """
    folders = [recipe.models[place].statistics if method.statistics else None for place in places]
    folders.append(recipe.base_statistics)
    opened = [read_statistics(folder) if folder else None for folder in folders]
    if problems := [text for one in opened if one for text in one.problems(shapes, method.statistics)]:
        raise AdapterError(problems)
    return [partial(one.of, kinds=method.statistics) if one else _nothing for one in opened]


def _nothing(_: str) -> Mapping[str, torch.Tensor]:
    return {}


def weights_of(
    resolver: Resolver, method: Method, places: Sequence[int]
) -> Callable[[str], tuple[float, ...]]:
    """Return what gives the weights of a module, of the models at some places, as the method uses them."""

    def weights(module: str) -> tuple[float, ...]:
        every = resolver.weights(module)
        given = [every[place] for place in places]
        total = math.fsum(given) if method.normalised else 1.0  # not 0: the resolver has seen to that
        return tuple(weight / total for weight in given)

    return weights


def values_of(resolver: Resolver, places: Sequence[int]) -> Callable[[str], Mapping[str, Any]]:
    """Return what gives the parameters of a module; those per model are of the models at some places."""

    def values(module: str) -> Mapping[str, Any]:
        return {
            name: tuple(value[place] for place in places) if isinstance(value, tuple) else value
            for name, value in resolver.values(module).items()
        }

    return values


@final
class _Modules(Mapping[str, tuple[LowRankUpdate, ...]]):
    """The T updates of each module, read from disk at each access, so that none is kept."""

    def __init__(self, inputs: Sequence[Input[Adapter]], dtype: torch.dtype, device: torch.device) -> None:
        self._inputs = inputs
        self._dtype = dtype
        self._device = device

    def __getitem__(self, module: str) -> tuple[LowRankUpdate, ...]:
        return tuple(one.model.update(module, dtype=self._dtype, device=self._device) for one in self._inputs)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._inputs[0].model.modules))

    def __len__(self) -> int:
        return len(self._inputs[0].model.modules)
