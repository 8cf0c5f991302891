"""A full checkpoint with an adapter merged into it: a view that computes each tensor when it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d

from riemerge.errors import AdapterError, NumericalError
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint.checkpoint import read_checkpoint
from riemerge.formats.checkpoint.placement import place_modules
from riemerge.formats.checkpoint.settings import is_untied, read_settings
from riemerge.formats.checkpoint.tying import is_embedding, is_head, part_head
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.dialects import read_adapter
from riemerge.formats.files.rounding import why_too_large
from riemerge.formats.files.tensor_file import DTYPES
from riemerge.formats.files.text import show
from riemerge.formats.layers import Convolution, Dora, Embedding, Expert, Layer
from riemerge.formats.peft.saved import find_token_rows, is_token_rows


@final
@dataclass(frozen=True, eq=False)
class PatchedCheckpoint(Checkpoint):
    """A full checkpoint with the updates of an adapter added to it. Made by `patch` and `read_patched`.

    Tensors that the adapter saved whole (heads) stand in place of those of the base model, or beside them.

    Law: every tensor is that of PEFT's `merge_and_unload`, bit for bit, where both compute B @ A with the
    same BLAS and number of threads. PEFT computes dW = s·(B @ A) in float32 (in float64 for a float64
    weight), adds it to the weight in that dtype, and rounds the sum once to the dtype of the weight.

    Cost: of one tensor at a time the weight, and dW in float32; the last tensor stays, in its dtype.

    Source: PEFT 0.21.2, `LoraModel.merge_and_unload` of a model loaded by `PeftModel.from_pretrained`.

    Attributes:
        base: The checkpoint that is patched; it may be a view itself.
        adapter: The adapter that is merged into it.
        patches: The modules of the adapter that are added to each tensor, by its name.
        tokens: The rows that the adapter has of an embedding, by its name: the name of their tensor, and
            their numbers.
        untied: The embeddings of the base model that heads are, by the name of the head, which the adapter
            has parted from its embedding.
    """

    base: Checkpoint
    adapter: Adapter
    patches: Mapping[str, tuple[str, ...]] = field(repr=False)
    tokens: Mapping[str, tuple[str, list[int]]] = field(repr=False)
    untied: Mapping[str, str] = field(repr=False)

    @cached_property
    def parts_head(self) -> bool:
        """Whether its head is no longer the embedding, though the settings of the base model may say so."""
        settings, saved = read_settings(self.base), self.adapter.saved
        if not settings or is_untied(settings):
            return False
        trained = any(is_head(name) or is_embedding(name) for name in saved)
        return trained and any(map(is_head, self.names)) and not self.adapter.config.ensure_weight_tying

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
        if name in self._changed:
            return self.path
        return self.base.source(self.untied.get(name, name))

    def _read(self, name: str, rows: Sequence[range] | None) -> Tensor:
        if name not in self._changed:
            return self.base.tensor(self.untied.get(name, name), dtype=None, rows=rows)
        merged = self._last(name)
        if rows is None:
            return merged.clone()
        return torch.cat([merged[run.start : run.stop] for run in rows])

    @cached_property
    def _changed(self) -> frozenset[str]:
        """The names of the tensors that are not those of the base model, or are compared with them."""
        return frozenset({*self.patches, *self.tokens, *self.adapter.saved, *self.adapter.base_weights})

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
        if name in self.adapter.saved:
            return self.adapter.tensor(name).to(self.dtypes[name])
        weight = self.base.tensor(self.untied.get(name, name), dtype=None)
        if name in self.tokens:
            rows, numbers = self.tokens[name]
            weight[numbers] = self.adapter.tensor(rows).to(weight.dtype)
            return weight
        if name in self.adapter.base_weights and not torch.equal(
            self.adapter.tensor(name).to(weight.dtype), weight
        ):
            raise AdapterError(
                f"{self.adapter.path}: {show(name)}: was saved with other values than {self.base.path} has: "
                "expected the weight of the base model: is it the one of this adapter?"
            )
        if name not in self.patches:
            return weight
        exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
        layers = {module: self.adapter.layers[module] for module in self.patches[name]}
        if len(layers) > 1:
            experts = [(layer, self._sides(module, exact.dtype)) for module, layer in layers.items()]
            changes = _multiply_experts(experts)
        else:
            ((module, layer),) = layers.items()
            sides = self._sides(module, exact.dtype)
            if isinstance(layer, Dora):
                return _scale(layer, exact, sides)
            changes = {layer: _multiply(layer, sides)}
        for layer, change in changes.items():
            if isinstance(layer, Embedding | Expert):
                layer.view(exact).add_(change.to(dtype or weight.dtype))
            else:
                layer.view(exact).add_(change)
        return exact

    def _sides(self, module: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the stored tensors of a module in the dtype that PEFT computes in."""
        return {side: tensor.to(dtype) for side, tensor in self.adapter.sides(module).items()}


