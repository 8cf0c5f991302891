"""An adapter as updates, whatever dialect its files speak: checked when opened, read module by module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial, reduce
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, final

import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.files.tensor_file import FLOATS, Entry, TensorFile, why_not_finite
from riemerge.formats.files.text import show
from riemerge.formats.hub import name_model
from riemerge.formats.layers import Dora, Expert, Foreign, Layer, Linear, parent
from riemerge.formats.module_names import rename
from riemerge.formats.peft.config import AdapterConfig
from riemerge.updates.low_rank import LowRankUpdate

if TYPE_CHECKING:  # its package reads adapters
    from riemerge.formats.checkpoint.view import Checkpoint

_Entry = TypeVar("_Entry")

# Squares of what is between these, and sums of 1e20 of them, are numbers of float64.
_LEAST, _MOST = 1e-140, 1e140


@final
@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter whose every setting enters dW exactly. Made by `riemerge.formats.dialects.read_adapter`.

    Modules are named as in the base model. No file stays open; each read fails loudly if the file is no
    longer the one that was checked.

    Attributes:
        path: The folder or file that was given.
        dialect: The name of the dialect in which it is stored, of `riemerge.formats.dialects.DIALECTS`.
        config: What the adapter says of itself, in PEFT's words.
        layers: How each module is stored, by its name, sorted.
        saved: Whole tensors saved beside the factors (heads, biases, trained tokens), by their name in the
            base model.
        base_weights: Weights of the base model that were saved beside the factors, unchanged, by name.
    """

    path: Path
    dialect: str
    config: AdapterConfig
    layers: Mapping[str, Layer]
    saved: Mapping[str, Entry]
    base_weights: Mapping[str, Entry]
    _tensors: TensorFile = field(repr=False)
    _settings_sha256: Mapping[str, str] = field(repr=False)  # by file name
    _sums: Mapping[str, str] | None = field(default=None, repr=False)  # known once they were asked for

    @property
    def name(self) -> str:
        """The name of the folder or file."""
        return name_model(self.path)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules that have an update, sorted."""
        return tuple(self.layers)

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """The rank r of each module."""
        return MappingProxyType({module: layer.rank for module, layer in self.layers.items()})

    @cached_property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds all stored factors exactly."""
        entries = (entry for layer in self.layers.values() for entry in layer.entries.values())
        return reduce(torch.promote_types, (FLOATS[entry.dtype] for entry in entries))

    @property
    def stored(self) -> frozenset[torch.dtype]:
        """The dtype that holds all stored factors, as a set of one: see `Checkpoint.stored`."""
        return frozenset([self.dtype])

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a person may have meant otherwise, where PEFT goes on and so do we."""
        stems = {parent(layer.stem(module)) for module, layer in self.layers.items()}
        return tuple(self.config.notes(sorted(stems)))

    @property
    def header(self) -> Mapping[str, str]:
        """The texts that the file of the tensors holds beside them, by key."""
        return self._tensors.metadata

    @property
    def sha256(self) -> Mapping[str, str]:
        """The sha256, in hex, of each file that enters the updates, by file name.

        Raises:
            AdapterError: The tensors' file is no longer the one that was checked.
        """
        # Not a `cached_property`: in Python 3.11 they lock each other out, and several are hashed at once.
        if self._sums is None:
            tensors = {self._tensors.path.name: self._tensors.sha256()}
            object.__setattr__(self, "_sums", MappingProxyType({**self._settings_sha256, **tensors}))
        assert self._sums is not None
        return self._sums

    def rename(self, prefixes: Mapping[str, str]) -> Adapter:
        """Return the adapter with modules and saved tensors under other names (see `module_names.rename`).

        Law: the updates and the scales are the same; `notes` speak of the names in the file.

        Args:
            prefixes: New prefixes of names by old ones.

        Raises:
            AdapterError: Several names become one, or a name is left empty; all of them are named.
        """
        problems: list[str] = []

        def renew(entries: Mapping[str, _Entry]) -> Mapping[str, _Entry]:
            names = {name: rename(name, prefixes) for name in entries}
            origin: dict[str, str] = {}
            for name, new in names.items():
                if origin.setdefault(new, name) != name:
                    problems.append(f"{self.path}: rename: {origin[new]} and {name} both become {new}")
                if not new:
                    problems.append(f"{self.path}: rename: nothing is left of {name}")
            return MappingProxyType({new: entries[name] for new, name in sorted(origin.items())})

        layers, saved, base_weights = renew(self.layers), renew(self.saved), renew(self.base_weights)
        AdapterError.refuse(problems)
        return self._with(layers=layers, saved=saved, base_weights=base_weights)

    def under(self, names: Mapping[str, str]) -> Adapter:
        """Return the adapter with its modules under other names, given one to one by those that they have."""
        layers = {names[module]: layer for module, layer in self.layers.items()}
        return self._with(layers=MappingProxyType(dict(sorted(layers.items()))))

    def on_base(self, name: str | None) -> Adapter:
        """Return the adapter with another name of its base model."""
        if name == self.config.base_model_name_or_path:
            return self
        return self._with(config=self.config.model_copy(update={"base_model_name_or_path": name}))

    def _with(self, **changes: Any) -> Adapter:
        """Return the same files read otherwise."""
        # What is known of the files is known of all that is read of them.
        other = replace(self, _sums=self.sha256, **changes)
        vars(other).update(notes=self.notes)  # where `cached_property` looks
        return other

    def shape(self, module: str) -> tuple[int, int]:
        """Return the shape (m, n) of dW of this module: outputs by inputs."""
        return self.layers[module].shape

    def update(
        self,
        module: str,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        *,
        narrow: bool = False,
    ) -> LowRankUpdate:
        """Read the update of one module.

        Law: `update(module).dense()` is PEFT's `get_delta_weight` of the loaded adapter (its transpose with
        `fan_in_fan_out`), to round-off of the conversion to `dtype`.

        Args:
            module: One of `modules`.
            dtype: The dtype of the returned factors.
            device: The device of the returned factors.
            narrow: Leave factors as they are stored where `dtype` holds them exactly: a copy costs as much as
                a product.

        Raises:
            AdapterError: A factor holds NaN or Inf, dW is too large or too small to compute with in `dtype`,
                or the file is no longer the one that was checked.
            KeyError: The adapter has no such module.
        """
        layer = self.layers[module]
        tensors = self._read(layer)
        if not isinstance(layer, Linear):
            self._refuse_not_finite(module, tensors)
        try:
            b, a = layer.factors(tensors)
        except AdapterError as fault:
            raise AdapterError(f"{self.path}: {show(module)}: {why}" for why in fault.problems) from None
        largest = _largest(b), _largest(a)
        if not all(map(math.isfinite, largest)):  # those of a linear layer are what was read
            self._refuse_not_finite(module, tensors)
        if (why := _why_out_of_range(*largest, layer.scale, dtype)) is not None:
            raise AdapterError(f"{self.path}: {show(module)}: {why}")
        stored = torch.promote_types(b.dtype, a.dtype)
        if narrow and torch.promote_types(stored, dtype) == dtype:
            dtype = stored
        return LowRankUpdate(b.to(device, dtype), a.to(device, dtype), layer.scale)

    def check(self) -> None:
        """Raise an AdapterError if the file of the tensors is no longer the one that was checked."""
        self._tensors.check()

    def sides(self, module: str) -> dict[str, Tensor]:
        """Read the stored tensors of one module, by side.

        Raises:
            AdapterError: A tensor holds NaN or Inf, or the file is no longer the one that was checked.
            KeyError: The adapter has no such module.
        """
        tensors = self._read(self.layers[module])
        self._refuse_not_finite(module, tensors)
        return tensors

    def _refuse_not_finite(self, module: str, tensors: Mapping[str, Tensor]) -> None:
        """Refuse NaN and Inf in the stored tensors of one module."""
        layer, own = self.layers[module], tensors
        if isinstance(layer, Expert):
            own = layer.store(LowRankUpdate(*layer.factors(tensors)))
        AdapterError.refuse(
            f"{self.path}: {show(module)}: lora_{side} {why}; export the adapter again or leave it out"
            for side, tensor in sorted(own.items())
            if (why := why_not_finite(tensor)) is not None
        )

    def with_layers(self, layers: Mapping[str, Layer]) -> Adapter:
        """Return the adapter with its modules stored in other ways, as only a base model says.

        Args:
            layers: How each module is stored, by its name.
        """
        return self._with(layers=MappingProxyType(dict(layers)))

    def _read(self, layer: Layer) -> dict[str, Tensor]:
        """Read the stored tensors of a layer, by side; those of all experts stay for the next of them."""
        read = self._tensors.read
        if isinstance(layer, Expert):
            read = self._read_shared
        return dict(zip(layer.entries, read(*(entry.name for entry in layer.entries.values())), strict=True))

    @cached_property
    def _read_shared(self) -> Callable[..., tuple[Tensor, ...]]:
        # Read again for each of 128 experts, a layer of Qwen3's took 5.2 s; kept, 0.3 s.
        return lru_cache(maxsize=1)(self._tensors.read)

    def with_base(self, base: Checkpoint) -> Adapter:
        """Return the adapter with what only its base model says: weights for DoRA, layouts of experts.

        Args:
            base: The base model; it is read when an update is.

        Raises:
            AdapterError: The base model lacks tensors that the adapter is for, or has them in other shapes.
        """
        layers, problems = dict(self.layers), []
        for module, layer in self.layers.items():
            try:
                if isinstance(layer, Dora):
                    layers[module] = _on_weight(module, layer, base)
                elif isinstance(layer, Expert):
                    layers[module] = _on_parameter(module, layer, base)
            except ValueError as why:
                problems.append(f"{self.path}: {show(module)}: {why}: is {base.path} its base model?")
        AdapterError.refuse(problems)
        return self.with_layers(layers)

    def tensor(self, name: str) -> Tensor:
        """Read a tensor of `saved` or `base_weights` as it is stored.

        Raises:
            AdapterError: The tensor holds NaN or Inf, or the file is no longer the one that was checked.
            KeyError: No such tensor.
        """
        entry = {**self.saved, **self.base_weights}[name]
        (tensor,) = self._tensors.read(entry.name)
        if tensor.is_floating_point() and (why := why_not_finite(tensor)) is not None:
            raise AdapterError(f"{self.path}: {show(name)} {why}; export the adapter again or leave it out")
        return tensor


def kinds_of(adapters: Sequence[Adapter]) -> dict[str, Layer]:
    """Return the layer of each module in the first adapter that has it, as PEFT stores it without DoRA."""
    kinds: dict[str, Layer] = {}
    for adapter in reversed(adapters):
        for module, layer in adapter.layers.items():
            kinds[module] = layer
            if isinstance(layer, Foreign | Dora):
                kinds[module] = layer.plain
    return kinds


def _on_weight(module: str, layer: Dora, base: Checkpoint) -> Layer:
    """Return a layer of DoRA with the weight that it is for; ValueError says why it is not that of a base."""
    name, expected = layer.weight(module), layer.stored_shape
    if base.shapes.get(name) != expected or name not in base.modules:
        raise ValueError(f"expected {show(name)} of shape {expected}, of floats, as its base weight")
    return replace(layer, base=partial(base.tensor, name))


def _on_parameter(module: str, layer: Expert, base: Checkpoint) -> Layer:
    """Return an expert with its parameter and layout, as far as a base tells; ValueError if none fits."""
    owner = parent(layer.stem(module))
    ways = [False, True][: min(layer.count, 2)]
    fitting = [
        (name, turned)
        for name in layer.parameters
        for turned in ways
        if base.shapes.get(f"{owner}.{name}") == replace(layer, turned=turned).stored_shape
    ]
    if any(name.startswith(f"{owner}.0.") for name in base.shapes):
        raise ValueError(
            "the files of the base model hold each expert apart, and transformers joins them as it loads: "
            "merge to an adapter, whose layout does not depend on that"
        )
    if not fitting:
        raise ValueError(
            f"expected {' or '.join(layer.parameters)} of {layer.count} experts of {layer.shape} as its base "
            "weight"
        )
    names = tuple(sorted({name for name, _ in fitting}))
    (turned, *others) = {turned for _, turned in fitting}
    if others:
        return replace(layer, parameters=names)
    return replace(layer, parameters=names, turned=turned)


def _largest(factor: Tensor) -> float:
    """Return the largest magnitude of a factor, NaN where it holds one, by one pass without a copy."""
    ends = [abs(float(end)) for end in torch.aminmax(factor)]
    return math.nan if any(map(math.isnan, ends)) else max(ends)


def _why_out_of_range(left: float, right: float, scale: float, dtype: torch.dtype) -> str | None:
    """Say why dW of factors of such largest magnitudes cannot be computed with: it, or a square of it,
    overflows or vanishes; None if it can.
    """
    most = torch.finfo(dtype).max
    if max(left, right) > most:
        return f"the factors reach {max(left, right):.3g}, but the largest {dtype} is {most:.3g}: use float64"
    # A product of numbers that are not 0 is 0 where it vanishes.
    product = left * right * abs(scale)
    if 0.0 in {left, right, scale} or _LEAST <= product <= _MOST:
        return None
    return (
        f"lora_alpha gives a scale of {scale:.3g}, and the factors reach {left:.3g} (B) and {right:.3g} (A): "
        f"expected a product between {_LEAST:g} and {_MOST:g}, whose squares can be added up"
    )
