"""What a full checkpoint is to those who read it: a tensor for each name, stored in files or computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.files.tensor_file import why_not_finite
from riemerge.formats.files.text import show


@dataclass(frozen=True, eq=False)
class Checkpoint(ABC):
    """A full checkpoint: a tensor for each name, read one at a time.

    Law: what a view computes of other checkpoints is a checkpoint, and so is a view of a view; a tensor is
    computed when it is read, and is the same each time.

    Attributes:
        path: The folder or file that was given; of a view, a path that tells it apart from all others.
        shapes: The shape of each tensor, by name, in the order of the names.
        dtypes: The dtype in which each tensor is stored, by name.
        other_files: What else the model needs (settings, tokenizer), where a folder was given.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    other_files: tuple[Path, ...]

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the model in messages and records: never a path of the machine."""

    @property
    @abstractmethod
    def sha256(self) -> Mapping[str, str]:
        """The sha256, in hex, of each file that enters the tensors, by a name of its own.

        Raises:
            AdapterError: A file is no longer the one that was checked.
        """

    @abstractmethod
    def source(self, name: str) -> Path:
        """Return what a message names as the place of a tensor: its file, or the path of a view."""

    @abstractmethod
    def _read(self, name: str, rows: Sequence[range] | None) -> Tensor:
        """Return one tensor, or some of its rows as `tensor` does, in CPU memory of the caller's own.

        Law: as it is stored, or as the view makes it; rows are those of the whole tensor, bit for bit.
        """

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, sorted."""
        return tuple(self.shapes)

    @property
    def stored(self) -> frozenset[torch.dtype]:
        """The dtypes in which its tensors are stored."""
        return frozenset(self.dtypes.values())

    @property
    def ranks(self) -> Mapping[str, int]:
        """The rank of each tensor that has factors: none."""
        return MappingProxyType({})

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The names of the tensors that are floats: those that can be merged."""
        return tuple(name for name, dtype in self.dtypes.items() if dtype.is_floating_point)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.shapes[name]

    @cached_property
    def not_float(self) -> tuple[str, ...]:
        """The names of the tensors that are integers or bools: they have no mean."""
        return tuple(name for name, dtype in self.dtypes.items() if not dtype.is_floating_point)

    def tensor(
        self,
        name: str,
        dtype: torch.dtype | None = torch.float64,
        device: torch.device | str = "cpu",
        rows: Sequence[range] | None = None,
    ) -> Tensor:
        """Read one tensor, or runs of its rows one after the other.

        Law: with `dtype` None the stored values bit for bit; otherwise their conversion, exact to float64.

        Args:
            name: One of `names`.
            dtype: The dtype of the result, a float; None for the dtype of the file, which integers and bools
                need.
            device: The device of the result.
            rows: Indices of the first axis, in runs of step 1; None for the whole tensor, of any shape.

        Raises:
            AdapterError: The tensor holds NaN or Inf, is no float where one is asked for, or its file is no
                longer the one that was checked.
            KeyError: The checkpoint has no such tensor.
        """
        stored = self.dtypes[name]
        if dtype is not None and not stored.is_floating_point:
            raise AdapterError(
                f"{self.source(name)}: {show(name)}: is stored as {stored}: expected a float; "
                "integers and bools have no mean and are only copied"
            )
        tensor = self._read(name, rows)
        if (why := why_not_finite(tensor, rows)) is not None:
            raise AdapterError(
                f"{self.source(name)}: {show(name)}: {why}; export the model again or leave it out"
            )
        return tensor.to(device, dtype or stored)
