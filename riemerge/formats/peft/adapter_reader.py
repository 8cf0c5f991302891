"""The reader of PEFT LoRA folders: all that settings and headers tell is checked as a folder is opened."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from riemerge.errors import AdapterError
from riemerge.formats import kinds
from riemerge.formats.adapter import Adapter
from riemerge.formats.files.tensor_file import (
    FLOATS,
    Entry,
    TensorFile,
    open_tensors,
    read_start,
    reading,
)
from riemerge.formats.files.text import MAX_NAME, can_be_shown, list_names, show
from riemerge.formats.hub import advise
from riemerge.formats.layers import Linear
from riemerge.formats.peft.config import parse_config

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"

# Trainers write the prefix or not, and PEFT's in-memory keys carry the adapter's name.
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")

# What else trainers save, by name: the first pattern found decides.
_OTHER_TENSORS = (
    (r"\.lora_embedding_[AB]", "embedding factors; only linear layers are supported"),
    (r"lora_magnitude_vector|dora_scale", "DoRA magnitudes; DoRA needs the base weight and is not supported"),
    (r"\.lora_[AB](\.\w+)?\.bias$", "bias vectors of the factors (lora_bias); not supported"),
    (r"lora_diag", "KaSA diagonals; not supported"),
    (r"trainable_tokens", "trained token rows (trainable_token_indices); not supported"),
    (r"lora_(down|up|mid|unet|te\d?)|\.alpha$", "kohya or diffusers keys; convert them to PEFT's format"),
    (r"\.lora_[AB]\.\w+\.weight$", "factors of an adapter not called default; save it again with PEFT"),
    (r"modules_to_save|original_module", "saved modules (modules_to_save); not supported"),
    (r"\.bias$", "trained bias vectors or saved modules; not supported"),
    (r"", "no factors of a linear layer (a saved module, head or another method); not supported"),
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
    entries, faults = _pair(tensors.entries)
    problems += [f"{folder}: {fault}" for fault in faults]
    if config is None:
        raise AdapterError(problems)
    layers = {module: Linear(sides, config.scale(module)) for module, sides in entries.items()}
    problems += [
        f"{folder}: {module}: the factors have rank {layer.rank} but {CONFIG_FILE} says "
        f"{config.rank(module)} (r, rank_pattern): they must agree"
        for module, layer in layers.items()
        if layer.rank != config.rank(module)
    ]
    AdapterError.refuse(problems)
    return Adapter(
        path=folder,
        dialect="peft",
        config=config,
        layers=MappingProxyType(layers),
        saved=MappingProxyType({}),
        base_weights=MappingProxyType({}),
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
            raise ValueError("is missing; a pickle (.bin) is never opened: convert it to safetensors")
    return open_tensors(path)


def _pair(header: Mapping[str, Entry]) -> tuple[dict[str, dict[str, Entry]], list[str]]:
    """Return the factors of each module by side, sorted by name, and everything that is wrong with them."""
    sides: dict[str, dict[str, Entry]] = {}
    others: dict[str, list[str]] = {}
    problems = []
    for key in header:
        if not can_be_shown(key):
            problems.append(
                f"the tensor {show(key)} has a name that is not printable or over {MAX_NAME} characters"
            )
        elif match := _FACTOR.fullmatch(key):
            module, side = match["module"], match["side"]
            first = sides.setdefault(module, {}).setdefault(side, header[key])
            if first.name != key:
                problems.append(f"{module}: lora_{side} is stored twice, as {first.name} and as {key}")
        else:
            kind = next(text for pattern, text in _OTHER_TENSORS if re.search(pattern, key))
            others.setdefault(kind, []).append(key)
    problems += [
        f"{len(keys)} of {len(header)} tensors are {kind}: {list_names(keys)}"
        for kind, keys in others.items()
    ]
    if not sides and not problems:
        problems.append(f"{TENSOR_FILE} holds no tensors")
    factors = {}
    for module, pair in sorted(sides.items()):
        if (why := _why_unfit(module, pair)) is not None:
            problems.append(f"{module}: {why}")
        else:
            factors[module] = {"B": pair["B"], "A": pair["A"]}
    return factors, problems


def _why_unfit(module: str, sides: Mapping[str, Entry]) -> str | None:
    """Say why the factors of a module are none of a linear layer; None if they are."""
    if {"base_layer", "_orig_mod", "_fsdp_wrapped_module"} & set(module.split(".")):
        return "was saved from a wrapped model (nested adapters, torch.compile, FSDP): save it unwrapped"
    for missing in {"A", "B"} - set(sides):
        return f"has no lora_{missing}: both factors are needed"
    a, b = sides["A"], sides["B"]
    if unknown := sorted({a.dtype, b.dtype} - set(FLOATS)):
        return f"is stored as {', '.join(unknown)}: expected one of {', '.join(FLOATS)} (dequantise it first)"
    if (why := _why_no_product(a.shape, b.shape)) is not None:
        return f"lora_A is {a.shape} but lora_B is {b.shape}: {why}"
    return None


def _why_no_product(a: tuple[int, ...], b: tuple[int, ...]) -> str | None:
    if len(a) > 2 or len(b) > 2:
        return "only linear layers are supported, no convolutions"
    if 0 in a + b:
        return "they must not be empty (saved from ZeRO-3 without gathering?)"
    if len(a) < 2 or len(b) < 2:
        return "they must be matrices"
    if a[0] != b[1]:
        return f"the inner sizes {a[0]} and {b[1]} must agree"
    return None
