"""Updates as a PEFT LoRA folder that appears whole or not at all."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import save

from riemerge.errors import NumericalError
from riemerge.formats.adapter import Adapter
from riemerge.formats.files.rounding import Rounding, check_rounding, why_too_large
from riemerge.formats.files.staging import NewFolder, Text, check_output, check_read_back
from riemerge.formats.files.text import as_json, show
from riemerge.formats.peft.adapter_reader import CONFIG_FILE, TENSOR_FILE, read_peft
from riemerge.formats.peft.written_scales import scale_settings
from riemerge.updates.low_rank import LowRankUpdate

# PEFT adds the head of these tasks to `modules_to_save`, and does not load a file without it.
_TASKS_WITH_A_HEAD = {"QUESTION_ANS", "SEQ_CLS", "TOKEN_CLS"}


def write_peft(
    folder: str | os.PathLike[str],
    updates: Mapping[str, LowRankUpdate],
    *,
    like: Sequence[Adapter] = (),
    dtype: torch.dtype = torch.float32,
    rounding: Mapping[str, Rounding] | None = None,
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
        like: The adapters that were merged; what they agree in (base model, `fan_in_fan_out`, task type) is
            carried on, but for tasks whose head PEFT expects in the file: heads are not written.
        dtype: The dtype of the stored factors.
        rounding: What `round_update` did to each update, if it made them: they are then written as they are.
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
    stored = dict(sorted(updates.items()))
    factors = {
        f"base_model.model.{module}.lora_{side}.weight": factor.contiguous()
        for module, update in stored.items()
        for side, factor in (("A", update.A), ("B", update.B))
    }
    config = _config(stored, like)
    with closing(NewFolder(folder)) as new:
        new.write(TENSOR_FILE, save(factors, metadata={"format": "pt"}))
        new.write(CONFIG_FILE, as_json(config))
        for name, text in (extra_files or {}).items():
            new.add(name, text)
        new.publish(partial(_check_written, stored))
    return {module: rounding[module].error for module in sorted(rounding)}


def round_update(update: LowRankUpdate, dtype: torch.dtype) -> tuple[LowRankUpdate, Rounding]:
    """Round an update in its canonical gauge (see `LowRankUpdate.balance`) to the dtype that is stored.

    Law: the error is that of the rounding, to about six digits, from one product of the factors a side. What
    is rounded away is E = δB A + (B + δB) δA, whose terms do not cancel, so Gram matrices lose nothing here.

    Returns:
        The update with scale 1 in `dtype` on the CPU, and what the rounding did to it.

    Raises:
        NumericalError: The factors are not finite, or not in `dtype`; the text does not name the module.
    """
    exact = update.absorb_scale().to(torch.float64)
    largest = float(torch.maximum(exact.B.abs().max(), exact.A.abs().max()))
    unit = largest or 1.0  # factors of size 1 have squares that do not underflow
    left, right = exact.B / unit, exact.A.mT / unit
    square = max(float(((left.mT @ left) * (right.mT @ right)).sum()), 0.0)
    norm = largest * largest * math.sqrt(square)
    if not math.isfinite(norm):
        raise NumericalError("the update holds NaN or Inf, or its norm overflows")
    rounded = exact.to(dtype)
    if not (torch.isfinite(rounded.B).all() and torch.isfinite(rounded.A).all()):
        raise NumericalError(f"the factors reach {why_too_large(largest, dtype)}")
    near_left, near_right = rounded.B.to(torch.float64) / unit, rounded.A.to(torch.float64).mT / unit
    lefts = torch.cat([near_left - left, near_left], dim=1)
    rights = torch.cat([right, near_right - right], dim=1)
    error = float(((lefts.mT @ lefts) * (rights.mT @ rights)).sum())
    relative = math.sqrt(max(error, 0.0) / (square or math.inf))  # 0 for a zero update
    return rounded.to(device="cpu"), Rounding(dtype, norm, relative)


@final
class RoundedUpdates:
    """Updates in the dtype in which they are written, rounded one at a time, all faults at once.

    Attributes:
        updates: The rounded updates by module, with scale 1, on the CPU.
        roundings: What the rounding did to each update, by module.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._problems: list[str] = []
        self.updates: dict[str, LowRankUpdate] = {}
        self.roundings: dict[str, Rounding] = {}

    def add(self, module: str, update: LowRankUpdate) -> None:
        """Round one update, given in its canonical gauge."""
        try:
            self.updates[module], self.roundings[module] = round_update(update, self._dtype)
        except NumericalError as fault:
            self._problems += [f"{show(module)}: {problem}" for problem in fault.problems]

    def check(self) -> None:
        """Raise what went wrong, if anything did.

        Raises:
            NumericalError: An update was refused, or is rounded to nearly nothing; all of them are named.
        """
        NumericalError.refuse(self._problems)
        check_rounding(self.roundings)


def round_all(updates: Mapping[str, LowRankUpdate], dtype: torch.dtype) -> RoundedUpdates:
    """Round updates in their canonical gauges.

    Raises:
        NumericalError: What `RoundedUpdates.check` raises.
    """
    rounded = RoundedUpdates(dtype)
    for module, update in sorted(updates.items()):
        rounded.add(module, _balance(update))
    rounded.check()
    return rounded


def _balance(update: LowRankUpdate) -> LowRankUpdate:
    """Return the update in its canonical gauge; one that holds NaN or Inf has none, and is refused later."""
    exact = update.to(torch.float64)
    if not math.isfinite(exact.norm()):
        return exact
    return exact.balance()


def _config(updates: Mapping[str, LowRankUpdate], like: Sequence[Adapter]) -> dict[str, Any]:
    configs = [adapter.config for adapter in like]
    bases = [config.base_model_name_or_path for config in configs]
    task = _common([config.task_type for config in configs])
    if task in _TASKS_WITH_A_HEAD:
        task = None
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": _common([base for base in bases if base is not None]),
        "revision": _common([config.revision for config in configs]),
        "task_type": task,
        "auto_mapping": _common([config.auto_mapping for config in configs]),
        "inference_mode": True,
        **scale_settings(updates),
        "use_rslora": False,
        "target_modules": sorted(updates),
        "fan_in_fan_out": bool(_common([config.fan_in_fan_out for config in configs])),
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _common(values: Sequence[Any]) -> Any:
    """Return the value that all have, or None."""
    return values[0] if values and all(value == values[0] for value in values) else None


def _check_written(stored: Mapping[str, LowRankUpdate], folder: Path) -> None:
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

    check_read_back(differing())
