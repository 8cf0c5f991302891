"""What a dialect is: what recognises, reads and writes adapters; and what dialects of one file share."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter, kinds_of
from riemerge.formats.files.rounding import Rounding
from riemerge.formats.files.staging import NewFolder, Text, check_output, check_read_back
from riemerge.formats.files.tensor_file import (
    DTYPES,
    FLOATS,
    Entry,
    TensorFile,
    as_safetensors,
    open_tensors,
    reading,
)
from riemerge.formats.files.text import list_names, show
from riemerge.formats.layers import Convolution, Layer, Linear
from riemerge.formats.peft.config import AdapterConfig
from riemerge.formats.rounded_updates import round_all
from riemerge.updates.low_rank import LowRankUpdate

Modules: TypeAlias = Mapping[str, Mapping[str, Entry]]
"""The tensors of each module by side, by the name of the module."""

ALPHA = "alpha"
"""The side of a module that is no factor: the number alpha of its scale alpha / rank."""

BASE_KEY = "ss_base_model_version"
"""The key of the base model's name in the header, as kohya's trainers write it."""

# What is true of one file alone: its settings, its size, and hashes of what is in it.
_OF_ONE_FILE = {
    "format",
    "lora_adapter_metadata",
    "ss_network_dim",
    "ss_network_alpha",
    "sshs_model_hash",
    "sshs_legacy_hash",
}


class Dialect(ABC):
    """A way to store an adapter in files.

    Law: what `write` writes `read` reads, with dW bit for bit as it was stored.

    Attributes:
        name: The name of the dialect, as `--to` takes it.
    """

    name: ClassVar[str]

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Return whether a path holds an adapter of this dialect, by the names of files and tensors alone."""

    @abstractmethod
    def read(self, path: Path) -> Adapter:
        """Open the adapter and check all that its settings and the header of its tensors can tell.

        Raises:
            AdapterError: With every problem found.
        """

    @abstractmethod
    def write(
        self,
        target: str | os.PathLike[str],
        updates: Mapping[str, LowRankUpdate],
        *,
        like: Sequence[Adapter],
        dtype: torch.dtype,
        **settings: Any,
    ) -> dict[str, float]:
        """Write updates as an adapter of this dialect, all or nothing (see `write_peft`)."""


class Facts(NamedTuple):
    """What a file, or the settings beside it, say of an adapter.

    Attributes:
        config: The facts in PEFT's words.
        scales: The scale of modules, by name; alpha / rank where it is not said, and 1 without alpha.
        ranks: The rank that is said of modules, by name.
        problems: What is wrong with the facts.
        sha256: The sha256 of each file of settings, by name.
        dialect: The dialect of the names of modules, if it is not the reader's.
    """

    config: AdapterConfig
    scales: Mapping[str, float] = MappingProxyType({})
    ranks: Mapping[str, int] = MappingProxyType({})
    problems: Sequence[str] = ()
    sha256: Mapping[str, str] = MappingProxyType({})
    dialect: str | None = None


