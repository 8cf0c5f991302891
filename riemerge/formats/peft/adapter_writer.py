"""Updates as a PEFT LoRA folder that appears whole or not at all."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from riemerge.formats.adapter import Adapter, kinds_of
from riemerge.formats.files.rounding import Rounding
from riemerge.formats.files.staging import NewFolder, Text, check_output, check_read_back
from riemerge.formats.files.text import as_json
from riemerge.formats.peft.adapter_reader import CONFIG_FILE, TENSOR_FILE, read_peft
from riemerge.formats.peft.saved import describe_saved, name_saved
from riemerge.formats.peft.stored_factors import complete, describe, name_tensors
from riemerge.formats.rounded_updates import round_all
from riemerge.updates.low_rank import LowRankUpdate

# PEFT adds the head of these tasks to `modules_to_save`, by these names, and loads no file without it.
_HEADS = {
    "QUESTION_ANS": {"qa_outputs"},
    "SEQ_CLS": {"classifier", "score"},
    "TOKEN_CLS": {"classifier", "score"},
}


def write_peft(
    folder: str | os.PathLike[str],
    updates: Mapping[str, LowRankUpdate],
    *,
    like: Sequence[Adapter] = (),
    dtype: torch.dtype = torch.float32,
    rounding: Mapping[str, Rounding] | None = None,
    saved: Mapping[str, Tensor] | None = None,
    saved_from: Mapping[str, Sequence[Adapter]] = MappingProxyType({}),
    extra_files: Mapping[str, Text] | None = None,
) -> dict[str, float]:
    """Write updates as a PEFT adapter, all or nothing.

    Law: `PeftModel.from_pretrained` loads the folder, and dW of every module is the given one to the returned
    error. All scales are 1 (`lora_alpha` = `r`, patterns only for modules of another rank, anchored to their
    full names); the factors are balanced (√ of the singular values on each side, canonical gauge) before they
    are rounded. The files are written and synced beside the target, read back and compared, and the folder is
    then given its name by one rename; whatever happens earlier leaves nothing behind.

    Args:
        folder: The new folder; it must not exist, its parent must.
        updates: The updates by module, named as in the base model.
        like: The adapters that were merged; each module is written as the kind of layer that it is in the
            first that has it, a linear layer where none does. What they agree in (base model,
            `fan_in_fan_out`, task type) is carried on, but for tasks whose head PEFT expects in the file
            where no head is saved.
        dtype: The dtype of the stored factors.
        rounding: What `round_update` did to each update, if it made them: they are then written as they are.
        saved: Whole tensors to lie beside the factors (heads, biases, trained tokens), by their names in the
            base model.
        saved_from: The adapters that each whole tensor comes from, whose settings it is loaded with, by its
            name; those of `like` that have it where none are named.
        extra_files: Texts to lie beside the adapter, by file name, or functions that make them from the
            sha256 of the adapter's own two files.

    Returns:
        For each module the error of the rounding to `dtype`, ‖stored − given‖ / ‖given‖ (0 for a zero
        update).

    Raises:
        NumericalError: Factors that are not finite, not in `dtype`, or that it rounds to nearly nothing (see
            `riemerge.formats.files.rounding`); all such modules are named.
        OutputError: The folder exists, cannot be written, or does not read back as it was written.
        ValueError: No update, or a name in `extra_files` that is not a plain file name of its own.
    """
    if not updates:
        raise ValueError("no update to write")
    check_output(folder, [])
    if rounding is None:
        rounded = round_all(updates, dtype)
        updates, rounding = rounded.updates, rounded.roundings
    stored, kinds = complete(updates, kinds_of(like))
    whole, stems = saved or {}, {kind.stem(module) for module, kind in kinds.items()}
    sources = {name: saved_from.get(name) or [one for one in like if name in one.saved] for name in whole}
    config = _config(describe(stored, kinds), sources, like)
    tensors = {**name_tensors(stored, kinds), **name_saved(whole, stems)}
    with closing(NewFolder(folder)) as new:
        new.write(TENSOR_FILE, save(tensors, metadata={"format": "pt"}))
        new.write(CONFIG_FILE, as_json(config))
        for name, text in (extra_files or {}).items():
            new.add(name, text)
        new.publish(partial(_check_written, stored, whole))
    return {module: rounding[module].error for module in sorted(rounding)}


def _config(
    factors: Mapping[str, Any], saved: Mapping[str, Sequence[Adapter]], like: Sequence[Adapter]
) -> dict[str, Any]:
    configs = [adapter.config for adapter in like]
    bases = [config.base_model_name_or_path for config in configs]
    task = _common([config.task_type for config in configs])
    if (heads := _HEADS.get(str(task))) and not any(heads & {*name.split(".")} for name in saved):
        task = None
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": _common([base for base in bases if base is not None]),
        "revision": _common([config.revision for config in configs]),
        "task_type": task,
        "auto_mapping": _common([config.auto_mapping for config in configs]),
        "inference_mode": True,
        **factors,
        "fan_in_fan_out": bool(_common([config.fan_in_fan_out for config in configs])),
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        **describe_saved({name: [one.config for one in own] for name, own in saved.items()}),
    }


def _common(values: Sequence[Any]) -> Any:
    """Return the value that all have, or None."""
    return values[0] if values and all(value == values[0] for value in values) else None


def _check_written(stored: Mapping[str, LowRankUpdate], saved: Mapping[str, Tensor], folder: Path) -> None:
    """Read the folder as a user would and compare it, bit for bit, with what was to be written."""

    def differing() -> Iterator[str]:
        adapter = read_peft(folder)
        yield from sorted({*adapter.modules} ^ {*stored})
        for module, update in stored.items():
            read = adapter.update(module, dtype=adapter.dtype)
            # A scale is alpha / r, and not every float64 is.
            same = read.dtype == update.dtype and math.isclose(read.scale, update.scale, rel_tol=1e-15)
            if not (same and torch.equal(read.B, update.B) and torch.equal(read.A, update.A)):
                yield module
        yield from sorted({*adapter.saved} ^ {*saved})
        for name, tensor in saved.items():
            if not torch.equal(adapter.tensor(name), tensor.cpu()):
                yield name

    check_read_back(differing())
