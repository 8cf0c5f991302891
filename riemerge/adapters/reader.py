"""A PEFT LoRA folder as updates: checked whole when it is opened, its tensors read one module at a time."""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from riemerge.adapters.config import (
    MAX_JSON_BYTES,
    MAX_NAME,
    AdapterConfig,
    listed,
    parse_config,
    shown,
    strict_json,
)
from riemerge.errors import AdapterError
from riemerge.updates import LowRankUpdate

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

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

_MAGIC = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the tensors: run git lfs pull"),
    (b"<", "looks like an HTML page, not tensors: download it again"),
    (b"PK\x03\x04", "is a zip archive (a torch pickle?): convert it to safetensors"),
    (b"\x80", "is a pickle: convert it to safetensors"),
    (b"GGUF", "is a GGUF file: convert it to safetensors in PEFT's format"),
)


@final
@dataclass(frozen=True)
class _Stored:
    """One tensor as the header of the file describes it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # of its bytes, from the start of the file


@final
@dataclass(frozen=True, eq=False)
class Adapter:
    """A PEFT LoRA folder whose every setting enters dW exactly. Made by `read_adapter`.

    Modules are named as in the base model: without PEFT's prefix. No file stays open; each read fails loudly
    if the file is no longer the one that was checked.
    """

    path: Path
    config: AdapterConfig
    modules: tuple[str, ...]
    _factors: Mapping[str, tuple[_Stored, _Stored]] = field(repr=False)
    _config_sha256: str = field(repr=False)
    _identity: tuple[int, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.absolute().name

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """The rank r of each module."""
        return MappingProxyType({module: b.shape[1] for module, (b, _) in self._factors.items()})

    @cached_property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds all stored factors exactly."""
        stored = (_DTYPES[factor.dtype] for pair in self._factors.values() for factor in pair)
        return reduce(torch.promote_types, stored)

    @cached_property
    def sha256(self) -> Mapping[str, str]:
        """The sha256, in hex, of each file that enters the updates, by file name.

        Raises:
            AdapterError: The tensors' file is no longer the one that was checked.
        """
        with self._reading(), self._tensor_path.open("rb") as file:
            tensors = hashlib.file_digest(file, "sha256").hexdigest()
        return MappingProxyType({CONFIG_FILE: self._config_sha256, TENSOR_FILE: tensors})

    def shape(self, module: str) -> tuple[int, int]:
        """The shape (m, n) of dW of this module: outputs by inputs."""
        b, a = self._factors[module]
        return b.shape[0], a.shape[1]

    def update(
        self, module: str, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> LowRankUpdate:
        """Read the update of one module.

        Law: `update(module).dense()` is PEFT's `get_delta_weight` of the loaded adapter (its transpose with
        `fan_in_fan_out`), to round-off of the conversion to `dtype`.

        Args:
            module: One of `modules`.
            dtype: The dtype of the returned factors.
            device: Their device.

        Raises:
            AdapterError: A factor holds NaN or Inf, or the file is no longer the one that was checked.
            KeyError: The adapter has no such module.
        """
        stored = self._factors[module]
        # By its place in the file: opening a file as safetensors reads its whole header, each time.
        with self._reading(), self._tensor_path.open("rb") as file:
            b, a = (_read_tensor(file, factor) for factor in stored)
        problems = [
            f"{self.path}: {shown(module)}: {side} holds {count} NaN or Inf, the first at {first}; "
            "export the adapter again or leave it out"
            for side, (count, first) in (("lora_A", _not_finite(a)), ("lora_B", _not_finite(b)))
            if count
        ]
        if problems:
            raise AdapterError(problems)
        return LowRankUpdate(b.to(device, dtype), a.to(device, dtype), self.config.scale(module))

    @property
    def _tensor_path(self) -> Path:
        return self.path / TENSOR_FILE

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Around each use of the tensors' file: it is the one that was checked, before and after."""
        try:
            before = _identity(self._tensor_path)
            yield
            after = _identity(self._tensor_path)
        except (SafetensorError, OSError) as error:
            raise AdapterError(f"{self._tensor_path}: can no longer be read: {error}") from error
        if not before == after == self._identity:
            raise AdapterError(f"{self._tensor_path}: changed while it was in use; start again")


def read_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Open a PEFT LoRA folder and check all that its settings and the header of its tensors can tell.

    Law: an adapter that opens is read exactly; any setting or tensor that would not enter dW = s·B·A is
    refused by name. Only `adapter_config.json` and `adapter_model.safetensors` are opened; nothing is
    executed, nothing is downloaded. The values are checked when they are read (`Adapter.update`).

    Args:
        path: The folder.

    Raises:
        AdapterError: With every problem found in the folder.

    Source: the format as PEFT 0.21.2 writes it.
    """
    folder = Path(path)
    _check_folder(folder)
    problems: list[str] = []
    config, content = None, b""
    try:
        content = _read_start(folder / CONFIG_FILE, MAX_JSON_BYTES + 1)
        config, found = parse_config(content)
        problems += [f"{folder / CONFIG_FILE}: {text}" for text in found]
    except ValueError as error:
        problems.append(f"{folder / CONFIG_FILE}: {error}")

    factors: dict[str, tuple[_Stored, _Stored]] = {}
    identity: tuple[int, ...] = ()
    try:
        header, identity = _read_header(folder / TENSOR_FILE)
        factors, found = _pair(header)
        problems += [f"{folder}: {text}" for text in found]
    except ValueError as error:
        problems.append(f"{folder / TENSOR_FILE}: {error}")

    if config is not None:
        problems += [
            f"{folder}: {module}: the factors have rank {b.shape[1]} but {CONFIG_FILE} says "
            f"{config.rank(module)} (r, rank_pattern): they must agree"
            for module, (b, _) in factors.items()
            if b.shape[1] != config.rank(module)
        ]
    if problems or config is None:
        raise AdapterError(problems)
    return Adapter(
        path=folder,
        config=config,
        modules=tuple(factors),
        _factors=MappingProxyType(factors),
        _config_sha256=hashlib.sha256(content).hexdigest(),
        _identity=identity,
    )


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise AdapterError(
            f"{folder}: no such folder; nothing is downloaded, so fetch the adapter first (hf download)"
        )
    if not folder.is_dir():
        raise AdapterError(f"{folder}: is not a folder; expected one with {CONFIG_FILE} and {TENSOR_FILE}")
    if not os.path.lexists(folder / CONFIG_FILE) and not os.path.lexists(folder / TENSOR_FILE):
        inside = sorted(found.parent.name for found in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"; did you mean one of its folders: {listed(inside)}?" if inside else ""
        raise AdapterError(f"{folder}: has neither {CONFIG_FILE} nor {TENSOR_FILE}{hint}")


def _read_start(path: Path, size: int) -> bytes:
    """The first bytes of a regular file; ValueError says what it is instead."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("is not a regular file")
        with path.open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        raise ValueError(_why_missing(path)) from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


def _why_missing(path: Path) -> str:
    if path.is_symlink():
        return "is a link to a file that is not there"
    if path.name == TENSOR_FILE and any(path.parent.glob("adapter_model*.safetensors*")):
        return "is missing; sharded adapters are not supported: save it again as one file"
    if path.name == TENSOR_FILE and any(path.parent.glob("adapter_model*.bin")):
        return "is missing; a pickle (.bin) is never opened: convert it to safetensors"
    return "is missing"


def _read_header(path: Path) -> tuple[dict[str, _Stored], tuple[int, ...]]:
    """What the file holds, as safetensors itself understands it, and which file that is.

    Raises:
        ValueError: It cannot be read; the text says why.
    """
    start = _read_start(path, 64)
    identity = _identity(path)  # before anything that is relied on, so that no exchange goes unnoticed
    for magic, what in _MAGIC:
        # A header of 60 bytes also starts with "<": a safetensors file has zeros after its length.
        if start.startswith(magic) and start[4:8] != bytes(4):
            raise ValueError(what)
    size, length = path.stat().st_size, int.from_bytes(start[:8], "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"is {size} bytes long, too short for its own header: download it again")
    if length > MAX_JSON_BYTES:
        raise ValueError(f"has a header of {length} bytes: expected at most {MAX_JSON_BYTES}")
    # safetensors would let one of two tensors of a name win
    header = strict_json(_read_start(path, 8 + length)[8:])
    try:
        # What safetensors accepts is a sound header: no gap, no overlap, sizes as shapes and dtypes say.
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            stored = {
                key: _Stored(
                    key, s.get_dtype(), tuple(s.get_shape()), 8 + length + header[key]["data_offsets"][0]
                )
                for key, s in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"is {size} bytes long and not a whole safetensors file ({error}): download or export it again"
        ) from error
    return stored, identity


def _pair(header: Mapping[str, _Stored]) -> tuple[dict[str, tuple[_Stored, _Stored]], list[str]]:
    """The factors (B, A) of each module, sorted by name, and everything that is wrong with them."""
    sides: dict[str, dict[str, _Stored]] = {}
    others: dict[str, list[str]] = {}
    problems = []
    for key in sorted(header):
        if not key.isprintable() or len(key) > MAX_NAME:
            problems.append(
                f"the tensor {shown(key)} has a name that is not printable or over {MAX_NAME} characters"
            )
        elif match := _FACTOR.fullmatch(key):
            module, side = match["module"], match["side"]
            first = sides.setdefault(module, {}).setdefault(side, header[key])
            if first.key != key:
                problems.append(f"{module}: lora_{side} is stored twice, as {first.key} and as {key}")
        else:
            kind = next(text for pattern, text in _OTHER_TENSORS if re.search(pattern, key))
            others.setdefault(kind, []).append(key)
    problems += [
        f"{len(keys)} of {len(header)} tensors are {kind}: {listed(keys)}" for kind, keys in others.items()
    ]
    if not sides and not problems:
        problems.append(f"{TENSOR_FILE} holds no tensors")
    factors = {}
    for module, found in sorted(sides.items()):
        if (why := _why_unfit(module, found)) is not None:
            problems.append(f"{module}: {why}")
        else:
            factors[module] = (found["B"], found["A"])
    return factors, problems


def _why_unfit(module: str, sides: Mapping[str, _Stored]) -> str | None:
    if {"base_layer", "_orig_mod", "_fsdp_wrapped_module"} & set(module.split(".")):
        return "was saved from a wrapped model (nested adapters, torch.compile, FSDP): save it unwrapped"
    if len(sides) < 2:
        missing = ({"A", "B"} - set(sides)).pop()
        return f"has no lora_{missing}: both factors are needed"
    a, b = sides["A"], sides["B"]
    if unknown := sorted({a.dtype, b.dtype} - set(_DTYPES)):
        return (
            f"is stored as {', '.join(unknown)}: expected one of {', '.join(_DTYPES)} (dequantise it first)"
        )
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


def _read_tensor(file: BinaryIO, stored: _Stored) -> Tensor:
    """The tensor at its place in the file, in memory of its own.

    Raises:
        OSError: The file ends before it.
    """
    dtype = _DTYPES[stored.dtype]
    content = bytearray(math.prod(stored.shape) * dtype.itemsize)
    file.seek(stored.start)
    if (count := file.readinto(content)) != len(content):  # type: ignore[attr-defined]
        raise OSError(f"{stored.key} has {count} bytes of {len(content)}")
    return torch.frombuffer(content, dtype=dtype).reshape(stored.shape)


def _not_finite(tensor: Tensor) -> tuple[int, list[int]]:
    """How many values are NaN or Inf, and the index of the first."""
    if math.isfinite(tensor.sum(dtype=torch.float64)):  # one pass, and any of them would have come through
        return 0, []
    bad = ~torch.isfinite(tensor)
    count = int(bad.sum())
    return count, (bad.nonzero()[0].tolist() if count else [])


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