class OneFileReader(ABC):
    """A reader of factors that lie in one safetensors file, under keys that name a module and a side of it.

    Attributes:
        name: The name of the dialect.
    """

    name: ClassVar[str]

    @abstractmethod
    def find(self, path: Path) -> Path | None:
        """Return the file of tensors of an adapter of this dialect; None where there is none."""

    @abstractmethod
    def parse(self, key: str) -> tuple[str, str]:
        """Return the module and the side that a key names.

        Raises:
            ValueError: The key names none; the text says what it is instead.
        """

    @abstractmethod
    def facts(self, path: Path, tensors: TensorFile, modules: Modules) -> Facts:
        """Return what is said of modules, beside their factors."""

    @abstractmethod
    def layer(self, module: str, sides: Mapping[str, Entry], scale: float) -> Layer:
        """Return the layer that tensors by side make.

        Raises:
            ValueError: The tensors make none.
        """

    @final
    def read(self, path: Path) -> Adapter:
        """Open the adapter and check all that its settings and the header of its tensors can tell.

        Law: the numbers alpha are read at once, the factors when they are asked for.

        Raises:
            AdapterError: With every problem found.
        """
        with reading(path):
            file = self.find(path)
        assert file is not None
        try:
            tensors = open_tensors(file)
        except ValueError as error:
            raise AdapterError(f"{file}: {error}") from error
        faults = tensors.faults()
        modules, others = self._sort(tensors, faults)
        faults += [
            f"{len(keys)} of {len(tensors.entries)} tensors are {why}: {list_names(keys)}"
            for why, keys in others.items()
        ]
        if not modules and not faults:
            faults.append("holds no tensors")
        facts = self.facts(path, tensors, modules)
        faults += facts.problems
        AdapterError.refuse(f"{file}: {fault}" for fault in faults)
        alphas = read_alphas(tensors, modules)
        layers = {}
        for module, sides in modules.items():
            try:
                factors = {side: entry for side, entry in sides.items() if side != ALPHA}
                bare = self.layer(module, factors, 1.0)
                scale = alphas.get(module, bare.rank) / bare.rank
                scale = facts.scales.get(module, scale)
                if (said := facts.ranks.get(module, bare.rank)) != bare.rank:
                    raise ValueError(f"the factors have rank {bare.rank} but its settings say {said}")
                _check_scale(scale)
                layers[module] = self.layer(module, factors, scale)
            except ValueError as error:
                faults.append(f"{show(module)}: {error}")
        AdapterError.refuse(f"{file}: {fault}" for fault in faults)
        return Adapter(
            path=path,
            dialect=facts.dialect or self.name,
            config=facts.config,
            layers=MappingProxyType(layers),
            saved=MappingProxyType({}),
            base_weights=MappingProxyType({}),
            _tensors=tensors,
            _settings_sha256=facts.sha256,
        )

    def _sort(
        self, tensors: TensorFile, faults: list[str]
    ) -> tuple[dict[str, dict[str, Entry]], dict[str, list[str]]]:
        """Return the tensors of each module by side, modules sorted, and what the other tensors are."""
        modules: dict[str, dict[str, Entry]] = defaultdict(dict)
        others: dict[str, list[str]] = defaultdict(list)
        for key, entry in tensors.entries.items():
            try:
                module, side = self.parse(key)
            except ValueError as error:
                others[str(error)].append(key)
                continue
            first = modules[module].setdefault(side, entry)
            if first is not entry:
                faults.append(f"{show(module)}: is stored twice, as {show(first.name)} and as {show(key)}")
        return dict(sorted(modules.items())), others


class OneFile(OneFileReader, Dialect):
    """A dialect of one safetensors file (see `OneFileReader`).

    Attributes:
        file: The name of the file that is written.
        kinds: The kinds of layers that can be written.
        one_rank: Whether all modules must have one rank: they get columns of zero behind their own.
    """

    file: ClassVar[str]
    kinds: ClassVar[tuple[type[Layer], ...]]
    one_rank: ClassVar[bool] = False

    @abstractmethod
    def pack(self, updates: Mapping[str, LowRankUpdate], layers: Mapping[str, Layer]) -> dict[str, Tensor]:
        """Return the tensors that hold updates, by key.

        Args:
            updates: The updates by module, in the dtype that is written.
            layers: The kinds of layers by module; a linear layer where a module has none.

        Raises:
            AdapterError: The dialect cannot say it.
        """

    @abstractmethod
    def describe(
        self, updates: Mapping[str, LowRankUpdate], like: Sequence[Adapter]
    ) -> tuple[dict[str, str], dict[str, bytes]]:
        """Return the texts in the header of the file, by key, and the files of settings, by name."""

    @final
    def recognises(self, path: Path) -> bool:
        """Return whether a path holds an adapter of this dialect, by the names of files and tensors alone."""
        return self.find(path) is not None

    @final
    def write(
        self,
        target: str | os.PathLike[str],
        updates: Mapping[str, LowRankUpdate],
        *,
        like: Sequence[Adapter],
        dtype: torch.dtype,
        rounding: Mapping[str, Rounding] | None = None,
        saved: Mapping[str, Tensor] | None = None,
        extra_files: Mapping[str, Text] | None = None,
        **beside: Any,
    ) -> dict[str, float]:
        """Write updates as a folder with one file of tensors, all or nothing (see `write_peft`).

        Law: the scale of an update is written as it is.

        Raises:
            AdapterError: The dialect has no words for a module.
            RiemergeError: What `write_peft` raises.
        """
        if not updates:
            raise ValueError("no update to write")
        if any(beside.values()):
            raise AdapterError(
                f"{self.name} has no place for what is saved beside factors (heads, biases, trained tokens): "
                "--heads drop leaves it out, and --to peft writes it"
            )
        check_output(target, [])
        if rounding is None:
            rounded = round_all(updates, dtype)
            updates, rounding = rounded.updates, rounded.roundings
        updates = dict(sorted(updates.items()))
        if self.one_rank:
            rank = max(update.rank for update in updates.values())
            updates = {module: update.pad(rank) for module, update in updates.items()}
        layers = kinds_of(like)
        AdapterError.refuse(
            f"{show(module)}: is {layers[module].layout}: {self.name} has no such layers: write it as peft"
            for module in updates
            if not isinstance(layers.get(module, Linear({}, 1.0)), self.kinds)
        )
        AdapterError.refuse(
            f"{show(name)}: is saved whole: {self.name} has factors only: write it as peft"
            for name in saved or ()
        )
        tensors = self.pack(updates, layers)
        header, settings = self.describe(updates, like)
        with closing(NewFolder(target)) as new:
            new.write(self.file, as_safetensors(tensors, header))
            for name, content in settings.items():
                new.write(name, content)
            for name, text in (extra_files or {}).items():
                new.add(name, text)
            new.publish(lambda folder: check_read_back(_differing(self.read(folder), updates)))
        return {module: rounding[module].error for module in sorted(rounding)}


