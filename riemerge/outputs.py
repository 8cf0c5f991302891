"""Outputs: a recipe merged into a folder, whatever its inputs are and whatever is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from riemerge.adapters import Adapter, read_adapter
from riemerge.bookkeeping import resolved_recipe
from riemerge.card import model_card
from riemerge.checkpoints import Checkpoint, DenseWriter, read_checkpoint
from riemerge.dense import CheckpointMerge
from riemerge.errors import RecipeError
from riemerge.inputs import counting, expanded, read_each
from riemerge.merge import CARD_FILE, RECORD_FILE, AdapterMerge, Listener, Progress, merge_recipe
from riemerge.methods import find_method
from riemerge.recipe import Recipe
from riemerge.record import RunRecord
from riemerge.storage.kinds import is_checkpoint
from riemerge.storage.rounding import change_warnings, rounding_warnings
from riemerge.storage.staging import check_output
from riemerge.updates import LowRankUpdate


class Written(NamedTuple):
    """What was done, and the largest relative error of rounding a tensor to the dtype that was written."""

    record: RunRecord
    rounding: float


def merge_into(
    recipe: Recipe,
    folder: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    shard_bytes: int = 5_000_000_000,
    progress: Listener | None = None,
) -> Written:
    """Merge what a recipe asks for, and write it with its record and a card.

    Law: the folder appears whole or not at all. Adapters merge to an adapter, or with `out_type: delta` to
    the whole dW of each module as `module.weight`, to be added to the base model; full checkpoints to a
    checkpoint of the same names, with the files that lie beside the base model, or the first.

    Args:
        recipe: What to merge, and how.
        folder: The new folder.
        device: As in `merge_adapters`, and so `threads`.
        threads: How many work at once.
        shard_bytes: Most bytes of a file of tensors, for what is not an adapter.
        progress: Called now and then.

    Raises:
        RiemergeError: As `merge_adapters`, and OutputError where the folder cannot be written.
    """
    recipe = expanded(recipe)
    paths = [entry.model for entry in recipe.models]
    check_output(folder, [*paths, *([recipe.base_model] if recipe.base_model else [])])
    # One that is not there is refused by the reader of the others.
    kinds = {is_checkpoint(path) for path in paths if Path(path).exists()}
    if kinds != {True} and (True in kinds or recipe.base_model or recipe.out_type == "checkpoint"):
        # First what is wrong with a path, which may not be of the kind that it seems to be.
        read_each(open_model, [paths[place] for place in counting(recipe)])
    if len(kinds) > 1:
        named = ", ".join(path for path in paths if is_checkpoint(path))
        raise RecipeError(
            f"models: {named}: full checkpoints, the others are adapters: merge one kind at a time"
        )
    if kinds == {True}:
        job = CheckpointMerge(recipe, device, threads, progress and _by_words(progress))
        return _checkpoint(job, folder, shard_bytes)
    if recipe.base_model:
        raise RecipeError("base_model: the base model is not needed to merge adapters: leave it out")
    if recipe.out_type == "checkpoint":
        raise RecipeError(
            "out_type: checkpoint: adapters merge to an adapter or a delta: add a delta to the base"
        )
    if recipe.out_type == "delta":
        method, rank = find_method(recipe.merge_method), recipe.parameters.get("rank")
        if rank not in {None, "sum"} and method.domain and not method.constrained:
            raise RecipeError(
                "parameters.rank: out_type delta writes the whole dW, which has no rank: leave it out"
            )
        if recipe.uniform_rank:
            raise RecipeError(
                "uniform_rank: out_type delta writes the whole dW, which has no rank: leave it out"
            )
        return _delta(AdapterMerge(recipe, {}, None, device, threads, progress), folder, shard_bytes)
    result = merge_recipe(recipe, device=device, threads=threads, round_at_once=True, progress=progress)
    return Written(result.record, max(result.save_pretrained(folder).values()))


def open_model(path: str) -> Adapter | Checkpoint:
    """Open a folder as what it is."""
    return read_checkpoint(path) if is_checkpoint(path) else read_adapter(path)


def made_by(recipe: Recipe, record: RunRecord, opened: Callable[[str], Adapter | Checkpoint]) -> bool:
    """Return whether a run record is of this recipe, and of the models as they are now.

    Args:
        recipe: What would be asked.
        record: Of what is there.
        opened: The models of the recipe by their paths.
    """
    used = counting(recipe)
    models = [opened(recipe.models[place].model) for place in used]
    adapters = [model for model in models if isinstance(model, Adapter)]
    dtype = getattr(torch, recipe.out_dtype) if recipe.out_dtype else None
    if adapters and dtype is None:
        dtype = reduce(torch.promote_types, [adapter.dtype for adapter in adapters])
    kind = (recipe.out_type or "adapter") if adapters else "checkpoint"
    sums = {place: dict(model.sha256) for place, model in zip(used, models, strict=True)}
    return record.recipe == resolved_recipe(recipe, find_method(recipe.merge_method), kind, dtype) and all(
        row.sha256 == sums.get(place) for place, row in enumerate(record.inputs)
    )


def _by_words(listener: Listener) -> Callable[[str, int, int, str], None]:
    """A listener that takes the fields of a progress."""
    return lambda *what: listener(Progress(*what))


def _delta(job: AdapterMerge, folder: str | Path, shard_bytes: int) -> Written:
    # PEFT's flag for layers that store their weight as inputs by outputs.
    turned = any(adapter.config.fan_in_fan_out for adapter in job.adapters)
    with DenseWriter(folder, dtype=job.out_dtype, shard_bytes=shard_bytes) as writer:

        def keep(module: str, update: LowRankUpdate | Tensor) -> None:
            whole = update if isinstance(update, Tensor) else update.dense()
            writer.add(f"{module}.weight", whole.mT if turned else whole)

        record = job.run(keep, dense=True).warned(rounding_warnings(writer.roundings))
        _describe(writer, record)
    return Written(record, max(writer.errors.values()))


def _checkpoint(job: CheckpointMerge, folder: str | Path, shard_bytes: int) -> Written:
    with DenseWriter(folder, shard_bytes=shard_bytes) as writer:

        def keep(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
            writer.add(name, tensor, dtype=dtype if tensor.is_floating_point() else None)

        record = job.run(keep)
        changes = {row.module: row.norm for row in record.modules} if job.base else {}
        record = record.warned(rounding_warnings(writer.roundings))
        record = record.warned(change_warnings(writer.roundings, changes))
        for path in job.carried.other_files:
            if path.name not in {RECORD_FILE, CARD_FILE}:
                writer.add_file(path.name, path)
        _describe(writer, record)
    return Written(record, max(writer.errors.values()))


def _describe(writer: DenseWriter, record: RunRecord) -> None:
    writer.add_file(RECORD_FILE, record.to_json())
    writer.add_file(CARD_FILE, model_card(record))
