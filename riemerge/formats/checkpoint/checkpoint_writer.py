"""Tensors as a full checkpoint that appears whole or not at all, with one block of one in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self, final

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.formats.checkpoint.checkpoint import INDEX_FILE, SUFFIX, TENSOR_FILE, read_checkpoint
from riemerge.formats.files.rounding import Rounding, check_rounding, why_too_large
from riemerge.formats.files.staging import NewFolder, Text, check_read_back, writing
from riemerge.formats.files.tensor_file import DTYPES
from riemerge.formats.files.tensor_writer import TensorWriter
from riemerge.formats.files.text import as_json, can_be_shown, show


@final
class DenseWriter:
    """Write a full checkpoint as transformers does, a tensor at a time, all or nothing.

        with DenseWriter("merged", dtype=torch.bfloat16) as writer:
            for name in checkpoint.names:
                writer.add(name, ...)
            for path in checkpoint.other_files:
                writer.add_file(path.name, path)

    Law: at the end of the block the folder holds `model.safetensors`, or shards of at most `shard_bytes` of
    tensors and their index; a tensor that is larger has a shard of its own. The same calls give the same
    bytes. Files are written and synced in a hidden folder beside the target, their headers are read back, and
    the folder is then given its name by one rename; an exception in the block or in the writing leaves
    nothing behind, a killed process only the hidden folder.
    Cost: memory of one tensor, or of one block of it; the disk twice for one shard.

    Args:
        folder: The new folder; it must not exist, its parent must.
        dtype: The float dtype to store floats in; None keeps the dtype of each tensor. Integers and bools
            keep theirs.
        shard_bytes: The most bytes of tensors in one file, at least 1.

    Raises:
        NumericalError: At the end of the block, tensors that the dtype rounds to nearly nothing (see
            `riemerge.formats.files.rounding`): all of them are named.
        OutputError: The folder exists, cannot be written, or does not read back as it was written.
        ValueError: No tensor was added, a dtype that is no float of 16 bits or more, or `shard_bytes` below
            1.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        shard_bytes: int = 5_000_000_000,
    ) -> None:
        _check_float(dtype)
        if shard_bytes < 1:
            raise ValueError(f"shards of {shard_bytes} bytes: expected at least 1")
        self._target, self._dtype, self._shard_bytes = Path(folder), dtype, shard_bytes
        self._roundings: dict[str, Rounding] = {}
        self._entries: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self._shards: list[tuple[str, list[str]]] = []  # sha256 of each that is written, names of its tensors
        self._sha256: Mapping[str, str] = {}
        self._shard: TensorWriter | None = None
        self._folder: NewFolder | None = None

    @property
    def errors(self) -> Mapping[str, float]:
        """The error of the rounding by tensor, ‖stored − given‖ / ‖given‖ (0 for a zero tensor)."""
        return {name: rounding.error for name, rounding in self._roundings.items()}

    @property
    def roundings(self) -> Mapping[str, Rounding]:
        """What the rounding did, by float tensor."""
        return {
            name: rounding for name, rounding in self._roundings.items() if rounding.dtype.is_floating_point
        }

    @property
    def sha256(self) -> Mapping[str, str]:
        """The sha256 of each file of tensors, of their index and of each copied file; complete at the end."""
        return self._sha256

    def __enter__(self) -> Self:
        self._folder = NewFolder(self._target)
        self._sha256 = MappingProxyType(self._folder.sha256)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        folder, self._folder = self._require_folder(), None
        with closing(folder):
            if kind is None:
                self._finish(folder)

    def add(self, name: str, tensor: Tensor, *, dtype: torch.dtype | None = None) -> float:
        """Round a tensor to the dtype that is stored, and write it.

        Args:
            name: The name of the tensor in the model, not used before.
            tensor: The values, of any shape, on any device.
            dtype: A float dtype for this tensor instead of the writer's.

        Returns:
            The error of the rounding (see `errors`).

        Raises:
            NumericalError: The tensor holds NaN or Inf, or what `dtype` cannot hold.
            OutputError: The disk is full, or the folder cannot be written.
            ValueError: The name was used before or cannot be one, or the dtype cannot be stored.
        """
        return self.add_blocks(name, tuple(tensor.shape), tensor.dtype, [tensor], dtype=dtype)

    def add_blocks(
        self,
        name: str,
        shape: tuple[int, ...],
        given: torch.dtype,
        blocks: Iterable[Tensor],
        *,
        dtype: torch.dtype | None = None,
    ) -> float:
        """Round a tensor to the dtype that is stored, and write it, block by block.

        Args:
            name: The name of the tensor in the model, not used before.
            shape: The shape of the tensor.
            given: The dtype of the blocks.
            blocks: The tensor in runs of its first axis, in order, on any device.
            dtype: A float dtype for this tensor instead of the writer's.

        Returns:
            The error of the rounding (see `errors`).

        Raises:
            NumericalError: The tensor holds NaN or Inf, or what `dtype` cannot hold.
            OutputError: The disk is full, or the folder cannot be written.
            ValueError: The name was used before or cannot be one, or the dtype cannot be stored.
        """
        folder = self._require_folder()
        _check_float(dtype)
        if name in self._roundings:
            raise ValueError(f"the tensor {show(name)} was added already")
        if not can_be_shown(name) or name in {"", "__metadata__"}:
            raise ValueError(f"{show(name)!r} cannot be the name of a tensor")
        if given not in DTYPES.values():
            raise ValueError(f"the tensor {show(name)} is {given}, which is not stored")
        stored = given
        if given.is_floating_point:
            stored = dtype or self._dtype or given
        shard = self._shard_for(math.prod(shape) * stored.itemsize, folder)
        rounder = _Rounder(stored)
        try:
            with writing(self._target):
                shard.add(name, shape, stored, map(rounder.round, blocks))
        except NumericalError as fault:
            raise NumericalError(f"{show(name)}: {problem}" for problem in fault.problems) from fault
        self._roundings[name], self._entries[name] = rounder.rounding, (shape, stored)
        return rounder.rounding.error

    def add_file(self, name: str, content: Text | Path | bytes) -> None:
        """Put a file beside the tensors.

        Args:
            name: The name of the file, not used before.
            content: The path of a file to copy, or the bytes of the file; or its text, which `sha256` leaves
                out, or a function that makes it from `sha256` when all else is written.

        Raises:
            OutputError: The file cannot be copied or written.
            ValueError: The name was used before, belongs to the tensors, or is no plain file name.
        """
        if name == INDEX_FILE or name.endswith(SUFFIX):
            raise ValueError(f"{name!r} cannot be the name of an extra file")
        folder = self._require_folder()
        if isinstance(content, bytes):
            folder.write(name, content)
        else:
            folder.add(name, content)

    def _require_folder(self) -> NewFolder:
        if self._folder is None:
            raise ValueError("the writer is not open: use it in a with statement, once")
        return self._folder

    def _shard_for(self, nbytes: int, folder: NewFolder) -> TensorWriter:
        """Return the shard that has room for so many bytes, or a new one."""
        if self._shard and self._shard.nbytes + nbytes > self._shard_bytes:
            self._flush()
        if self._shard is None:
            # A name that does not depend on how many follow.
            self._shard = TensorWriter(folder.stage / _shard_name(len(self._shards)))
        return self._shard

    def _flush(self) -> None:
        """Write the shard that is open, if it has tensors."""
        if self._shard and self._shard.names:
            with writing(self._target):
                self._shards.append((self._shard.finish(), self._shard.names))
        self._shard = None

    def _finish(self, folder: NewFolder) -> None:
        self._flush()
        count = len(self._shards)
        if not count:
            raise ValueError("no tensor to write")
        check_rounding(self.roundings)
        weight_map: dict[str, str] = {}
        for i, (sha256, names) in enumerate(self._shards):
            file = f"model-{i + 1:05d}-of-{count:05d}{SUFFIX}"
            if count == 1:
                file = TENSOR_FILE
            with writing(self._target):
                (folder.stage / _shard_name(i)).rename(folder.stage / file)
            folder.sha256[file] = sha256
            weight_map |= dict.fromkeys(names, file)
        if count > 1:
            total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._entries.values())
            folder.write(INDEX_FILE, as_json({"metadata": {"total_size": total}, "weight_map": weight_map}))
        folder.publish(partial(_check_written, self._entries))


