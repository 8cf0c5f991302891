"""A folder of statistics: what it says it holds, each module's file, and how both are written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias, final, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.files.staging import file_sha256, write_atomically
from riemerge.formats.files.tensor_file import open_tensors, reading, why_not_finite
from riemerge.formats.files.text import list_names, show, strict_json

Kind: TypeAlias = Literal["fisher", "gram", "covariance"]
KINDS: tuple[Kind, ...] = get_args(Kind)

INDEX = "statistics.json"
_COUNTS = ("tokens", "examples", "loss")


@final
class Request(BaseModel):
    """What a folder of statistics was asked to hold: the content of its `statistics.json`.

    Attributes:
        kinds: Some of `KINDS`.
        examples: The number of examples that was asked for; there may have been fewer.
        seed: The random seed of every pass over the data.
        dtype: The dtype of the stored tensors, by name.
        modules: The shape (m, n) of each weight, by module.
        version: The version of the format.
    """

    model_config = ConfigDict(frozen=True)
    kinds: tuple[Kind, ...]
    examples: int
    seed: int
    dtype: Literal["float32", "float64"]
    modules: Mapping[str, tuple[int, int]]
    version: Literal[1]


@final
@dataclass(frozen=True, eq=False)
class Statistics:
    """A folder of statistics, its tensors read one module at a time. Made by `read_statistics`.

    Attributes:
        path: The path of the folder.
        request: What the folder holds.
    """

    path: Path
    request: Request = field(repr=False)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules, as in the base model, sorted."""
        return tuple(sorted(self.request.modules))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that every module has."""
        return self.request.kinds

    @property
    def sha256(self) -> Mapping[str, str]:
        """The sha256, in hex, of each file of the folder, by file name.

        Raises:
            AdapterError: A file cannot be read.
        """
        with reading(self.path):
            return {name: file_sha256(self.path / name) for name in (INDEX, *map(file_name, self.modules))}

    def problems(self, shapes: Mapping[str, tuple[int, ...]], kinds: Iterable[str]) -> list[str]:
        """Say all that keeps these statistics from serving a merge, from `statistics.json` alone.

        Args:
            shapes: The shape of each update that will be merged, by module.
            kinds: What the method needs.
        """
        shown_kinds = ", ".join(self.kinds)
        problems = [
            f"{self.path}: holds no {kind} (only {shown_kinds}), which the method needs: collect it"
            for kind in kinds
            if kind not in self.kinds
        ]
        if missing := sorted(set(shapes) - set(self.request.modules)):
            problems.append(
                f"{self.path}: has no statistics of {len(missing)} of {len(shapes)} modules that are merged: "
                f"{list_names(missing)}; expected all of them: collect them, or leave these modules out"
            )
        problems += [
            f"{self.path}: {show(module)}: the statistics are of a weight {self.request.modules[module]} "
            f"but the update is {tuple(shape)}: they must agree; were they collected on another model?"
            for module, shape in sorted(shapes.items())
            if module in self.request.modules and tuple(shape) != self.request.modules[module]
        ]
        return problems

    def of(self, module: str, kinds: Sequence[str] | None = None) -> Mapping[str, Tensor]:
        """Read the statistics of one module: each kind, and the counts `tokens`, `examples` and `loss` (0-d).

        Law: bits are those that were stored, on the CPU.

        Args:
            module: One of `modules`.
            kinds: The kinds to return beside the counts; all that there are if None.

        Raises:
            AdapterError: The file is missing, is none of this format, has another shape than it says, holds
                NaN or Inf, or numbers that no data give (negative information, an asymmetric Gram matrix).
            KeyError: The folder has no such module.
        """
        shape = self.request.modules[module]
        path = self.path / file_name(module)
        try:
            file = open_tensors(path)
        except ValueError as error:
            raise AdapterError(f"{path}: cannot be read ({error}): collect the statistics again") from error
        tensors: dict[str, Tensor] = {}
        if not (faults := file.faults()):
            tensors = dict(zip(file.entries, file.read(*file.entries), strict=True))
            faults = _faults(tensors, self.kinds, shape)
        AdapterError.refuse(f"{path}: {fault}; collect the statistics again" for fault in faults)
        if kinds is None:
            kinds = self.kinds
        return MappingProxyType({name: tensors[name] for name in (*kinds, *_COUNTS)})


def shapes_of(shape: tuple[int, int], kinds: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each kind of statistics of a weight (m, n)."""
    m, n = shape
    shapes = {"fisher": (m, n), "gram": (n, n), "covariance": (m, m)}
    return {kind: shapes[kind] for kind in kinds}


def read_statistics(folder: str | os.PathLike[str]) -> Statistics:
    """Open a folder that `collect_statistics` wrote.

    Law: a folder that opens is complete; its tensors are read, and checked, by `Statistics.of`.

    Raises:
        AdapterError: No such folder, one of another kind or version, or one that was not finished.
    """
    path = Path(folder)
    request = read_request(path)
    if request is None:
        raise AdapterError(
            f"{path}: no statistics there: expected a folder with {INDEX}, as collect_statistics writes"
        )
    missing = [module for module in sorted(request.modules) if not (path / file_name(module)).is_file()]
    if missing:
        raise AdapterError(
            f"{path}: {len(missing)} of {len(request.modules)} modules are missing: {list_names(missing)}; "
            "the collection was interrupted: run it again, it goes on from there"
        )
    return Statistics(path, request)


def read_request(folder: Path) -> Request | None:
    """Return what a folder of statistics was asked to hold; None where it has no `statistics.json`.

    Raises:
        AdapterError: The file is there and cannot be understood.
    """
    path = folder / INDEX
    try:
        content = strict_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: {error}; expected the file that collect_statistics writes") from error
    try:
        return Request.model_validate(content)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise AdapterError(
            f"{path}: is not understood ({reasons}); expected version 1, as collect_statistics writes"
        ) from error


def write_module(folder: Path, module: str, tensors: Mapping[str, Tensor]) -> None:
    """Write one module's file, whole or not at all."""
    stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    # One entry alone: safetensors writes several in an order that changes from file to file.
    write_atomically(folder / file_name(module), save(stored, metadata={"format": "pt"}))


def file_name(module: str) -> str:
    """Return the name of a module's file.

    Raises:
        AdapterError: The module's name cannot be that of a file.
    """
    if not module.isprintable() or "/" in module or "\\" in module or not 0 < len(module.encode()) <= 200:
        raise AdapterError(
            f"the module {show(module)} has a name that cannot be that of a file; expected a printable one "
            "of at most 200 bytes without slashes: leave it out"
        )
    return f"{module}.safetensors"


def _faults(tensors: Mapping[str, Tensor], kinds: Iterable[str], shape: tuple[int, int]) -> list[str]:
    """Say all that the tensors of a module's file cannot be."""
    expected = shapes_of(shape, kinds) | dict.fromkeys(_COUNTS, ())
    faults = []
    for name, wanted in expected.items():
        if name not in tensors:
            faults.append(f"holds no {name}, which {INDEX} says it has")
        elif (have := tuple(tensors[name].shape)) != wanted:
            faults.append(f"{name} is {have}: expected {wanted} for a weight {shape}")
        elif why_not_finite(tensors[name]) is not None:
            faults.append(f"{name} holds NaN or Inf: expected finite numbers")
        elif name == "fisher" and bool((tensors[name] < 0).any()):
            faults.append("fisher holds negative numbers: expected means of squares")
        elif name in {"gram", "covariance"} and not torch.equal(tensors[name], tensors[name].mT):
            faults.append(f"{name} is not symmetric")
    return faults
