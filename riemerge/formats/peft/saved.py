"""Whole tensors that PEFT saves beside factors: heads, biases, trained tokens, copies of base weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from riemerge.formats.files.tensor_file import DTYPES, Entry
from riemerge.formats.peft.config import AdapterConfig

_PREFIX = "base_model.model."
_TOKENS = ".token_adapter.trainable_tokens_delta"
_COPY = re.compile(r"(?P<module>.+)\.base_layer\.(?P<leaf>weight|bias)")
_BIASES = ("none", "lora_only", "all")


class Saved(NamedTuple):
    """The tensors of a file that are no factors.

    Attributes:
        trained: Tensors that take the place of tensors of the base model, by their names there.
        copies: Tensors that are weights of the base model as they were, by their names there.
        problems: What is wrong with them.
    """

    trained: dict[str, Entry]
    copies: dict[str, Entry]
    problems: list[str]


def find_saved(entries: Iterable[Entry], stems: Collection[str], config: AdapterConfig) -> Saved:
    """Return the whole tensors of a file, under their names in the base model.

    Law: a head under its own name comes before what `bias: all` saves of it once more under the name that the
    module has inside PEFT, as PEFT loads them; the head of the base model that a saved one replaces
    (`original_module`) is no part of the adapter.

    Args:
        entries: The tensors that are no factors.
        stems: The modules that have factors.
        config: What the adapter says of itself.
    """
    trained: dict[str, Entry] = {}
    copies: dict[str, Entry] = {}
    problems = []
    for entry in sorted(entries, key=lambda entry: ".modules_to_save." in entry.name):
        name = entry.name.removeprefix(_PREFIX)
        if ".original_module." in name:
            continue
        if entry.dtype not in DTYPES:
            problems.append(f"{name} is stored as {entry.dtype}: expected one of {', '.join(DTYPES)}")
        name = re.sub(r"\.modules_to_save(\.default)?\.", ".", name).replace(f"{_TOKENS}.default", _TOKENS)
        place = trained
        if (match := _COPY.fullmatch(name)) and match["module"] in stems:
            name = f"{match['module']}.{match['leaf']}"
            if match["leaf"] == "weight" or config.bias == "none":
                place = copies
        place.setdefault(name, entry)
    return Saved(dict(sorted(trained.items())), dict(sorted(copies.items())), problems)


def name_saved(saved: Mapping[str, Tensor], stems: Collection[str]) -> dict[str, Tensor]:
    """Return whole tensors by the names that PEFT has for them in its files.

    Args:
        saved: The tensors by their names in the base model.
        stems: The modules that have factors.
    """
    names = {}
    for name, tensor in saved.items():
        module, _, leaf = name.rpartition(".")
        inside = name
        if leaf == "bias" and module in stems:
            inside = f"{module}.base_layer.bias"
        names[_PREFIX + inside] = tensor.contiguous()
    return names


def describe_saved(sources: Mapping[str, Sequence[AdapterConfig]]) -> dict[str, Any]:
    """Return the settings with which PEFT loads whole tensors.

    Args:
        sources: What the adapters say of themselves that each tensor comes from, by its name in the base
            model.
    """
    names, configs = [*sources], [config for own in sources.values() for config in own]
    tokens = [name for name in names if name.endswith(_TOKENS)]
    said = {entry for config in configs for entry in config.modules_to_save or ()}
    covering = {entry for entry in said if any(_covers(entry, name) for name in names)}
    alone = [name for name in names if name not in tokens and not any(_covers(e, name) for e in covering)]
    mode = max((config.bias for config in configs), key=_BIASES.index, default="none")
    biases = [name for name in alone if mode != "none" and name.endswith(".bias")]
    modules = {name.rpartition(".")[0] for name in alone if name not in biases}
    settings: dict[str, Any] = {"bias": "none", "modules_to_save": sorted(covering | modules) or None}
    if biases:
        settings["bias"] = mode
    if tokens:
        first = {name: sources[name][0] for name in tokens}
        settings["trainable_token_indices"] = first[tokens[0]].trainable_token_indices
        if len(tokens) > 1:
            rows = (find_token_rows(name, config) for name, config in first.items())
            settings["trainable_token_indices"] = {
                weight.removesuffix(".weight"): numbers for weight, numbers in rows
            }
    return settings


def find_token_rows(name: str, config: AdapterConfig) -> tuple[str, list[int]]:
    """Return the weight of which a whole tensor is rows, and the numbers of these rows.

    Args:
        name: The name of a tensor for which `is_token_rows` is true.
        config: What the adapter says of itself.
    """
    module = name.removesuffix(_TOKENS)
    said = config.trainable_token_indices or []
    if isinstance(said, dict):
        said = next((rows for key, rows in said.items() if f".{module}".endswith(f".{key}")), [])
    return f"{module}.weight", said


def is_token_rows(name: str) -> bool:
    """Return whether a whole tensor is the rows of trained tokens, whose numbers the settings have."""
    return name.endswith(_TOKENS)


def _covers(entry: str, name: str) -> bool:
    """Return whether an entry of `modules_to_save` names a module that a tensor is in."""
    return any(f".{module}".endswith(f".{entry}") for module in _modules_around(name))


def _modules_around(name: str) -> Iterator[str]:
    """Yield the modules that a tensor is in, from the innermost."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
