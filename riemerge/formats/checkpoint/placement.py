"""Placement: to which tensors of a base model the modules of an adapter are added, and which way round."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple, final

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.files.text import list_names, show
from riemerge.formats.layers import Expert, Layer, Linear
from riemerge.formats.module_names import rename


@final
class Place(NamedTuple):
    """Where a module of an adapter is added.

    Attributes:
        tensor: The name of the tensor of the base model.
        layer: How the module is stored, and how the base model stores its tensor.
    """

    tensor: str
    layer: Layer


def place_modules(base: Checkpoint, adapter: Adapter) -> dict[str, dict[str, Layer]]:
    """Find the tensor of each module.

    Law: shapes decide whether a linear layer is stored as inputs by outputs, and which parameter of a module
    of experts is meant. Where they leave it open, a square layer is stored as the others are, or as the
    adapter says (`fan_in_fan_out`); experts are refused.

    Args:
        base: The base model.
        adapter: The adapter.

    Returns:
        By the name of each tensor, the layers that are added to it by the module of the adapter.

    Raises:
        AdapterError: The base model lacks the tensor of a module, or has it in another shape or as integers:
            all such modules are named.
    """
    problems = []
    wanted = {module: [*_variants(module, layer)] for module, layer in adapter.layers.items()}
    fitting = {
        module: [place for place in places if base.shapes.get(place.tensor) == place.layer.stored_shape]
        for module, places in wanted.items()
    }
    if lacking := [
        places[0].tensor
        for places in wanted.values()
        if not any(place.tensor in base.shapes for place in places)
    ]:
        tensors = [places[0].tensor for places in wanted.values()]
        problems.append(
            f"{base.path}: lacks {len(lacking)} of {len(tensors)} tensors that {adapter.path} is added to: "
            f"{list_names(lacking)}{_hint(base, tensors, lacking)}"
        )
    placed: dict[str, dict[str, Layer]] = defaultdict(dict)
    for module, places in wanted.items():
        known = [place for place in places if place.tensor in base.shapes]
        if not known:
            continue
        tensor, layer = known[0]
        if not fitting[module]:
            problems.append(
                f"{base.path}: {show(tensor)}: is {base.shapes[tensor]}, but the update of {adapter.path} is "
                f"{layer.stored_shape}: is it the base model of this adapter?"
            )
        elif isinstance(layer, Expert) and len(fitting[module]) > 1:
            tensors = sorted({place.tensor for place in fitting[module]})
            problems.append(
                f"{base.path}: {show(module)}: fits {list_names(tensors)} in more ways than one, and neither "
                "file says which is meant"
            )
        elif not base.dtypes[tensor].is_floating_point:
            problems.append(
                f"{base.path}: {show(tensor)}: is stored as {base.dtypes[tensor]}: expected a float to add "
                "an update to: dequantise the base model first"
            )
        else:
            tensor, layer = _choose(fitting[module], fitting, adapter.config.fan_in_fan_out)
            placed[tensor][module] = layer
    AdapterError.refuse(problems)
    return dict(placed)


def _variants(module: str, layer: Layer) -> Iterator[Place]:
    """Yield where a module may be, that which the adapter says first."""
    if isinstance(layer, Linear):
        for turned in (layer.turned, not layer.turned):
            yield Place(layer.weight(module), replace(layer, turned=turned))
    elif isinstance(layer, Expert):
        for parameter in layer.parameters:
            for turned in (False, True)[: layer.count]:  # a parameter of one expert has two axes
                fixed = replace(layer, parameters=(parameter,), turned=turned)
                yield Place(fixed.weight(module), fixed)
    else:
        yield Place(layer.weight(module), layer)


def _choose(places: list[Place], all_places: Mapping[str, list[Place]], turned: bool) -> Place:
    """Return the place of a module that fits, of a square layer the one that the others call for.

    Args:
        places: The places of the module that fit: two of a square layer.
        all_places: The places that fit, of every module.
        turned: Whether the adapter says that layers are stored as inputs by outputs.
    """
    if len(places) == 1:
        return places[0]
    sure = [
        place.layer.turned
        for (place, *more) in filter(None, all_places.values())
        if not more and isinstance(place.layer, Linear)
    ]
    if sure:
        turned = any(sure)
    return next(place for place in places if isinstance(place.layer, Linear) and place.layer.turned == turned)


def _hint(base: Checkpoint, names: Collection[str], lacking: Collection[str]) -> str:
    """Say what keeps modules from having a tensor, as the end of a message.

    Args:
        base: The checkpoint.
        names: The names of the tensors of all modules.
        lacking: Those that the checkpoint lacks.
    """
    for old, new in _prefixes(min(lacking), base.names):
        renamed = [rename(name, {old: new}) for name in names]
        if {*base.names}.issuperset(renamed) and len({*renamed}) == len({*names}):
            return f"; they are there but for the prefix: --rename {old}={new}"
    if all(name.endswith("lm_head.weight") for name in lacking):
        return (
            "; its output layer is tied to the embeddings, and PEFT's merge would change both: save the base "
            "model with a weight of its own for it (tie_word_embeddings false)"
        )
    return "; is it the base model of this adapter?"


def _prefixes(name: str, present: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield prefixes of a tensor's name whose exchange makes it one that is present, the shortest first.

    Law: none has a number in it (a layer is no prefix), and none is the whole name of a module.
    """
    for start in (0, *(place + 1 for place, letter in enumerate(name.rpartition(".")[0]) if letter == ".")):
        tail = name[start:]
        ends = (known for known in sorted(present) if f".{known}".endswith(f".{tail}"))
        pairs = ((name[:start], known.removesuffix(tail)) for known in ends)
        yield from (pair for pair in pairs if not re.search(r"\d", "".join(pair)))
