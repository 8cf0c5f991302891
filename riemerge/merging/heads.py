"""What becomes of whole tensors that adapters save beside their factors: heads, biases, trained tokens."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.adapter import Adapter
from riemerge.formats.files.tensor_file import DTYPES
from riemerge.formats.files.text import list_names, show
from riemerge.formats.layers import Bias, Convolution, Expert, Layer, Linear, parent
from riemerge.formats.peft.saved import find_token_rows, is_token_rows
from riemerge.records.run_record import HeadsRow

_FROM = "from="


@final
@dataclass(frozen=True, eq=False)
class Heads:
    """What a merge does with the whole tensors of its adapters. Made by `plan_heads`.

    Attributes:
        row: What is done, for the record; None where no adapter has whole tensors.
        dtype: The dtype that is written; None keeps that of each tensor.
        sources: The adapters that each tensor is a mean of, with their shares, which add up to 1.
        left_out: The tensors of other adapters where those of one are taken over.
    """

    row: HeadsRow | None
    dtype: torch.dtype | None
    sources: Mapping[str, Sequence[tuple[Adapter, float]]]
    left_out: Sequence[str] = ()

    @property
    def note(self) -> str:
        """What was done, in words; empty where no adapter has whole tensors."""
        if self.row is None:
            return ""
        names = list_names([*self.row.tensors])
        done = {
            "drop": "left out",
            "average": "averaged by the weights",
            "from": f"taken over from {', '.join(self.row.adapters)}",
        }
        text = f"heads: {len(self.row.tensors)} whole tensors ({names}) were {done[self.row.done]}"
        if self.left_out:
            text += f"; {len(self.left_out)} of others ({list_names(self.left_out)}) were left out"
        return text

    def read(self) -> dict[str, Tensor]:
        """Return the whole tensors of the result by name, on the CPU.

        Law: a tensor of one adapter is as it is stored, unless another dtype is asked for; one of several is
        Σ wᵢ xᵢ / Σ wᵢ in float64, rounded once. Integers and bools must agree.

        Raises:
            AdapterError: A tensor holds NaN or Inf, or integers differ between the adapters.
        """
        return {name: self._read(name, shares) for name, shares in self.sources.items()}

    def _read(self, name: str, shares: Sequence[tuple[Adapter, float]]) -> Tensor:
        tensors = [adapter.tensor(name) for adapter, _ in shares]
        first = tensors[0]
        if all(torch.equal(tensor, first) for tensor in tensors):
            mean = first
        elif not first.is_floating_point():
            raise AdapterError(
                f"{show(name)}: holds {first.dtype} that differ between the adapters: integers have no mean: "
                f"--heads {_FROM}NAME takes those of one adapter"
            )
        else:
            exact = sum(share * tensor.double() for tensor, (_, share) in zip(tensors, shares, strict=True))
            assert isinstance(exact, Tensor)
            mean = exact.to(reduce(torch.promote_types, [tensor.dtype for tensor in tensors]))
            if self.dtype:
                return exact.to(self.dtype)
        if self.dtype and mean.is_floating_point():
            return mean.to(self.dtype)
        return mean


def plan_heads(
    asked: str | None,
    adapters: Mapping[str, Adapter],
    weights: Sequence[float | None],
    kinds: Mapping[str, Layer],
    *,
    out_dtype: torch.dtype | None,
    only_updates: bool,
    skip: bool,
) -> Heads:
    """Say what becomes of the whole tensors of adapters, from their headers.

    Law: nothing is left out or taken over that was not asked for. Of what different heads mean only their
    shapes can be told: no adapter says its labels. No module of the result has two of factors, a whole tensor
    and rows of tokens, which PEFT does not load.

    Args:
        asked: `drop`, `average`, or `from=NAME`; None refuses whole tensors.
        adapters: The T adapters by the names that the record has for them.
        weights: T weights as asked for; None where one is not the same in all modules.
        kinds: The layers of the result by module.
        out_dtype: The dtype of floats that is written; None keeps that of each tensor.
        only_updates: Whether the result holds updates alone, with no place for whole tensors.
        skip: Whether an adapter that lacks a tensor takes no part in its mean.

    Raises:
        RecipeError: No such adapter, one without whole tensors where others have some, or weights that have
            no mean.
        AdapterError: Whole tensors without a word on them, which have no mean, or which cannot lie beside the
            factors: all of them.
    """
    names = sorted({name for adapter in adapters.values() for name in adapter.saved})
    source = ""
    if asked and asked.startswith(_FROM):
        source = _find_source(asked, adapters)
    if not names:
        return Heads(None, out_dtype, {})
    if asked is None:
        raise AdapterError(
            f"{adapter.path}: {len(adapter.saved)} whole tensors are saved beside the factors "
            f"({list_names([*adapter.saved])}): {_choices(adapters)}"
            for adapter in adapters.values()
            if adapter.saved
        )
    if asked == "drop":
        return Heads(HeadsRow(done="drop", tensors=tuple(names)), out_dtype, {})
    if only_updates:
        raise RecipeError(
            f"heads: {asked}: what is written holds updates only: --heads drop leaves heads out"
        )
    if source:
        own = adapters[source].saved
        AdapterError.refuse(_why_not_beside(own, adapters, kinds))
        row = HeadsRow(done="from", tensors=tuple(own), adapters=(source,))
        left_out = [name for name in names if name not in own]
        return Heads(row, out_dtype, {name: [(adapters[source], 1.0)] for name in own}, left_out)
    if None in weights:
        raise RecipeError(
            "heads: average: the weights differ between modules, and heads are in none: give "
            f"--heads {_FROM}NAME, or drop"
        )
    shares = dict(zip(adapters, (weight or 0.0 for weight in weights), strict=True))
    problems = [fault for name in names for fault in _why_no_mean(name, adapters, skip=skip)]
    AdapterError.refuse([*problems, *_why_not_beside(names, adapters, kinds)])
    sources = {}
    for name in names:
        having = {key: adapter for key, adapter in adapters.items() if name in adapter.saved}
        total = math.fsum(shares[key] for key in having)
        if abs(total) <= 1e-12 * max(abs(share) for share in shares.values()):
            raise RecipeError(
                f"heads: average: the weights add up to 0 in {name}: give --heads {_FROM}NAME, or drop"
            )
        sources[name] = [(adapter, shares[key] / total) for key, adapter in having.items()]
    return Heads(HeadsRow(done="average", tensors=tuple(names), adapters=tuple(adapters)), out_dtype, sources)


def copy_notes(adapters: Sequence[Adapter]) -> list[str]:
    """Say which weights of the base model, saved beside factors, are left out.

    Law: they are the same, bit for bit, in all adapters that have them, and the merge is for that base.

    Args:
        adapters: The T adapters.

    Raises:
        AdapterError: Base weights that differ: the adapters have different bases.
    """
    owners: dict[str, list[Adapter]] = {}
    for adapter in adapters:
        for name in adapter.base_weights:
            owners.setdefault(name, []).append(adapter)
    AdapterError.refuse(
        f"{show(_name_in_file(name, first))}: the base weight saved beside the factors differs between "
        f"{first.path} and {other.path}: they were trained on different base models, and are not merged"
        for name, (first, *others) in owners.items()
        for other in others
        if not _are_equal(first.tensor(name), other.tensor(name))
    )
    if not owners:
        return []
    count = len({adapter.path for having in owners.values() for adapter in having})
    text = (
        f"{list_names([*owners])}: weights of the base model, unchanged, saved beside the factors of {count} "
        f"of {len(adapters)} adapters: left out, since the base model has them"
    )
    return [text]


def _name_in_file(name: str, adapter: Adapter) -> str:
    return adapter.base_weights[name].name.removeprefix("base_model.model.")


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def is_called(path: str | Path, name: str) -> bool:
    """Return whether a model at a path is meant by a name: the last parts of the path, or all of it."""
    parts = Path(name).parts
    return Path(path).parts[-len(parts) :] == parts


def _find_source(asked: str, adapters: Mapping[str, Adapter]) -> str:
    """Return the name of the adapter whose heads are asked for."""
    name = asked.removeprefix(_FROM)
    found = [key for key, adapter in adapters.items() if name == key or is_called(adapter.path, name)]
    if len(found) != 1:
        raise RecipeError(
            f"heads: {asked}: {len(found) or 'no'} inputs are called {name}: they are {', '.join(adapters)}"
        )
    having = [key for key, adapter in adapters.items() if adapter.saved]
    if having and found[0] not in having:
        raise RecipeError(
            f"heads: {asked}: {found[0]} has no heads; those with heads are {', '.join(having)}: name one of "
            "them, or give --heads drop"
        )
    return found[0]


def _choices(adapters: Mapping[str, Adapter]) -> str:
    """Say what can be done with the whole tensors of adapters."""
    having = [name for name, adapter in adapters.items() if adapter.saved]
    shapes = [{name: entry.shape for name, entry in adapter.saved.items()} for adapter in adapters.values()]
    words = ["--heads drop leaves them out"]
    if all(own == shapes[0] for own in shapes):
        words.append("--heads average takes their weighted mean")
    words.append(f"--heads {_FROM}{having[0]} takes over those of one adapter")
    return ", ".join(words)


def _why_no_mean(name: str, adapters: Mapping[str, Adapter], *, skip: bool) -> Iterator[str]:
    """Say why a whole tensor has no mean over adapters."""
    ways = f"--heads {_FROM}NAME takes over those of one adapter, drop leaves them out"
    skipping = f"--missing skip takes the mean of those that have it, {ways}"
    having = {key: adapter.saved[name] for key, adapter in adapters.items() if name in adapter.saved}
    shapes = {key: " x ".join(map(str, entry.shape)) for key, entry in having.items()}
    if len(set(shapes.values())) > 1:
        each = ", ".join(f"{shape} in {key}" for key, shape in shapes.items())
        yield f"{show(name)}: heads of different labels have no mean: it is {each}: {ways}"
    lacking = [key for key in adapters if key not in having]
    if lacking and not skip:
        yield f"{show(name)}: is saved in {', '.join(having)} but not in {', '.join(lacking)}: {skipping}"
    if len({DTYPES[entry.dtype].is_floating_point for entry in having.values()}) > 1:
        yield f"{show(name)}: holds integers in some adapters and floats in others: {ways}"
    indices = [adapters[key].config.trainable_token_indices for key in having]
    if is_token_rows(name) and any(own != indices[0] for own in indices):
        yield f"{show(name)}: rows of different tokens (trainable_token_indices) have no mean: {ways}"


def _why_not_beside(
    names: Collection[str], adapters: Mapping[str, Adapter], kinds: Mapping[str, Layer]
) -> Iterator[str]:
    """Say which whole tensors PEFT cannot load beside factors, or beside each other, in one folder."""
    factored = _find_weights(kinds)
    for name in sorted(names):
        having = [key for key, adapter in adapters.items() if name in adapter.saved]
        what, place = f"is saved whole in {', '.join(having)}", name
        if is_token_rows(name):
            place, _ = find_token_rows(name, adapters[having[0]].config)
            what = f"has rows of trained tokens in {', '.join(having)}"
            if place in names:
                whole = [key for key, adapter in adapters.items() if place in adapter.saved]
                yield f"{show(place)}: {what} and is saved whole in {', '.join(whole)}: {_ONE_OF_THEM}"
        if module := factored.get(place):
            owners = [key for key, adapter in adapters.items() if module in adapter.layers]
            yield f"{show(place)}: {what} and has factors in {', '.join(owners)}: {_ONE_OF_THEM}"


_ONE_OF_THEM = "PEFT loads only one of them: --heads drop leaves out what is no factor"


def _find_weights(kinds: Mapping[str, Layer]) -> dict[str, str]:
    """Return the tensors of the base model that factors are added to, each with a module that has them."""
    weights: dict[str, str] = {}
    biased = next((module for module, kind in kinds.items() if isinstance(kind, Bias)), None)
    for module, kind in kinds.items():
        if isinstance(kind, Expert):
            weights |= {f"{parent(kind.stem(module))}.{name}": module for name in kind.parameters}
            continue
        weights[kind.weight(module)] = module
        if biased and isinstance(kind, Linear | Convolution):
            # All modules are written with a bias where one has it: PEFT's lora_bias is of all.
            weights.setdefault(f"{module}.bias", biased)
    return weights
