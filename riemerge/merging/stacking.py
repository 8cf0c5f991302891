"""Slices of full checkpoints: one stack of layers from several models, merged slice by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.checkpoint import Checkpoint
from riemerge.formats.checkpoint.embedded import find_head
from riemerge.formats.checkpoint.settings import restack
from riemerge.formats.checkpoint.stacked import Run, depth_in, layers_of, run_of, stack
from riemerge.merging.slices import recipe_of_slice
from riemerge.methods import Method
from riemerge.recipes.recipe import Recipe, Slice
from riemerge.recipes.resolve import Resolver


def stack_models(
    recipe: Recipe,
    method: Method,
    checkpoints: Sequence[Checkpoint],
    settings: Mapping[str, Any] | None,
) -> tuple[list[Checkpoint], dict[str, Any] | None]:
    """Return views of models whose layers are those that the slices of a recipe ask for.

    Law: a model that is no source of a slice has weight 0 there, and the tensors of the base model, or zeros.
    The base model has the layers of the sources.

    Args:
        recipe: The recipe, with slices.
        method: The row of the table.
        checkpoints: The open models of the recipe in its order, and behind them the base model if it has one;
            in one vocabulary, and all of them with a head or none (see `untie`).
        settings: The settings of the model whose files go with the result: the base model, or the first.

    Returns:
        The views in this order, and the settings of the result; None where the models have none.

    Raises:
        RecipeError: The base model would have several layers for one, or an ordered method's models stand in
            another order in a slice.
        AdapterError: A model has no such layers, its settings name layers by their places, or the embedding
            and the head of the result would be of different vocabularies.
    """
    assert recipe.slices is not None
    names = [entry.model for entry in recipe.models]
    problems = []
    for k, part in enumerate(recipe.slices):
        order = [names.index(source.model) for source in part.sources]
        if method.ordered and order != sorted(order):
            problems.append(
                f"slices[{k}]: {method.name} takes models in order: name them as the first slices do"
            )
        if recipe.base_model and len({source.layer_range for source in part.sources}) > 1:
            problems.append(
                f"slices[{k}]: its sources have different layers, and each is merged by its difference from "
                "the same layer of base_model: take the same layers of all"
            )
    RecipeError.refuse(problems)
    runs = [runs_of(recipe.slices, name) for name in names]
    base = None
    if recipe.base_model:
        base = checkpoints[-1]
        runs.append(runs_of(recipe.slices, None))
    views = stack(checkpoints, runs, base)
    lead = base or checkpoints[0]
    _check_head(lead, views[0])
    if settings is not None:
        layers = [
            part.sources[0].layer_range[0] + i
            for part in recipe.slices
            for i in range(part.sources[0].layer_range[1] - part.sources[0].layer_range[0])
        ]
        return [*views], restack(settings, layers_of(lead)[1], layers)
    return [*views], None


def _check_head(lead: Checkpoint, view: Checkpoint) -> None:
    """Refuse a stack whose embedding and head have different numbers of rows.

    Args:
        lead: A model of the stack.
        view: The view of a model whose layers are those of the stack.
    """
    pair = find_head(lead)
    if pair is None:
        return
    embedding, head = pair
    if head is not None and view.shapes[embedding] != view.shapes[head]:
        raise AdapterError(
            f"slices: {embedding} of the first slice is {view.shapes[embedding]}, and {head} of the last is "
            f"{view.shapes[head]}: expected models of one vocabulary: put them in one with tokenizer: union"
        )


def runs_of(slices: Sequence[Slice], model: str | None) -> list[Run]:
    """Return the runs of one model in the slices of a recipe; for None, of one with a part in all."""
    runs: list[Run] = []
    first = 0
    for part in slices:
        start, stop = part.sources[0].layer_range
        ranges = {source.model: source.layer_range[0] for source in part.sources}
        runs.append(Run(first, stop - start, start if model is None else ranges.get(model)))
        first += stop - start
    return runs


@final
class StackResolver:
    """The values of a recipe's parameters in each tensor of a stack: those of the slice that it stands in.

    Law: what `Resolver` says of the recipe of the slice. Depth counts from 0 to 1 within each slice, as in
    mergekit.

    Args:
        recipe: The recipe, with slices.
        method: The row of the table.
        names: The names of all tensors of the stack.

    Raises:
        RecipeError: What `Resolver` raises.
    """

    def __init__(self, recipe: Recipe, method: Method, names: Sequence[str]) -> None:
        assert recipe.slices is not None
        self._runs = runs_of(recipe.slices, None)
        self._models = [entry.model for entry in recipe.models]
        self._sources = [[source.model for source in part.sources] for part in recipe.slices]
        depth = {name: depth_in(name, self._runs[run_of(name, self._runs)]) for name in names}
        self._each = [Resolver(recipe_of_slice(recipe, part), method, names, depth) for part in recipe.slices]

    def weights(self, module: str) -> tuple[float, ...]:
        """Return the weights of the recipe's T models in one tensor: 0 of those that are no source of it."""
        return tuple(weight or 0.0 for weight in self._spread(module, self._own(module).weights(module)))

    def scale(self, module: str, matched: float | None) -> float:
        """Return the factor λ on the merged update in one tensor (see `Resolver.scale`)."""
        return self._own(module).scale(module, matched)

    @property
    def matched(self) -> frozenset[str]:
        """The tensors whose scale is `matched`."""
        every = {name for resolver in self._each for name in resolver.matched}
        return frozenset(name for name in every if name in self._own(name).matched)

    def values(self, module: str) -> dict[str, Any]:
        """Return the values in one tensor of what the method takes beside weights and scale."""
        own: Mapping[str, Any] = self._own(module).values(module)
        return {
            name: self._spread(module, value) if isinstance(value, tuple) else value
            for name, value in own.items()
        }

    def _own(self, module: str) -> Resolver:
        return self._each[run_of(module, self._runs)]

    def _spread(self, module: str, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return what is said of the sources of a slice, for all models; None for the others."""
        said = dict(zip(self._sources[run_of(module, self._runs)], values, strict=True))
        return tuple(said.get(model) for model in self._models)
