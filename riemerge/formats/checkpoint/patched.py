"""A full checkpoint with an adapter merged into it: a view that computes each tensor when it is read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from riemerge.errors import AdapterError, NumericalError
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint.checkpoint import read_checkpoint
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.dialects import read_adapter
from riemerge.formats.files.rounding import why_too_large
from riemerge.formats.files.text import list_names, show

WEIGHT = ".weight"


@final
@dataclass(frozen=True, eq=False)
class PatchedCheckpoint(Checkpoint):
    """A full checkpoint with the updates of an adapter added to it. Made by `patch` and `read_patched`.

    Law: every tensor is that of PEFT's `merge_and_unload`, bit for bit, where both compute B @ A with the
    same BLAS and number of threads. PEFT computes dW = s·(B @ A) in float32 (in float64 for a float64
    weight), adds it to the weight in that dtype, and rounds the sum once to the dtype of the weight.

    Cost: of one tensor at a time the weight, and dW in float32; the last tensor stays, in its dtype.

    Source: PEFT 0.21.2, `LoraModel.merge_and_unload` of a model loaded by `PeftModel.from_pretrained`.

    Attributes:
        base: The checkpoint that is patched; it may be a view itself.
        adapter: The adapter that is merged into it.
        patches: The module of the adapter that each tensor belongs to, by the name of the tensor.
    """

    base: Checkpoint
    adapter: Adapter
    patches: Mapping[str, str] = field(repr=False)

    @property
    def name(self) -> str:
        """The names of the checkpoint and of the adapter, as a recipe joins them: `base+adapter`."""
        return f"{self.base.name}+{self.adapter.name}"

    @cached_property
    def sha256(self) -> Mapping[str, str]:
        """The sha256, in hex, of each file that enters the tensors; those of the adapter behind its name.

        Raises:
            AdapterError: A file is no longer the one that was checked.
        """
        own = {f"{self.adapter.name}/{file}": digest for file, digest in self.adapter.sha256.items()}
        return MappingProxyType({**self.base.sha256, **own})

    def source(self, name: str) -> Path:
        """Return the file of a tensor that the adapter leaves alone, else the path of the view."""
        if name in self.patches:
            return self.path
        return self.base.source(name)

    def _read(self, name: str, rows: Sequence[range] | None) -> Tensor:
        if name not in self.patches:
            return self.base.tensor(name, dtype=None, rows=rows)
        merged = self._last(name)
        if rows is None:
            return merged.clone()
        return torch.cat([merged[run.start : run.stop] for run in rows])

    @cached_property
    def _last(self) -> Callable[[str], Tensor]:
        """Merges a patched tensor, and keeps the last: its rows are asked for one after the other."""
        return lru_cache(maxsize=1)(self._merge)

    def _merge(self, name: str) -> Tensor:
        exact, dtype = self.exact(name), self.dtypes[name]
        merged = exact.to(dtype)
        if not torch.isfinite(merged).all():
            largest = float(exact.abs().max())
            raise NumericalError(f"{self.path}: {show(name)}: reaches {why_too_large(largest, dtype)}")
        return merged

    def is_turned(self, name: str) -> bool:
        """Return whether a patched tensor is stored as inputs by outputs."""
        return self.adapter.config.fan_in_fan_out

    def exact(self, name: str) -> Tensor:
        """Return one tensor before it is rounded to its dtype: in float32, or float64 for a float64 weight.

        Args:
            name: One of `names`; a tensor that the adapter leaves alone is returned as it is stored.

        Raises:
            AdapterError: The tensor or the update holds NaN or Inf, or a file is no longer the one that was
                checked.
        """
        weight = self.base.tensor(name, dtype=None)
        if (module := self.patches.get(name)) is None:
            return weight
        update = self.adapter.update(module, dtype=torch.promote_types(weight.dtype, torch.float32))
        product = update.B @ update.A
        if self.is_turned(name):
            product = product.mT
        return product.mul_(update.scale).add_(weight).contiguous()


def read_patched(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    rename: Mapping[str, str] | None = None,
) -> PatchedCheckpoint:
    """Open a full checkpoint and an adapter, and merge the adapter into the checkpoint as it is read.

    Args:
        base: The folder or file of the checkpoint (see `read_checkpoint`).
        adapter: The folder of the adapter (see `read_adapter`).
        rename: New prefixes of module names by the prefixes that the adapter has.

    Raises:
        AdapterError: What `read_checkpoint`, `read_adapter` and `patch` refuse.
    """
    return patch(read_checkpoint(base), read_adapter(adapter), rename)


def patch(base: Checkpoint, adapter: Adapter, rename: Mapping[str, str] | None = None) -> PatchedCheckpoint:
    """Merge an open adapter into an open checkpoint: nothing is computed until a tensor is read.

    Args:
        base: The checkpoint; it may be a view.
        adapter: The adapter.
        rename: New prefixes of module names by the prefixes that the adapter has.

    Raises:
        AdapterError: The checkpoint lacks the weight of a module, or has it in another shape or as integers,
            or two modules have one name: all such modules are named.
    """
    names = {module: rename_module(module, rename or {}) for module in adapter.modules}
    problems = [
        f"{adapter.path}: {count} modules are called {show(name)} after --rename: expected different names"
        for name, count in Counter(names.values()).items()
        if count > 1
    ]
    if lacking := [name for name in names.values() if name + WEIGHT not in base.shapes]:
        problems.append(
            f"{base.path}: has no weight for {len(lacking)} of {len(names)} modules of {adapter.path}: "
            f"{list_names(lacking)}{_hint(base, names.values(), lacking)}"
        )
    turned = adapter.config.fan_in_fan_out
    for module, name in names.items():
        weight, (outputs, inputs) = name + WEIGHT, adapter.shape(module)
        expected = (outputs, inputs)
        if turned:
            expected = (inputs, outputs)
        if base.shapes.get(weight, expected) != expected:
            problems.append(
                f"{base.path}: {show(weight)}: is {base.shapes[weight]}, but the update of {adapter.path} is "
                f"{expected}: is it the base model of this adapter?"
            )
        elif not base.dtypes.get(weight, torch.float32).is_floating_point:
            problems.append(
                f"{base.path}: {show(weight)}: is stored as {base.dtypes[weight]}: expected a float to add "
                "an update to: dequantise the base model first"
            )
    AdapterError.refuse(problems)
    return PatchedCheckpoint(
        path=Path(f"{base.path}+{adapter.path}"),
        shapes=base.shapes,
        dtypes=base.dtypes,
        other_files=base.other_files,
        base=base,
        adapter=adapter,
        patches=MappingProxyType({name + WEIGHT: module for module, name in names.items()}),
    )


def rename_module(module: str, prefixes: Mapping[str, str]) -> str:
    """Return the name of a module with its prefix replaced: the longest of those that it starts with."""
    old = max(filter(module.startswith, prefixes), key=len, default="")
    return prefixes.get(old, "") + module.removeprefix(old)


def _hint(base: Checkpoint, names: Collection[str], lacking: Collection[str]) -> str:
    """Say what keeps modules from having a weight, as the end of a message.

    Args:
        base: The checkpoint.
        names: The names of all modules.
        lacking: The names of the modules without a weight.
    """
    present = {tensor.removesuffix(WEIGHT) for tensor in base.names if tensor.endswith(WEIGHT)}
    for old, new in _prefixes(min(lacking), present):
        renamed = [rename_module(name, {old: new}) for name in names]
        if present.issuperset(renamed) and len({*renamed}) == len(renamed):
            return f"; they are there but for the prefix: --rename {old}={new}"
    if all(name.endswith("lm_head") for name in lacking):
        return (
            "; its output layer is tied to the embeddings, and PEFT's merge would change both: save the base "
            "model with a weight of its own for it (tie_word_embeddings false)"
        )
    return "; is it the base model of this adapter?"


def _prefixes(name: str, present: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield prefixes of a name whose exchange makes it one that is present, the shortest first.

    Law: none has a number in it: a layer is no prefix.
    """
    for start in (0, *(place + 1 for place, letter in enumerate(name) if letter == ".")):
        tail = name[start:]
        ends = (known for known in sorted(present) if f".{known}".endswith(f".{tail}"))
        pairs = ((name[:start], known.removesuffix(tail)) for known in ends)
        yield from (pair for pair in pairs if not re.search(r"\d", "".join(pair)))
