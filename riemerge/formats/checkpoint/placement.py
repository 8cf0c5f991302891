"""Placement: to which tensors of a base model the modules of an adapter are added, and which way round."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import replace

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.files.text import list_names, show
from riemerge.formats.layers import Dora, Expert, Layer, Linear, parent
from riemerge.formats.module_names import rename


def place_modules(base: Checkpoint, adapter: Adapter) -> tuple[Adapter, dict[str, tuple[str, ...]]]:
    """Find the tensor to which each module is added.

    Law: shapes decide whether a linear layer is stored as inputs by outputs, as the class of a layer does for
    PEFT. A square one is stored as the others are, and all are as the adapter says (`fan_in_fan_out`) where
    all are square. Experts that the shapes leave open are refused.

    Args:
        base: The base model.
        adapter: The adapter.

    Returns:
        The adapter with what only its base model says, and the modules by the tensor that they are added to.

    Raises:
        AdapterError: The base model lacks the tensor of a module, or has it in another shape or as integers:
            all such modules are named.
    """
    tensors = {module: _tensors(module, layer) for module, layer in adapter.layers.items()}
    firsts = [*dict.fromkeys(names[0] for names in tensors.values())]  # experts share one
    placed_at = {names[0] for names in tensors.values() if any(name in base.shapes for name in names)}
    if lacking := [name for name in firsts if name not in placed_at]:
        raise AdapterError(
            f"{base.path}: lacks {len(lacking)} of {len(firsts)} tensors that {adapter.path} is added to: "
            f"{list_names(lacking)}{_hint(base, adapter, firsts, lacking)}"
        )
    turned = _input_major(base, adapter)
    adapter = adapter.with_layers(
        {module: _turn(layer, module in turned) for module, layer in adapter.layers.items()}
    )
    adapter = adapter.with_base(base)
    placed: dict[str, tuple[str, ...]] = {}
    problems = [
        f"{base.path}: {show(name)}: is {base.shapes[name]}, but {adapter.path} saved it as "
        f"{entry.shape}: is it the base model of this adapter?"
        for name, entry in (*adapter.saved.items(), *adapter.base_weights.items())
        if base.shapes.get(name, entry.shape) != entry.shape
    ]
    for module, layer in adapter.layers.items():
        if isinstance(layer, Expert) and (why := _why_open(layer)):
            problems.append(f"{base.path}: {show(layer.stem(module))}: {why}")
            continue
        name = layer.weight(module)
        placed[name] = (*placed.get(name, ()), module)
        if base.shapes[name] != layer.stored_shape:
            problems.append(
                f"{base.path}: {show(name)}: is {base.shapes[name]}, but the update of {adapter.path} is "
                f"{layer.stored_shape}: is it the base model of this adapter?"
            )
        elif not base.dtypes[name].is_floating_point:
            problems.append(
                f"{base.path}: {show(name)}: is stored as {base.dtypes[name]}: expected a float to add "
                "an update to: dequantise the base model first"
            )
    AdapterError.refuse(dict.fromkeys(problems))  # one of all experts of a parameter
    return adapter, placed


def _why_open(layer: Expert) -> str | None:
    """Say what the base model leaves open of an expert's weight; None where it is known."""
    if len(layer.parameters) > 1:
        return f"may be {list_names(layer.parameters)} by its shape: expected it to fit one of them"
    if layer.count > 1 and layer.turned is None:
        return "holds square matrices: neither file says whether they are outputs by inputs"
    return None


def _tensors(module: str, layer: Layer) -> list[str]:
    """Return the names of the tensors that a module may be added to."""
    if isinstance(layer, Expert):
        return [f"{parent(layer.stem(module))}.{parameter}" for parameter in layer.parameters]
    return [layer.weight(module)]


def _linear(layer: Layer) -> Linear | None:
    """Return the linear layer that a layer is but for DoRA; None for other kinds."""
    if isinstance(layer, Dora):
        return _linear(layer.plain)
    return layer if isinstance(layer, Linear) else None


def _input_major(base: Checkpoint, adapter: Adapter) -> set[str]:
    """Return the linear modules whose weights the base model stores as inputs by outputs."""
    layers = {module: _linear(layer) for module, layer in adapter.layers.items()}
    linear = {module: layer for module, layer in layers.items() if layer is not None}
    square = {module for module, layer in linear.items() if layer.shape[0] == layer.shape[1]}
    oblong = linear.keys() - square
    turned = {module for module in oblong if base.shapes[f"{module}.weight"] == linear[module].shape[::-1]}
    if turned or (not oblong and adapter.config.fan_in_fan_out):
        turned |= square
    return turned


def _turn(layer: Layer, turned: bool) -> Layer:
    """Return a layer with a linear one stored as inputs by outputs, or not; others as they are."""
    if isinstance(layer, Dora):
        return replace(layer, plain=_turn(layer.plain, turned))
    if isinstance(layer, Linear):
        return replace(layer, turned=turned)
    return layer


def _hint(base: Checkpoint, adapter: Adapter, names: Collection[str], lacking: Collection[str]) -> str:
    """Say what keeps modules from having a tensor, as the end of a message.

    Args:
        base: The checkpoint.
        adapter: The adapter.
        names: The names of the tensors of all modules.
        lacking: The names that the checkpoint lacks.
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
    apart = [name for name in base.names if re.search(r"\.experts\.\d+\.", name)]
    if apart and any(isinstance(layer, Expert) for layer in adapter.layers.values()):
        return (
            f"; its files hold each expert apart ({show(apart[0])}), and the adapter was trained on all in "
            "one: load the base model with transformers, which joins them, and merge the adapter with PEFT's "
            "merge_and_unload"
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
