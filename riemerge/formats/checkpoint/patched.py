"""A full checkpoint with an adapter merged into it: a view that computes each tensor when it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d

from riemerge.errors import NumericalError
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint.checkpoint import read_checkpoint
from riemerge.formats.checkpoint.placement import place_modules
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.dialects import read_adapter
from riemerge.formats.files.rounding import why_too_large
from riemerge.formats.files.text import show
from riemerge.formats.layers import Convolution, Embedding, Expert, Layer
from riemerge.updates.low_rank import LowRankUpdate


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
        patches: The layers that are added to each tensor, by its name and by the module of the adapter.
    """

    base: Checkpoint
    adapter: Adapter
    patches: Mapping[str, Mapping[str, Layer]] = field(repr=False)

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

    def exact(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return one tensor before it is rounded: in float32, or in float64 for a float64 weight.

        Args:
            name: One of `names`; a tensor that the adapter leaves alone is returned as it is stored.
            dtype: The float dtype that it is rounded to next [default: its own], to which PEFT rounds the
                updates of embeddings and of experts before it adds them.

        Raises:
            AdapterError: The tensor or the update holds NaN or Inf, or a file is no longer the one that was
                checked.
        """
        weight = self.base.tensor(name, dtype=None)
        if name not in self.patches:
            return weight
        exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
        layers = self.patches[name]
        updates = [self.adapter.update(module, dtype=exact.dtype) for module in layers]
        for layer, change in _changes([*zip(layers.values(), updates, strict=True)]):
            rounded = change
            if isinstance(layer, Embedding | Expert):
                rounded = change.to(dtype or weight.dtype)
            layer.view(exact).add_(rounded)
        return exact


def _changes(pairs: Sequence[tuple[Layer, LowRankUpdate]]) -> Iterator[tuple[Layer, Tensor]]:
    """Yield s·(B @ A), (m, n), of each layer of a tensor, by PEFT's operations: others round differently."""
    experts = {layer.index: (layer, update) for layer, update in pairs if isinstance(layer, Expert)}
    if len(experts) < 2:
        for layer, update in pairs:
            yield layer, _multiply(layer, update).mul_(update.scale)
        return
    ordered = [experts[index] for index in sorted(experts)]
    b = torch.stack([update.B for _, update in ordered], dim=-1)
    a = torch.stack([update.A for _, update in ordered])
    whole = torch.einsum("ore,eri->eoi", b, a)
    yield from ((layer, whole[layer.index].mul_(update.scale)) for layer, update in ordered)


def _multiply(layer: Layer, update: LowRankUpdate) -> Tensor:
    """Return B @ A (m, n) by PEFT's operation."""
    if isinstance(layer, Convolution):
        stored = layer.store(update)
        if (axes := len(layer.stored_shape) - 2) != 2 or layer.stored_shape[2:] != (1, 1):
            convolve = (conv1d, conv2d, conv3d)[axes - 1]
            return convolve(stored["A"].transpose(0, 1), stored["B"]).transpose(0, 1).reshape(layer.shape)
    return update.B @ update.A


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
        AdapterError: What `read_checkpoint`, `read_adapter`, `Adapter.rename` and `patch` refuse.
    """
    return patch(read_checkpoint(base), read_adapter(adapter).rename(rename or {}))


def patch(base: Checkpoint, adapter: Adapter) -> PatchedCheckpoint:
    """Merge an open adapter into an open checkpoint: nothing is computed until a tensor is read.

    Args:
        base: The checkpoint; it may be a view.
        adapter: The adapter.

    Raises:
        AdapterError: The adapter does not fit the checkpoint (see `place_modules`).
    """
    placed = place_modules(base, adapter)
    return PatchedCheckpoint(
        path=Path(f"{base.path}+{adapter.path}"),
        shapes=base.shapes,
        dtypes=base.dtypes,
        other_files=base.other_files,
        base=base,
        adapter=adapter,
        patches=MappingProxyType(placed),
    )