# Each by PEFT's own operation, since others round in another order.


def _multiply(layer: Layer, sides: Mapping[str, Tensor]) -> Tensor:
    """Return s·B·A, (m, n)."""
    if isinstance(layer, Convolution) and (layer.stored_shape[2:] != (1, 1)):
        convolve = (conv1d, conv2d, conv3d)[len(layer.stored_shape) - 3]
        kernel = convolve(sides["A"].transpose(0, 1), sides["B"]).transpose(0, 1)
        return kernel.reshape(layer.shape).mul_(layer.scale)
    b, a = layer.factors(sides)
    return (b @ a).mul_(layer.scale)


def _multiply_experts(experts: Sequence[tuple[Layer, Mapping[str, Tensor]]]) -> dict[Layer, Tensor]:
    """Return s·B·A, (m, n), of each expert of a parameter."""
    factors = [layer.factors(sides) for layer, sides in experts]
    b, a = torch.stack([b for b, _ in factors], dim=-1), torch.stack([a for _, a in factors])
    whole = torch.einsum("ore,eri->eoi", b, a)
    return {layer: change.mul_(layer.scale) for (layer, _), change in zip(experts, whole, strict=True)}


def _scale(layer: Dora, weight: Tensor, sides: Mapping[str, Tensor]) -> Tensor:
    """Return W0 + s·B·A with rows of the lengths that DoRA says, as the base model stores it."""
    layer.view(weight).add_(_multiply(layer.plain, sides))
    magnitude = sides["magnitude"]
    if isinstance(layer.plain, Convolution):
        lengths = torch.linalg.vector_norm(weight, dim=[*range(1, weight.ndim)], keepdim=True)
        return weight.mul_(magnitude.view(lengths.shape) / lengths)
    rows = layer.view(weight)
    rows.mul_((magnitude.flatten() / torch.linalg.vector_norm(rows, dim=1)).unsqueeze(1))
    return weight


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
        AdapterError: The adapter does not fit the checkpoint (see `place_modules`), or parts a head from its
            embedding that has no name (see `part_head`).
    """
    adapter, placed = place_modules(base, adapter)
    # A head that the base model lacks comes to it in the dtype of its other weights.
    floats = {base.dtypes[name] for name in base.modules}
    shapes, dtypes = dict(base.shapes), dict(base.dtypes)
    tokens = _place_tokens(base, adapter, placed)
    beside = adapter.saved.keys() - base.shapes.keys() - {rows for rows, _ in tokens.values()}
    for name in beside:
        entry = adapter.saved[name]
        shapes[name], dtypes[name] = entry.shape, DTYPES[entry.dtype]
        if len(floats) == 1 and dtypes[name].is_floating_point:
            (dtypes[name],) = floats
    untied = part_head(base, adapter)
    shapes |= {head: base.shapes[embedding] for head, embedding in untied.items()}
    dtypes |= {head: base.dtypes[embedding] for head, embedding in untied.items()}
    return PatchedCheckpoint(
        path=Path(f"{base.path}+{adapter.path}"),
        shapes=MappingProxyType(dict(sorted(shapes.items()))),
        dtypes=MappingProxyType(dict(sorted(dtypes.items()))),
        other_files=base.other_files,
        base=base,
        adapter=adapter,
        patches=MappingProxyType(placed),
        tokens=MappingProxyType(tokens),
        untied=MappingProxyType(untied),
    )


def _place_tokens(
    base: Checkpoint, adapter: Adapter, placed: Collection[str]
) -> dict[str, tuple[str, list[int]]]:
    """Return the rows of trained tokens by the embedding that they belong to.

    Raises:
        AdapterError: The base model lacks the embedding or some of its rows, or the adapter changes it twice.
    """
    tokens: dict[str, tuple[str, list[int]]] = {}
    problems = []
    for rows in filter(is_token_rows, adapter.saved):
        weight, numbers = find_token_rows(rows, adapter.config)
        shape, own = base.shapes.get(weight, ()), adapter.saved[rows].shape
        if len(shape) != 2 or own != (len(numbers), shape[1]) or max(numbers, default=0) >= shape[0]:
            problems.append(
                f"{adapter.path}: {show(rows)}: is {own}, rows {numbers} of {weight} "
                f"(trainable_token_indices), which is {shape} in {base.path}: is it the base model of this "
                "adapter?"
            )
        elif weight in placed:
            problems.append(f"{adapter.path}: {show(weight)}: has trained rows and factors: leave one out")
        tokens[weight] = rows, numbers
    AdapterError.refuse(problems)
    return tokens
