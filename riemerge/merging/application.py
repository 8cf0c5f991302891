"""Application: an adapter merged into its base model, and written as a full checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint import DenseWriter, code_notes, patch, read_checkpoint
from riemerge.formats.checkpoint.patched import PatchedCheckpoint
from riemerge.formats.checkpoint.settings import (
    SETTINGS_FILE,
    read_settings,
    take_dtype,
    untie_settings,
    write_settings,
)
from riemerge.formats.checkpoint.tying import is_head
from riemerge.formats.dialects import read_adapter
from riemerge.formats.files.rounding import Rounding, change_warnings, rounding_warnings
from riemerge.formats.files.staging import check_output
from riemerge.formats.files.text import list_names
from riemerge.formats.hub import locate, name_model
from riemerge.formats.layers import Dora, Layer
from riemerge.merging.inputs import check_prefixes
from riemerge.merging.machine import find_dtype
from riemerge.merging.model_class import checkpoint_class
from riemerge.merging.recording import versions
from riemerge.merging.sinks import CARD_FILE, RECORD_FILE, SHARD_BYTES
from riemerge.progress import Listener, Progress
from riemerge.records.difference_record import DifferenceInput, DifferenceModule, DifferenceRecord
from riemerge.report.difference_card import difference_card
from riemerge.updates.low_rank import LowRankUpdate

_ROWS = 1024  # of a weight in float64 at a time


def apply_adapter(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    rename: Mapping[str, str] | None = None,
    out_dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Listener | None = None,
) -> DifferenceRecord:
    """Merge an adapter into its base model, and write the model with its record and a card.

    Law: every tensor is that of PEFT's `merge_and_unload` of the base model loaded in its own dtype, bit for
    bit (see `PatchedCheckpoint`). With `out_dtype` the sum, computed in float32 at least, is rounded to it
    once. The folder appears whole or not at all; all names and shapes are checked before a tensor is read.

    Args:
        base: Folder, file or hub id of the base model, in shards or not.
        adapter: Folder, file or hub id of the adapter.
        folder: The new folder.
        rename: New prefixes of module names by the prefixes that the adapter has.
        out_dtype: The float dtype that is written, such as `bfloat16`; None keeps the dtype of each tensor.
        shard_bytes: Most bytes of a file of tensors.
        progress: Called after each tensor.

    Returns:
        The content of `riemerge.json`.

    Raises:
        AdapterError: The base model or the adapter cannot be read exactly, or they do not fit each other.
        NumericalError: A sum that the dtype cannot hold, or no change that survives the rounding.
        OutputError: The folder exists, overlaps an input, or cannot be written.
        RecipeError: No such dtype, or a prefix that no module has.

    Cost:
        Memory of one tensor in its dtype and in float32.
    """
    wanted = None if out_dtype is None else find_dtype(out_dtype)
    paths = locate(base), locate(adapter)
    check_output(folder, paths)
    model = patch(read_checkpoint(paths[0]), _read_renamed(paths[1], rename or {}))
    rows: list[DifferenceModule] = []
    changes: dict[str, Rounding] = {}
    with DenseWriter(folder, dtype=wanted, shard_bytes=shard_bytes) as writer:
        for done, name in enumerate(model.names, start=1):
            exact = model.exact(name, wanted)
            if name not in model.patches:
                writer.add(name, exact)
            else:
                dtype = wanted or model.dtypes[name]
                writer.add(name, exact, dtype=dtype)
                norm = writer.roundings[name].norm or 1.0
                for row in _measure(model, name, exact.to(dtype)):
                    rows.append(row)
                    changes[row.module] = Rounding(dtype, norm, row.error * row.norm / norm)
            if progress is not None:
                progress(Progress("apply", done, len(model.names), name))
        for path in model.other_files:
            if path.name not in {RECORD_FILE, CARD_FILE, SETTINGS_FILE}:
                writer.add_file(path.name, path)
            elif path.name == SETTINGS_FILE:
                writer.add_file(path.name, _settings(model, path, wanted))
        warnings = [
            *(f"{model.adapter.name}: {note}" for note in model.adapter.notes),
            *_head_notes(model),
            *code_notes(model),
            *rounding_warnings(writer.roundings),
            *change_warnings(changes, {row.module: row.norm for row in rows}),
        ]
        renames = [f"{old}={new}" for old, new in (rename or {}).items()]
        record = DifferenceRecord(
            verb="apply",
            base=DifferenceInput(name=name_model(paths[0]), sha256=dict(model.base.sha256)),
            other=DifferenceInput(name=name_model(paths[1]), sha256=dict(model.adapter.sha256)),
            settings={"rename": renames, "out-dtype": [*filter(None, [out_dtype])]},
            model_class=checkpoint_class(model),
            versions=versions(),
            modules=tuple(rows),
            warnings=tuple(warnings),
        )
        writer.add_file(RECORD_FILE, lambda sums: record.with_outputs(sums).to_json())
        writer.add_file(CARD_FILE, difference_card(record))
    return record.with_outputs(writer.sha256)


def _read_renamed(path: str | os.PathLike[str], prefixes: Mapping[str, str]) -> Adapter:
    """Open an adapter, and give its modules their names in the base model."""
    adapter = read_adapter(path)
    check_prefixes(prefixes, [adapter])
    return adapter.rename(prefixes)


def _settings(model: PatchedCheckpoint, path: Path, wanted: torch.dtype | None) -> Path | bytes:
    """Return what says of the model which dtype and head it has: its file, if that says it already."""
    settings = read_settings(model)
    assert settings is not None
    changed = take_dtype(settings, {wanted or model.dtypes[name] for name in model.modules})
    if model.parts_head:
        changed = untie_settings(changed)
    if changed == settings:
        return path
    return write_settings(changed).encode()


def _head_notes(model: PatchedCheckpoint) -> Iterator[str]:
    """Say by name which tensors the adapter saved whole."""
    rows = {saved for saved, _ in model.tokens.values()}
    saved = [name for name in model.adapter.saved if name not in rows]
    heads = [name for name in model.names if model.parts_head and is_head(name)]
    added = [name for name in saved if name not in model.base.shapes and name not in heads]
    if replaced := [name for name in saved if name in model.base.shapes]:
        yield f"{model.adapter.name}: stands whole in place of the base model's: {list_names(replaced)}"
    if added:
        yield (
            f"{model.adapter.name}: adds tensors that the base model has not: {list_names(added)}: its "
            "config.json says nothing of them: load the class that the adapter was trained in"
        )
    if heads:
        yield (
            f"{model.adapter.name}: {list_names(heads)}, the head of the model, is no longer its embedding: "
            "config.json says so now (tie_word_embeddings false)"
        )
    if model.tokens:
        yield f"{model.adapter.name}: rows of trained tokens stand in {list_names(model.tokens)}"


def _measure(model: PatchedCheckpoint, name: str, merged: Tensor) -> Iterator[DifferenceModule]:
    """Yield the row of each module of a merged tensor.

    Law: in float64, from the factors: the sum in float32 may have lost something before it was rounded.
    """
    weight = model.base.tensor(name, dtype=None)
    for module in model.patches[name]:
        update, layer = model.adapter.update(module), model.adapter.layers[module]
        before, after = layer.view(weight), layer.view(merged)
        norm = lost = 0.0
        for first in range(0, update.shape[0], _ROWS):
            rows = slice(first, first + _ROWS)
            change = _rows_of(layer, update, rows)
            norm = math.hypot(norm, float(torch.linalg.vector_norm(change)))
            apart = change.add_(before[rows]).sub_(after[rows])
            lost = math.hypot(lost, float(torch.linalg.vector_norm(apart)))
        yield DifferenceModule(
            module=module, shape=update.shape, rank=update.rank, norm=norm, error=lost / (norm or 1.0)
        )


def _rows_of(layer: Layer, update: LowRankUpdate, rows: slice) -> Tensor:
    """Return rows of dW in float64."""
    if isinstance(layer, Dora):
        # One of its factors is dW and the other a unit matrix, with which a product takes long.
        return max((update.B, update.A), key=Tensor.numel)[rows].clone()
    return LowRankUpdate(update.B[rows], update.A, update.scale).dense()