def _shard_name(shard: int) -> str:
    return f"shard-{shard}{SUFFIX}"


def _check_float(dtype: torch.dtype | None) -> None:
    if dtype is not None and not (dtype in DTYPES.values() and dtype.is_floating_point):
        raise ValueError(f"{dtype} is not stored: expected a float dtype of 16 bits or more")


@final
class _Rounder:
    """Round the blocks of one tensor to a dtype, and measure what that does to the whole."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._norm = self._apart = 0.0

    @property
    def rounding(self) -> Rounding:
        """What the rounding did to the blocks so far."""
        return Rounding(self._dtype, self._norm, self._apart / (self._norm or 1.0))

    def round(self, given: Tensor) -> Tensor:
        """Return a block in the dtype; integers and bools as they are.

        Raises:
            NumericalError: NaN or Inf, or more than the dtype can hold; the text does not name the tensor.
        """
        if not given.is_floating_point():
            return given
        given, dtype = given.detach(), self._dtype
        norm = _norm(given)
        self._norm = math.hypot(self._norm, norm)
        if not math.isfinite(self._norm):
            raise NumericalError("the tensor holds NaN or Inf, or its norm overflows")
        rounded = given.to(dtype)
        if not math.isfinite(torch.linalg.vector_norm(rounded, dtype=torch.float64)):
            raise NumericalError(f"the tensor reaches {why_too_large(float(given.abs().max()), dtype)}")
        if torch.promote_types(given.dtype, dtype) is not dtype:  # else nothing is rounded away
            self._apart = math.hypot(self._apart, _norm(rounded.to(torch.float64).sub_(given)))
        return rounded


def _norm(tensor: Tensor) -> float:
    """Return the norm, also of numbers whose squares underflow."""
    norm = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
    if not norm <= 1e-150 or not tensor.any():
        return norm
    largest = float(tensor.abs().max())
    return largest * float(torch.linalg.vector_norm(tensor / largest))


def _check_written(entries: Mapping[str, tuple[tuple[int, ...], torch.dtype]], folder: Path) -> None:
    """Open the folder as a user would, and compare all that its headers say."""

    def differing() -> Iterator[str]:
        read = read_checkpoint(folder)
        written = {name: (read.shapes[name], read.dtypes[name]) for name in read.names}
        yield from sorted(name for name, _ in written.items() ^ entries.items())

    check_read_back(differing())
