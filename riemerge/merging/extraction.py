"""Extraction: what a fine-tuned model changed of its base, as the nearest LoRA adapter."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from riemerge.errors import AdapterError, RecipeError, try_each
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint import Checkpoint, read_checkpoint
from riemerge.formats.checkpoint.tying import is_embedding, is_tied
from riemerge.formats.dialects import read_adapter, write_adapter
from riemerge.formats.files.rounding import rounding_warnings
from riemerge.formats.files.staging import Text, check_output
from riemerge.formats.files.tensor_file import TensorFile
from riemerge.formats.files.text import list_names, show
from riemerge.formats.fit import check_checkpoints
from riemerge.formats.hub import locate, name_model
from riemerge.formats.layers import Embedding
from riemerge.formats.peft.config import AdapterConfig
from riemerge.formats.rounded_updates import RoundedUpdates
from riemerge.merging.machine import find_device, find_dtype
from riemerge.merging.model_class import base_model, checkpoint_class, model_type
from riemerge.merging.plan import WEIGHT
from riemerge.merging.recording import versions
from riemerge.merging.sinks import CARD_FILE, RECORD_FILE
from riemerge.methods.parameters import energy_of
from riemerge.progress import Listener, Progress
from riemerge.records.difference_record import DifferenceInput, DifferenceModule, DifferenceRecord
from riemerge.report.difference_card import difference_card
from riemerge.updates.low_rank import LowRankUpdate
from riemerge.updates.truncation import least_rank, nearest

# The last part of a module's name, where models of transformers have a row for each token or position.
_EMBEDDING = re.compile(r"(?!embed_out$).*embed.*|wte|wpe|shared|relative_attention_bias")
_HEAD = re.compile(r"lm_head|embed_out")

# Models whose layers of these names store weights as inputs by outputs (transformers' Conv1D).
_INPUT_MAJOR_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_INPUT_MAJOR_LAYERS = {"c_attn", "c_fc", "c_proj", "q_attn"}


def extract_adapter(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    rank: int | str,
    modules: Collection[str] = ("linear",),
    others: str = "error",
    base_name: str | None = None,
    out_dtype: str | None = None,
    device: str = "cpu",
    progress: Listener | None = None,
) -> DifferenceRecord:
    """Write what a fine-tuned model changed of its base as a LoRA adapter, with its record and a card.

    Law: in every module B @ A is the nearest matrix of its rank to the difference of the weights, in float64,
    before the factors are rounded (see `nearest`); modules that are equal are left out. So `apply_adapter`
    gives the fine-tuned weights back but for the energy that was dropped and the rounding. The folder appears
    whole or not at all, and `PeftModel.from_pretrained` loads it.

    Args:
        base: Folder, file or hub id of the base model.
        tuned: Folder, file or hub id of the fine-tuned model, with the tensors of the base model.
        folder: The new folder.
        rank: The rank of every module, or a share such as `95%`: in each module the least rank that keeps so
            much of the squared norm.
        modules: Modules to extract: `linear` (all matrices but embeddings and output layers), `all`
            matrices, or ends of names.
        others: What becomes of tensors that differ but are not extracted: `error`, or `drop` with a warning.
        base_name: The base model that the adapter names [default: its hub id, or the name of its folder].
        out_dtype: The float dtype of the factors [default: that of the fine-tuned weights].
        device: Where to compute: `cpu`, `cuda`, `cuda:N` or `auto`.
        progress: Called after each tensor.

    Returns:
        The content of `riemerge.json`.

    Raises:
        AdapterError: A model cannot be read exactly, they do not fit each other, other tensors differ, or
            nothing does.
        NumericalError: Factors that are not in the dtype.
        OutputError: The folder exists, overlaps an input, or cannot be written.
        RecipeError: No such rank, module, dtype or device.

    Cost:
        Memory of three copies of the largest matrix in float64.
    """
    wanted, where = _read_rank(rank), find_device(device)
    if others not in {"error", "drop"}:
        raise RecipeError(f"others: {others!r}: expected error or drop")
    paths = [locate(base), locate(tuned)]
    check_output(folder, paths)
    _check_twice(*paths)
    before, after = try_each(read_checkpoint, paths)
    _check_vocabularies(before, after)
    check_checkpoints([before, after])
    names = _choose(before, modules)
    warnings: list[str] = []
    if dropped := _measure_others(before, after, names):
        sizes = f"{len(dropped)} tensors that are not extracted differ from {before.name}: {_list(dropped)}"
        if others == "error":
            raise AdapterError(
                f"{after.path}: {sizes}: --others drop leaves them out; --modules names more matrices"
            )
        warnings.append(f"{after.name}: {sizes}: the adapter leaves them as they are in {before.name}")
    dtype = reduce(torch.promote_types, (after.dtypes[name] for name in names))
    if out_dtype is not None:
        dtype = find_dtype(out_dtype)
    turned, rounded = _input_major(before, names), RoundedUpdates(dtype)
    rows: dict[str, DifferenceModule] = {}
    for done, name in enumerate(names, start=1):
        difference = after.tensor(name, device=where).sub_(before.tensor(name, device=where))
        if difference.any():
            if name in turned or _is_embedding(name):
                difference = difference.mT
            module = name.removesuffix(WEIGHT)
            update, rows[module] = _cut(module, difference, wanted)
            rounded.add(module, update)
        if progress is not None:
            progress(Progress("extract", done, len(names), name))
    if not rows:
        raise AdapterError(
            f"{after.path}: equals {before.path} in all {len(names)} modules: nothing to extract"
        )
    rounded.check()
    warnings += _tied_notes(before, rows)
    settings = {
        "rank": [str(rank)],
        "modules": [",".join(modules)],
        "others": [others],
        "base-name": [*filter(None, [base_name])],
        "out-dtype": [*filter(None, [out_dtype])],
    }
    record = DifferenceRecord(
        verb="extract",
        base=DifferenceInput(name=name_model(paths[0]), sha256=dict(before.sha256)),
        other=DifferenceInput(name=name_model(paths[1]), sha256=dict(after.sha256)),
        settings=settings,
        model_class=checkpoint_class(before),
        versions=versions(),
        # What the rank drops is orthogonal to what the rounding moves, but for the square of the latter.
        modules=tuple(
            row.model_copy(update={"error": math.hypot(row.error, rounded.roundings[module].error)})
            for module, row in rows.items()
        ),
        warnings=(*warnings, *rounding_warnings(rounded.roundings)),
    )
    said: dict[str, Text] = {
        RECORD_FILE: lambda sums: record.with_outputs(sums).to_json(),
        CARD_FILE: difference_card(record),
    }
    like = _template(before, after, rows, bool(turned), base_name)
    write_adapter(
        folder, rounded.updates, like=[like], dtype=dtype, rounding=rounded.roundings, extra_files=said
    )
    return record.with_outputs(read_adapter(folder).sha256)


def _read_rank(rank: int | str) -> int | float:
    """Return a rank as a number, or as the share of the squared norm that it keeps.

    Raises:
        RecipeError: Neither.
    """
    share = energy_of(str(rank))
    if share is not None:
        return share
    if not re.fullmatch(r"[1-9]\d*", str(rank)):
        raise RecipeError(f"rank: {rank!r}: expected a whole number of 1 or more, or a share such as 95%")
    return int(rank)


def _check_twice(base: Path, tuned: Path) -> None:
    if base.resolve() == tuned.resolve():
        raise AdapterError(
            f"{base}: is given as the base model and as the fine-tuned model: nothing differs: give the "
            "fine-tuned model second"
        )


def _tied_notes(before: Checkpoint, modules: Collection[str]) -> Iterator[str]:
    """Say which of the modules are the output layer as well."""
    shared = [module for module in modules if is_embedding(f"{module}{WEIGHT}")]
    if shared and is_tied(before):
        yield (
            f"{list_names(shared)}: is the output layer of {before.name} as well (tie_word_embeddings), "
            "which PEFT leaves as it was while the adapter is not merged: riemerge apply, and PEFT's "
            "merge_and_unload, change both"
        )


def _check_vocabularies(before: Checkpoint, after: Checkpoint) -> None:
    """Refuse embeddings of different numbers of tokens, with both shapes."""
    AdapterError.refuse(
        f"{show(name)}: is {_size(before.shapes[name])} in {before.path} and {_size(after.shapes[name])} in "
        f"{after.path}: the vocabularies differ, and an adapter adds no tokens: give the fine-tuned model "
        "the vocabulary of its base first"
        for name in before.names
        if _is_embedding(name) or _is_head(name)
        if after.shapes.get(name, before.shapes[name]) != before.shapes[name]
    )


def _choose(before: Checkpoint, asked: Collection[str]) -> list[str]:
    """Return the names of the weights to extract.

    Raises:
        RecipeError: A name that no matrix has.
    """
    matrices = [name for name in before.modules if name.endswith(WEIGHT) and len(before.shapes[name]) == 2]
    linear = {name for name in matrices if not _is_embedding(name) and not _is_head(name)}
    chosen, problems = set[str](), []
    for word in asked:
        own = {name for name in matrices if f".{name}".endswith(f".{word}{WEIGHT}")}
        if word == "linear":
            own = linear
        if word == "all":
            own = {*matrices}
        if not own:
            problems.append(f"modules: {show(word)}: {before.path} has no matrix of this name")
        chosen |= own
    RecipeError.refuse(problems)
    return sorted(chosen)


def _measure_others(before: Checkpoint, after: Checkpoint, names: Collection[str]) -> dict[str, float]:
    """Return ‖after − before‖ / ‖before‖ of each tensor that differs and is not among the names."""
    sizes = {}
    for name in sorted({*before.names}.difference(names)):
        first, second = before.tensor(name, dtype=None), after.tensor(name, dtype=None)
        if not torch.equal(first, second):
            first, second = first.to(torch.float64), second.to(torch.float64)
            norm = float(torch.linalg.vector_norm(first))
            sizes[name] = float(torch.linalg.vector_norm(second - first)) / (norm or 1.0)
    return sizes


def _list(sizes: Mapping[str, float]) -> str:
    """Return the names of what changed most, each with the size of the change beside the whole."""
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))
    return list_names(f"{show(name)} by {sizes[name]:.2g} of its norm" for name in largest)


def _cut(module: str, difference: Tensor, wanted: int | float) -> tuple[LowRankUpdate, DifferenceModule]:
    """Return the nearest update of the wanted rank, or of the least that keeps a share, and its row."""
    rank = wanted
    if isinstance(rank, float):
        rank = least_rank(difference, rank)
    update, kept = nearest(difference, rank)
    if isinstance(wanted, int):
        update = update.pad(wanted)
    norm = float(torch.linalg.vector_norm(difference))
    row = DifferenceModule(
        module=module,
        shape=tuple(difference.shape),
        rank=update.rank,
        norm=norm,
        # Not √(1 - kept), which is 1e-8 where nothing was dropped.
        error=float(torch.linalg.vector_norm(difference - update.dense())) / norm,
        energy_kept=kept,
    )
    return update, row


def _template(
    before: Checkpoint, after: Checkpoint, modules: Collection[str], turned: bool, base_name: str | None
) -> Adapter:
    """Return an adapter without updates, which has what the written one says of its base model.

    Args:
        before: The base model.
        after: The fine-tuned model.
        modules: The names of the modules that are written.
        turned: Whether the base model stores linear layers as inputs by outputs.
        base_name: The base model that the adapter names; None for what the base model is called.
    """
    tasks = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}
    model = checkpoint_class(before)
    config = {
        "base_model_name_or_path": base_name or base_model([str(before.path.absolute())]),
        "fan_in_fan_out": turned,
        "task_type": next((task for end, task in tasks.items() if model.endswith(end)), None),
    }
    return Adapter(
        path=after.path,
        dialect="peft",
        config=AdapterConfig.model_validate(config),
        layers={module: Embedding({}, 1.0) for module in modules if _is_embedding(module)},
        saved={},
        base_weights={},
        _tensors=TensorFile(after.path, {}, ()),
        _settings_sha256={},
    )


def _input_major(before: Checkpoint, names: Collection[str]) -> frozenset[str]:
    """Return the names of the weights that a model stores as inputs by outputs, as its settings say."""
    if model_type(before) not in _INPUT_MAJOR_MODELS:
        return frozenset()
    return frozenset(name for name in names if _last(name) in _INPUT_MAJOR_LAYERS)


def _is_embedding(name: str) -> bool:
    return _EMBEDDING.fullmatch(_last(name)) is not None


def _is_head(name: str) -> bool:
    return _HEAD.fullmatch(_last(name)) is not None


def _last(name: str) -> str:
    """Return the last part of the name of the module that a weight belongs to."""
    return name.removesuffix(WEIGHT).rpartition(".")[2]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