def join(sides: Mapping[str, Entry], scale: float, names: Mapping[str, str]) -> Layer:
    """Return the layer of factors A (r, n) and B (m, r).

    Args:
        sides: The stored factors by side.
        scale: The scale of the layer.
        names: What the dialect calls the sides.

    Raises:
        ValueError: The tensors make none.
    """
    if missing := [name for side, name in names.items() if side not in sides]:
        raise ValueError(f"has no {', '.join(missing)}: both factors are needed")
    a, b = sides["A"], sides["B"]
    if unknown := sorted({entry.dtype for entry in sides.values()} - set(FLOATS)):
        raise ValueError(f"is stored as {', '.join(unknown)}: expected one of {', '.join(FLOATS)}")
    both = f"{names['A']} is {a.shape} and {names['B']} is {b.shape}"
    if 0 in a.shape + b.shape:
        raise ValueError(f"{both}: they must not be empty")
    fit = len(a.shape) == len(b.shape) >= 2 and a.shape[0] == b.shape[1]
    if not fit or {*b.shape[2:]} - {1}:
        raise ValueError(f"{both}: expected (r, inputs, kernel...) and (outputs, r, 1...)")
    if len(a.shape) == 2:
        return Linear(sides, scale)
    return Convolution(sides, scale)


def find_base(like: Sequence[Adapter]) -> str | None:
    """Return the base model that all adapters name, but for those that name none."""
    bases = {adapter.config.base_model_name_or_path for adapter in like} - {None}
    return bases.pop() if len(bases) == 1 else None


def carry_header(like: Sequence[Adapter]) -> dict[str, str]:
    """Return the texts in which the headers of all adapters agree, less what is true of one file alone."""
    common = [set(adapter.header.items()) for adapter in like]
    texts = dict(set.intersection(*common)) if common else {}
    return {key: text for key, text in texts.items() if key not in _OF_ONE_FILE}


def read_alphas(tensors: TensorFile, modules: Modules) -> dict[str, float]:
    """Return the number alpha of each module that has one.

    Raises:
        AdapterError: An alpha is no number.
    """
    entries = {module: sides[ALPHA] for module, sides in modules.items() if ALPHA in sides}
    AdapterError.refuse(
        f"{tensors.path}: {show(entry.name)} is {entry.dtype} of shape {entry.shape}: expected one number"
        for entry in entries.values()
        if math.prod(entry.shape) != 1 or entry.dtype not in DTYPES
    )
    values = tensors.read(*(entry.name for entry in entries.values()))
    return {module: float(value) for module, value in zip(entries, values, strict=True)}


def _check_scale(scale: float) -> None:
    if not math.isfinite(scale) or scale == 0.0:
        raise ValueError(
            f"alpha gives a scale of {scale}: expected a number other than 0, which some programs read as "
            "alpha = rank and others as no update"
        )


def _differing(adapter: Adapter, stored: Mapping[str, LowRankUpdate]) -> Iterator[str]:
    """Yield the modules that do not read back, bit for bit, as they were to be written."""
    yield from sorted({*adapter.modules} ^ {*stored})
    for module, update in stored.items():
        read = adapter.update(module, dtype=update.dtype)
        # A scale is alpha / rank, and not every float64 is.
        same = math.isclose(read.scale, update.scale, rel_tol=1e-15)
        if not (same and torch.equal(read.B, update.B) and torch.equal(read.A, update.A)):
            yield module
