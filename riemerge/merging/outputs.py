"""Outputs: a recipe merged into a folder, whatever its inputs are and whatever is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial, reduce
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from pydantic import ValidationError
from torch import Tensor

from riemerge._version import __version__
from riemerge.errors import RecipeError
from riemerge.formats.checkpoint import Checkpoint, DenseWriter, read_checkpoint
from riemerge.formats.files.rounding import change_warnings, rounding_warnings
from riemerge.formats.files.staging import check_output, file_sha256
from riemerge.formats.kinds import is_checkpoint
from riemerge.formats.peft import Adapter, read_adapter
from riemerge.merging.bookkeeping import read_beside, resolved_recipe
from riemerge.merging.dense import CheckpointMerge
from riemerge.merging.inputs import counting, expanded, read_each
from riemerge.merging.merge import CARD_FILE, RECORD_FILE, AdapterMerge
from riemerge.merging.progress import Listener, Progress
from riemerge.methods import find_method
from riemerge.recipes.recipe import Recipe
from riemerge.records.run_record import RunRecord
from riemerge.report.card import model_card
from riemerge.updates.low_rank import LowRankUpdate


class Written(NamedTuple):
    """What was done, and the largest relative error of rounding a tensor to the dtype that was written."""

    record: RunRecord
    rounding: float


Models: TypeAlias = Mapping[Path, Adapter | Checkpoint]
"""Models that are open, by path: what is read of them later is what was checked, or an error."""


def merge_into(
    recipe: Recipe,
    folder: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    shard_bytes: int = 5_000_000_000,
    progress: Listener | None = None,
    opened: Models | None = None,
) -> Written:
    """Merge what a recipe asks for, and write it with its record and a card.

    Law: the folder appears whole or not at all. Adapters merge to an adapter, or with `out_type: delta` to
    the whole dW of each module as `module.weight`, to be added to the base model; full checkpoints to a
    checkpoint of the same names, with the files that lie beside the base model, or the first. The record has
    the sha256 of every file that is written beside it and the card.

    Args:
        recipe: What to merge, and how.
        folder: The new folder.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: How many work at once.
        shard_bytes: Most bytes of a file of tensors, for what is not an adapter.
        progress: Called now and then.
        opened: Models of the recipe that are open already.

    Raises:
        RiemergeError: As `merge_adapters`, and OutputError where the folder cannot be written.
    """
    recipe = expanded(recipe)
    check_output(folder, folders_of(recipe))
    job = _job(recipe, opened or {}, device, threads, progress)
    if isinstance(job, CheckpointMerge):
        return _checkpoint(job, folder, shard_bytes)
    if recipe.out_type == "delta":
        return _delta(job, folder, shard_bytes)
    result = job.result(round_at_once=True)
    rounding = max(result.save_pretrained(folder).values())
    return Written(result.record.with_outputs(read_adapter(folder).sha256), rounding)


def folders_of(recipe: Recipe) -> list[str]:
    """Return the folders of models that a recipe reads, which no output may touch."""
    return [*(entry.model for entry in recipe.models), *filter(None, [recipe.base_model])]


def check_together(
    whole: Recipe, parts: Iterable[Recipe], *, device: str = "cpu", threads: int | None = None
) -> Models:
    """Check before any work that all models of a recipe fit each other, and that parts of it can be merged.

    Args:
        whole: A recipe in which every model counts.
        parts: The same with other weights, some of them 0, or another method.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: How many work at once.

    Returns:
        The models, and the base model if the recipe has one.

    Raises:
        RiemergeError: As `merge_into` before it computes.
    """
    job = _job(expanded(whole), {}, device, threads, None)
    models = job.adapters if isinstance(job, AdapterMerge) else (*job.checkpoints, job.base)
    opened = {model.path: model for model in models if model is not None}
    # Problems that no merge computes depend on which models count, and not on how much.
    for part in {tuple(weight != 0 for weight in part.weights): part for part in parts}.values():
        _job(expanded(part), opened, device, threads, None)
    return opened


def _job(
    recipe: Recipe, opened: Models, device: str, threads: int | None, progress: Listener | None
) -> AdapterMerge | CheckpointMerge:
    """A merge of whatever the recipe names, checked and opened."""
    paths = [entry.model for entry in recipe.models]
    # One that is not there is refused by the reader of the others.
    kinds = {is_checkpoint(path) for path in paths if os.path.lexists(path)}
    if kinds != {True} and (True in kinds or recipe.base_model or recipe.out_type == "checkpoint"):
        # First what is wrong with a path, which may not be of the kind that it seems to be.
        read_each(partial(_open_model, opened), [paths[place] for place in counting(recipe)])
    if len(kinds) > 1:
        named = ", ".join(path for path in paths if is_checkpoint(path))
        raise RecipeError(
            f"models: {named}: full checkpoints, the others are adapters: merge one kind at a time"
        )
    if kinds == {True}:
        known = {path: model for path, model in opened.items() if isinstance(model, Checkpoint)}
        return CheckpointMerge(recipe, device, threads, progress and _by_words(progress), known)
    if recipe.base_model:
        raise RecipeError("base_model: the base model is not needed to merge adapters: leave it out")
    if recipe.out_type == "checkpoint":
        raise RecipeError(
            "out_type: checkpoint: adapters merge to an adapter or a delta: add a delta to the base"
        )
    if recipe.out_type == "delta":
        method, rank = find_method(recipe.merge_method), recipe.parameters.get("rank")
        if rank not in {None, "sum"} and not (method.truncates_inputs or method.constrained):
            raise RecipeError(
                "parameters.rank: out_type delta writes the whole dW, which has no rank: leave it out"
            )
        if recipe.uniform_rank:
            raise RecipeError(
                "uniform_rank: out_type delta writes the whole dW, which has no rank: leave it out"
            )
    there = {place: opened.get(Path(path)) for place, path in enumerate(paths)}
    adapters = {place: one for place, one in there.items() if isinstance(one, Adapter)}
    return AdapterMerge(recipe, adapters, None, device, threads, progress)


def _open_model(opened: Models, path: str) -> Adapter | Checkpoint:
    """Open a folder as what it is."""
    known = opened.get(Path(path))
    return known or (read_checkpoint(path) if is_checkpoint(path) else read_adapter(path))


# --- what was written before --------------------------------------------------------------------------------


def read_record(folder: Path) -> RunRecord | None:
    """Return the run record in a folder; None where there is none."""
    with suppress(OSError, ValidationError):
        return RunRecord.model_validate_json((folder / RECORD_FILE).read_bytes())
    return None


def made_by(recipe: Recipe, record: RunRecord, opened: Models) -> bool:
    """Return whether a run record is of this recipe, and of all that it reads as it is now.

    Args:
        recipe: What would be asked.
        record: The run record in the folder that is there already.
        opened: The models of the recipe, and its base model.
    """
    used = counting(recipe)
    models = [opened[Path(recipe.models[place].model)] for place in used]
    adapters = [model for model in models if isinstance(model, Adapter)]
    dtype = getattr(torch, recipe.out_dtype) if recipe.out_dtype else None
    if adapters and dtype is None:
        dtype = reduce(torch.promote_types, [adapter.dtype for adapter in adapters])
    kind = (recipe.out_type or "adapter") if adapters else "checkpoint"
    sums = {place: dict(model.sha256) for place, model in zip(used, models, strict=True)}
    base = opened.get(Path(recipe.base_model)) if recipe.base_model else None
    like = base or models[0]
    copied = like.other_files if record.outputs and isinstance(like, Checkpoint) else ()
    return (
        record.recipe == resolved_recipe(recipe, find_method(recipe.merge_method), kind, dtype)
        and all(row.sha256 == sums.get(place) for place, row in enumerate(record.inputs))
        and record.beside == read_beside(recipe, base if isinstance(base, Checkpoint) else None)
        and all(record.outputs.get(path.name) == file_sha256(path) for path in copied)
    )


def why_not_as_written(folder: Path, record: RunRecord) -> str | None:
    """Return why what is in a folder is not what this version wrote with its record; None where it is.

    Law: files of other kinds may have come to it; a file of tensors may not, since it could be loaded.
    """
    if (version := record.versions.get("riemerge")) != __version__:
        return f"it was made by riemerge {version}, and this is {__version__}"
    if not record.outputs:
        return f"{RECORD_FILE} has no sha256 of the files"
    for name, expected in record.outputs.items():
        try:
            if file_sha256(folder / name) != expected:
                return f"{name} is not the file that was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    added = sorted({path.name for path in folder.glob("*.safetensors*")} - {*record.outputs})
    return f"{added[0]} was added" if added else None


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
    return Written(record.with_outputs(writer.sha256), max(writer.errors.values()))


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
    return Written(record.with_outputs(writer.sha256), max(writer.errors.values()))


def _describe(writer: DenseWriter, record: RunRecord) -> None:
    writer.add_file(RECORD_FILE, lambda sums: record.with_outputs(sums).to_json())
    writer.add_file(CARD_FILE, model_card(record))
