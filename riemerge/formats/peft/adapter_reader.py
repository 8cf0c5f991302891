"""The reader of PEFT LoRA folders: all that settings and headers tell is checked as a folder is opened."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Collection
from pathlib import Path
from types import MappingProxyType

from riemerge.errors import AdapterError
from riemerge.formats import kinds
from riemerge.formats.adapter import Adapter
from riemerge.formats.files.tensor_file import TensorFile, open_tensors, read_start, reading
from riemerge.formats.files.text import MAX_NAME, can_be_shown, list_names, show
from riemerge.formats.hub import advise
from riemerge.formats.layers import Expert, Layer
from riemerge.formats.peft.config import AdapterConfig, parse_config
from riemerge.formats.peft.saved import Saved, find_saved
from riemerge.formats.peft.stored_factors import find_factors, is_factor, make_layers

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"

# What is no part of an adapter in PEFT's files, by name: the first pattern found decides. Other tensors that
# are no factors are whole ones (see `riemerge.formats.peft.saved`).
_OTHER_TENSORS = (
    (r"dora_scale", "DoRA magnitudes of kohya; not supported in PEFT's files"),
    (r"\.lora_A(\.\w+)?\.bias$", "bias vectors of lora_A, which PEFT does not have; not supported"),
    (r"lora_diag", "KaSA diagonals; not supported"),
    (r"lora_(down|up|mid|unet|te\d?)|\.alpha$", "kohya or diffusers keys; convert them to PEFT's format"),
    (r"\.lora_[AB]\.\w+\.weight$", "factors of an adapter not called default; save it again with PEFT"),
    (r"(^|[._])(lora_|hada_|lokr_|oft_|vera_|ia3_)", "factors of another method; not supported"),
)


def read_peft(path: str | os.PathLike[str]) -> Adapter:
    """Open a PEFT LoRA folder and check all that its settings and the header of its tensors can tell.

    Law: an adapter that opens is read exactly; any setting or tensor that would not enter dW = s·B·A is
    refused by name. Only `adapter_config.json` and `adapter_model.safetensors` are opened; nothing is
    executed, nothing is downloaded. The values are checked when they are read (`Adapter.update`).

    Args:
        path: The folder of the adapter.

    Raises:
        AdapterError: With every problem found in the folder.

    Source: the format as PEFT 0.21.2 writes it.
    """
    folder = Path(path)
    with reading(folder):
        _check_folder(folder)
    config, content = None, b""
    try:
        content = read_start(folder / CONFIG_FILE)
        config, faults = parse_config(content)
    except ValueError as error:
        faults = [f"{error}; it says the scale of dW, and lies where the adapter was saved"]
    problems = [f"{folder / CONFIG_FILE}: {fault}" for fault in faults]
    try:
        tensors = _open_tensors(folder / TENSOR_FILE)
    except ValueError as error:
        raise AdapterError([*problems, f"{folder / TENSOR_FILE}: {error}"]) from error
    layers, saved, faults = _read_layers(tensors, config)
    problems += [f"{folder}: {fault}" for fault in faults]
    if config is None:
        raise AdapterError(problems)
    AdapterError.refuse(problems)
    return Adapter(
        path=folder,
        dialect="peft",
        config=config,
        layers=MappingProxyType(layers),
        saved=MappingProxyType(saved.trained),
        base_weights=MappingProxyType(saved.copies),
        _tensors=tensors,
        _settings_sha256=MappingProxyType({CONFIG_FILE: hashlib.sha256(content).hexdigest()}),
    )


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise AdapterError(f"{folder}: no such folder or file; nothing is downloaded, {advise(folder)}")
    if not folder.is_dir():
        expected = f"is not a folder; expected one with {CONFIG_FILE} and {TENSOR_FILE}"
        raise AdapterError(f"{folder}: {kinds.why_file_is_none(folder) or expected}")
    if not kinds.holds_adapter(folder):
        raise AdapterError(f"{folder}: has neither {CONFIG_FILE} nor {TENSOR_FILE}{_hint(folder)}")


def _hint(folder: Path) -> str:
    """Say what is in a folder that holds no adapter, and what to do."""
    if kinds.holds_statistics(folder):
        return "; it holds statistics of a model: name it under statistics, beside the model"
    for file in sorted(folder.glob("*.safetensors")):
        if why := kinds.why_file_is_none(file):
            return f"; its {file.name} {why}"
    if any((folder / name).exists() for name in (kinds.MODEL_FILE, kinds.MODEL_INDEX)):
        return "; it is a full checkpoint, not an adapter"
    return kinds.hint_below(folder)


def _open_tensors(path: Path) -> TensorFile:
    """Open the file of the factors; ValueError says what is there instead."""
    if not os.path.lexists(path):
        if any(path.parent.glob("adapter_model*.safetensors*")):
            raise ValueError("is missing; sharded adapters are not supported: save it again as one file")
        if any(path.parent.glob("adapter_model*.bin")):
            raise ValueError(
                "is missing; a pickle (.bin) is never opened to merge it: riemerge convert "
                f"{shlex.quote(str(path.parent))} OUT --to peft --allow-pickle makes safetensors of it"
            )
    return open_tensors(path)


def _read_layers(
    tensors: TensorFile, config: AdapterConfig | None
) -> tuple[dict[str, Layer], Saved, list[str]]:
    """Return the layers that the factors make, the whole tensors, and everything that is wrong with them.

    Args:
        tensors: The open file.
        config: What the adapter says of itself; None, where that cannot be read, checks the tensors alone.
    """
    unfit = {name for name in tensors.entries if not can_be_shown(name)}
    named = {name: entry for name, entry in tensors.entries.items() if name not in unfit}
    found, repeated = find_factors(named.values())
    layers, faults = make_layers(found, config)
    others = {name for name in named if not is_factor(name)}
    foreign = {name for name in others if any(re.search(pattern, name) for pattern, _ in _OTHER_TENSORS)}
    saved = find_saved((named[name] for name in others - foreign), found, config or AdapterConfig())
    problems = [
        f"the tensor {show(name)} has a name that is not printable or over {MAX_NAME} characters"
        for name in unfit
    ]
    weights = (layer.weight(module) for module, layer in layers.items() if not isinstance(layer, Expert))
    problems += [
        f"{name}: is saved whole and has factors too: expected one of them (bias, lora_bias, modules_to_save)"
        for name in weights
        if name in saved.trained
    ]
    problems += [*repeated, *_other_tensors(foreign, len(tensors.entries)), *faults, *saved.problems]
    if not tensors.entries:
        problems.append(f"{TENSOR_FILE} holds no tensors")
    elif not found and not problems:
        problems.append(f"{TENSOR_FILE} holds no factors, only whole tensors: {list_names(sorted(others))}")
    return layers, saved, problems


def _other_tensors(names: Collection[str], count: int) -> list[str]:
    """Say what the tensors are that are no part of an adapter.

    Args:
        names: The names of the tensors.
        count: The number of all tensors of the file.
    """
    others: dict[str, list[str]] = {}
    for name in sorted(names):
        kind = next(text for pattern, text in _OTHER_TENSORS if re.search(pattern, name))
        others.setdefault(kind, []).append(name)
    return [f"{len(keys)} of {count} tensors are {kind}: {list_names(keys)}" for kind, keys in others.items()]
