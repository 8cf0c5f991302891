"""One safetensors file: its header checked when it is opened, its tensors read one at a time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.files.text import MAX_JSON_BYTES, MAX_NAME, can_be_shown, list_names, strict_json

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SIGNED = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
_UNSIGNED = {"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8}
DTYPES: Mapping[str, torch.dtype] = FLOATS | _SIGNED | _UNSIGNED | {"BOOL": torch.bool}

_MAGIC = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the tensors: run git lfs pull"),
    (b"<", "looks like an HTML page, not tensors: download it again"),
    (b"PK\x03\x04", "is a zip archive (a torch pickle?): convert it to safetensors"),
    (b"\x80", "is a pickle: convert it to safetensors"),
    (b"GGUF", "is a GGUF file: convert it to safetensors"),
)


@final
@dataclass(frozen=True)
class Entry:
    """One tensor as the header of its file describes it.

    Attributes:
        name: The key of the tensor.
        dtype: The dtype in safetensors' words; only those of `DTYPES` can be read.
        shape: The shape of the tensor.
        start: The offset of the first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int


@final
@dataclass(frozen=True, eq=False)
class TensorFile:
    """A safetensors file whose header is sound. Made by `open_tensors`.

    No file stays open; each read fails loudly if the file is no longer the one that was checked.

    Attributes:
        path: The path of the file.
        entries: The tensors of the file by name, sorted.
        metadata: The texts that the header holds beside the tensors, by key.
    """

    path: Path
    entries: Mapping[str, Entry]
    _identity: tuple[int, ...] = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """Say all that has no exact meaning, or cannot be shown, among the names and dtypes."""
        faults = []
        if unfit := [name for name in self.entries if not can_be_shown(name)]:
            faults.append(
                f"has {len(unfit)} tensors whose names are not printable or over {MAX_NAME} characters: "
                f"{list_names(unfit)}"
            )
        unknown = {name: entry.dtype for name, entry in self.entries.items() if entry.dtype not in DTYPES}
        if unknown:
            faults.append(
                f"stores {len(unknown)} of {len(self.entries)} tensors as "
                f"{list_names(sorted({*unknown.values()}))} ({list_names(unknown)}): expected floats of 16 "
                "bits or more, integers or bools; quantised values mean nothing without their scales, so "
                "dequantise them first"
            )
        return faults

    def read(self, *names: str) -> tuple[Tensor, ...]:
        """Read tensors, as they are stored, into CPU memory of their own.

        Their values may be anything: the caller asks `why_not_finite`, and says which tensor it is.

        Raises:
            AdapterError: The file is no longer the one that was checked.
            KeyError: There is no such tensor, or it has none of `DTYPES`.
        """
        # By their places in the file: opening a file as safetensors reads its whole header, each time.
        entries = [self.entries[name] for name in names]
        with self._reading() as file:
            return tuple(_read_entry(file, entry) for entry in entries)

    def read_rows(self, name: str, rows: Sequence[range]) -> Tensor:
        """Read runs of rows of one tensor, one after the other, into CPU memory of their own.

        Args:
            name: A tensor of at least one axis.
            rows: Indices of its first axis, in runs of step 1.

        Raises:
            AdapterError: The file is no longer the one that was checked.
            KeyError: There is no such tensor, or it has none of `DTYPES`.
        """
        entry = self.entries[name]
        length = math.prod(entry.shape[1:]) * DTYPES[entry.dtype].itemsize
        with self._reading() as file:
            return _read_parts(
                file,
                entry,
                (sum(map(len, rows)), *entry.shape[1:]),
                [(run.start * length, len(run) * length) for run in rows],
            )

    def sha256(self) -> str:
        """Return the sha256 of the file, in hex.

        Raises:
            AdapterError: The file is no longer the one that was checked.
        """
        with self._reading() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check(self) -> None:
        """Raise an AdapterError if the file is no longer the one that was checked."""
        with self._reading():
            pass

    @contextmanager
    def _reading(self) -> Iterator[BufferedReader]:
        """Open the file, and see before and after its use that it is the one that was checked."""
        try:
            before = _identity(self.path)
            with self.path.open("rb") as file:
                yield file
            after = _identity(self.path)
        except OSError as error:
            raise AdapterError(f"{self.path}: can no longer be read: {error.strerror or error}") from error
        if not before == after == self._identity:
            raise AdapterError(f"{self.path}: changed while it was in use; start again")


def open_tensors(path: Path) -> TensorFile:
    """Check the header of a safetensors file, as safetensors itself understands it, and nothing else.

    Raises:
        ValueError: The file cannot be read; the text says why, without naming it.
    """
    start = read_start(path, 64)
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
    header = strict_json(read_start(path, 8 + length)[8:])
    try:
        # What safetensors accepts is a sound header: no gap, no overlap, sizes as shapes and dtypes say.
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"is {size} bytes long and not a whole safetensors file ({error}): download or export it again"
        ) from error
    entries = {
        name: Entry(name, item["dtype"], tuple(item["shape"]), 8 + length + item["data_offsets"][0])
        for name, item in ((name, header[name]) for name in names)
    }
    metadata = MappingProxyType(header.get("__metadata__") or {})
    return TensorFile(path, MappingProxyType(entries), identity, metadata)


def as_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return tensors and texts as the content of a safetensors file.

    Law: a function of what is given: safetensors itself writes the texts in an order that differs from one
    process to the next.
    """
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    end = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(content[8:end])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def read_start(path: Path, size: int = MAX_JSON_BYTES + 1) -> bytes:
    """Read the first bytes of a regular file; by default, more than `strict_json` takes.

    Raises:
        ValueError: The file is no regular one, or cannot be read; the text says why, without naming it.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("is not a regular file")
        with path.open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        why = "is a link to a file that is not there" if path.is_symlink() else "is missing"
        raise ValueError(why) from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn faults of the file system into an AdapterError that names the input that is looked at."""
    try:
        yield
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror or error}") from error


def why_not_finite(tensor: Tensor, rows: Sequence[range] | None = None) -> str | None:
    """Say how many values are NaN or Inf, and where the first is; None where all are finite.

    Args:
        tensor: The values.
        rows: Indices of the first axis that the values have in a larger tensor, in runs; None where they are
            all of it.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    # One pass without a copy, which any of them would have come through, 20 times as fast as a sum.
    if all(math.isfinite(end) for end in torch.aminmax(tensor)):
        return None
    bad = torch.isfinite(tensor).logical_not().nonzero()
    if not len(bad):
        return None
    place = bad[0].tolist()
    if rows is not None:
        place[0] = [index for run in rows for index in run][place[0]]
    return f"holds {len(bad)} NaN or Inf, the first at {place}"


def _read_entry(file: BufferedReader, entry: Entry) -> Tensor:
    """Read the tensor at its place in the file.

    Raises:
        OSError: The file ends before it.
    """
    size = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
    return _read_parts(file, entry, entry.shape, [(0, size)])


def _read_parts(
    file: BufferedReader, entry: Entry, shape: tuple[int, ...], parts: Sequence[tuple[int, int]]
) -> Tensor:
    """Read parts of a tensor, each (first byte, size), one after the other as a tensor of a shape.

    Raises:
        OSError: The file ends before their end.
    """
    tensor, end = torch.empty(shape, dtype=DTYPES[entry.dtype], device="cpu"), 0
    view = tensor.view(-1).view(torch.uint8).numpy().data
    for first, size in parts:
        file.seek(entry.start + first)
        if (count := file.readinto(view[end : end + size])) != size:
            raise OSError(f"it ends {size - count} bytes before the end of a tensor")
        end += size
    return tensor


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
