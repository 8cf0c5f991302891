"""A safetensors file written a block at a time, with nothing of it in memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from riemerge.formats.files.tensor_file import DTYPES

# The order in which safetensors lays tensors out, the last first: wide numbers before narrow ones.
_ORDER = ["BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64"]
_WORDS = {dtype: word for word, dtype in DTYPES.items()}
_CHUNK = 2**24  # bytes that are copied at once


@final
class TensorWriter:
    """Write tensors to a safetensors file, each a block at a time.

    Law: the bytes are those that safetensors itself writes of the same tensors with the metadata
    `{"format": "pt"}`, in whatever order they were added.

    The header of such a file has the place of every tensor and stands before them. So the tensors go to a
    body beside the file, and are copied behind the header when all are known.
    Cost: the disk twice for the time of the copy; memory of one block.

    Args:
        path: The new file.

    Attributes:
        nbytes: How many bytes of tensors were added.
        names: The names of the tensors that were added.
    """

    def __init__(self, path: Path) -> None:
        self.nbytes = 0
        self._path, self._body = path, path.with_name(f"{path.name}.body")
        self._places: dict[str, tuple[str, tuple[int, ...], int, int]] = {}

    @property
    def names(self) -> list[str]:
        """The names of the tensors that were added, in that order."""
        return list(self._places)

    def add(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, blocks: Iterable[Tensor]) -> None:
        """Write one tensor.

        Args:
            name: The name of the tensor, not used before.
            shape: The shape of the tensor.
            dtype: One of `DTYPES`.
            blocks: The tensor in runs of its first axis, in order, in that dtype; one block where it has no
                axis.

        Raises:
            OSError: The body cannot be written.
        """
        self._body.touch()
        with self._body.open("r+b") as file:
            file.seek(self.nbytes)  # what a fault left of another tensor is written over
            for block in blocks:
                file.write(block.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        size = math.prod(shape) * dtype.itemsize
        self._places[name] = _WORDS[dtype], tuple(shape), self.nbytes, size
        self.nbytes += size

    def finish(self) -> str:
        """Write the file, sync it, and return its sha256 in hex.

        Raises:
            OSError: The file cannot be written.
        """
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        places = sorted(self._places.items(), key=lambda item: (-_ORDER.index(item[1][0]), item[0]))
        end = 0
        for name, (word, shape, _, size) in places:
            header[name] = {"dtype": word, "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        digest = hashlib.sha256()
        with self._body.open("rb") as body, self._path.open("xb") as file:
            for content in (len(text).to_bytes(8, "little"), text):
                file.write(content)
                digest.update(content)
            for _, (_, _, start, size) in places:
                for chunk in _chunks(body, start, size):
                    file.write(chunk)
                    digest.update(chunk)
            file.flush()
            os.fsync(file.fileno())
        self._body.unlink()
        return digest.hexdigest()


def _chunks(file: BufferedReader, start: int, size: int) -> Iterable[bytes]:
    """Yield bytes of a file, so many from a place on."""
    file.seek(start)
    while size:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            raise OSError(f"the file ends {size} bytes before the end of a tensor")
        size -= len(chunk)
        yield chunk
