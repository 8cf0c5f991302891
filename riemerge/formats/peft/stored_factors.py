"""The names under which PEFT stores factors: which layers they make, and how layers are written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any, TypeAlias

from torch import Tensor

from riemerge.errors import OutputError
from riemerge.formats.files.tensor_file import FLOATS, Entry
from riemerge.formats.layers import Bias, Convolution, Dora, Embedding, Expert, Layer, Linear, parent
from riemerge.formats.peft.config import AdapterConfig
from riemerge.formats.peft.written_scales import scale_settings
from riemerge.updates.low_rank import LowRankUpdate

Sides: TypeAlias = Mapping[str, Entry]

# Trainers write the prefix or not, and PEFT's in-memory keys carry the adapter's name.
_PREFIX = r"(?:base_model\.model\.)?(?P<module>.+)\.lora_"
_KEYS = {
    side: re.compile(_PREFIX + rest)
    for side, rest in {
        "A": r"A(?:\.default)?\.weight",
        "B": r"B(?:\.default)?\.weight",
        "bias": r"B(?:\.default)?\.bias",
        "magnitude": r"magnitude_vector(?:\.default)?(?:\.weight)?",
        "embedding_A": r"embedding_A(?:\.default)?",
        "embedding_B": r"embedding_B(?:\.default)?",
    }.items()
}
_FACTORS = {"A", "B"}
_BESIDE = {"bias": "lora_bias", "magnitude": "use_dora"}
_OF_EMBEDDINGS = {"embedding_A": "A", "embedding_B": "B"}


def find_factors(entries: Iterable[Entry]) -> tuple[dict[str, Sides], list[str]]:
    """Return the factors that PEFT's names tell, by module and side, and what is stored twice.

    Args:
        entries: The tensors of a file; those of other names are left alone.
    """
    found: dict[str, dict[str, Entry]] = {}
    problems = []
    for entry in entries:
        for side, module in _sides(entry.name):
            first = found.setdefault(module, {}).setdefault(side, entry)
            if first is not entry:
                problems.append(f"{module}: lora_{side} is stored twice, as {first.name} and as {entry.name}")
    return dict(sorted(found.items())), problems


def is_factor(name: str) -> bool:
    """Return whether a tensor is a factor, by PEFT's names."""
    return any(_sides(name))


def _sides(name: str) -> Iterator[tuple[str, str]]:
    """Return the side that a tensor is, and its module, if it is a factor."""
    for side, pattern in _KEYS.items():
        if match := pattern.fullmatch(name):
            yield side, match["module"]


def make_layers(
    found: Mapping[str, Sides], config: AdapterConfig | None
) -> tuple[dict[str, Layer], list[str]]:
    """Return the layers that factors make, by module, and everything that is wrong with them.

    Args:
        found: The factors by stem and side, of `find_factors`.
        config: What the adapter says of itself; None, where that cannot be read, checks the factors alone and
            returns no layers.
    """
    layers: dict[str, Layer] = {}
    problems = []
    for stem, sides in found.items():
        try:
            layers.update(_layers_of(stem, sides, found, config))
        except ValueError as why:
            problems.append(f"{stem}: {why}")
    return dict(sorted(layers.items())), problems


def _layers_of(
    stem: str, sides: Sides, found: Mapping[str, Sides], config: AdapterConfig | None
) -> dict[str, Layer]:
    """Return the layers that the factors of one stem make; ValueError says why they make none."""
    embedded, plain = _factors_of(sides)
    factors = embedded or plain
    if config is None:
        _check_factors(stem, factors, wrapped=False)
        return {}
    parameters = config.parameters(parent(stem))
    _check_factors(stem, factors, wrapped=not parameters)
    a, b = factors["A"].shape, factors["B"].shape
    if parameters and plain:
        if others := sorted({*sides} - _FACTORS):
            raise ValueError(
                f"has {sides[others[0]].name} beside factors of {' or '.join(parameters)}: PEFT has none"
            )
        return _experts(stem, factors, found, config)
    if a[0] != config.rank(stem):
        raise ValueError(
            f"the factors have rank {a[0]} but adapter_config.json says {config.rank(stem)} (r, "
            "rank_pattern): they must agree"
        )
    scale = config.scale(stem)
    layer: Layer = Linear(factors, scale, turned=config.fan_in_fan_out)
    if embedded:
        layer = Embedding(factors, scale)
    elif len(a) > 2:
        layer = Convolution(factors, scale)
    for side, setting in _BESIDE.items():
        _check_beside(side, sides.get(side), setting, b[0], config)
    if magnitude := sides.get("magnitude"):
        layer = Dora(entries={**factors, "magnitude": magnitude}, scale=1.0, plain=layer)
    if bias := sides.get("bias"):
        return {stem: layer, f"{stem}.bias": Bias({"bias": bias}, scale)}
    return {stem: layer}


def _factors_of(sides: Sides) -> tuple[Sides, Sides]:
    """Return the factors of an embedding and of another layer, by side; ValueError if there are both."""
    embedded = {_OF_EMBEDDINGS[side]: entry for side, entry in sides.items() if side in _OF_EMBEDDINGS}
    plain = {side: entry for side, entry in sides.items() if side in _FACTORS}
    if embedded and plain:
        raise ValueError("has factors of a linear layer and of an embedding: expected one kind")
    return embedded, plain


def _check_factors(stem: str, factors: Sides, *, wrapped: bool) -> None:
    """Refuse factors that make no product."""
    # A wrapper's name before all others is a prefix, which can be renamed.
    if {"_orig_mod", "_fsdp_wrapped_module"} & {*stem.split(".")[1:]} or (wrapped and stem != parent(stem)):
        raise ValueError(
            "was saved from a wrapped model (nested adapters, torch.compile, FSDP): save it unwrapped"
        )
    for missing in sorted(_FACTORS - {*factors}):
        raise ValueError(f"has no lora_{missing}: both factors are needed")
    if unknown := sorted({entry.dtype for entry in factors.values()} - {*FLOATS}):
        raise ValueError(
            f"is stored as {', '.join(unknown)}: expected one of {', '.join(FLOATS)} (dequantise it first)"
        )
    a, b = factors["A"].shape, factors["B"].shape
    if (why := _why_no_product(a, b)) is not None:
        raise ValueError(f"lora_A is {a} but lora_B is {b}: {why}")


def _why_no_product(a: tuple[int, ...], b: tuple[int, ...]) -> str | None:
    if 0 in a + b:
        return "they must not be empty (saved from ZeRO-3 without gathering?)"
    if len(a) < 2 or len(a) != len(b):
        return "they must be matrices, or kernels of one number of axes"
    if set(b[2:]) - {1}:
        return "the kernel of lora_B must be of one point: is it a transposed convolution?"
    if len(a) > 2 and a[0] != b[1] and a[0] % b[1] == 0:
        return (
            f"a convolution in {a[0] // b[1]} groups, for which PEFT defines no dW: leave the module out, or "
            "train it without groups"
        )
    if a[0] != b[1]:
        return f"the inner sizes {a[0]} and {b[1]} must agree"
    return None


def _check_beside(side: str, entry: Entry | None, setting: str, outputs: int, config: AdapterConfig) -> None:
    """Refuse a vector beside the factors that PEFT does not load, or one that is missing."""
    is_set = getattr(config, setting)
    if entry is None:
        # PEFT starts a bias from zero; it takes a magnitude from the base model.
        if is_set and side == "magnitude":
            raise ValueError(f"has no lora_magnitude_vector, but {setting} is true in adapter_config.json")
        return
    if not is_set:
        raise ValueError(
            f"has {entry.name} beside its factors, but {setting} is not true in adapter_config.json, and "
            "PEFT does not load it: set it, or leave the tensor out"
        )
    if math.prod(entry.shape) != outputs or max(entry.shape, default=1) != outputs:
        raise ValueError(f"{entry.name} is {entry.shape}: expected {outputs} numbers, one for each output")
    if entry.dtype not in FLOATS:
        raise ValueError(f"{entry.name} is stored as {entry.dtype}: expected one of {', '.join(FLOATS)}")


# --- experts ------------------------------------------------------------------------------------------------


def _experts(
    stem: str, factors: Sides, found: Mapping[str, Sides], config: AdapterConfig
) -> dict[str, Layer]:
    """Return a layer for each expert of a parameter that holds them all.

    Law: the number of experts follows from the rank that the settings give to the parameter. Where a module
    has several, the file does not say which is which: all that the settings allow must give one rank, one
    scale and one number of experts, the same for all of them.
    """
    module = parent(stem)
    nested = sorted(other for other in found if parent(other) == module)
    rows = {other: found[other]["A"].shape[0] for other in nested if "A" in found[other]}
    facts = set()
    for names in permutations(config.parameters(module), len(rows)):
        keys = dict(zip(rows, (f"{module}.{name}" for name in names), strict=True))
        counts = {rows[other] / config.rank(key) for other, key in keys.items()}
        if len(counts) == 1 and (count := counts.pop()) == int(count):
            facts.add((int(count), config.rank(keys[stem]), config.scale(keys[stem])))
    if len(facts) != 1:
        raise ValueError(
            f"is of {' or '.join(config.parameters(module))} (target_parameters), of {rows[stem]} rows, but "
            "r, rank_pattern and alpha_pattern do not tell one rank, scale and number of experts"
        )
    ((count, rank, scale),) = facts
    if factors["B"].shape[1] != rank * count or len(factors["A"].shape) > 2:
        raise ValueError(
            f"lora_A is {factors['A'].shape} but lora_B is {factors['B'].shape}: expected matrices of "
            f"{count} experts of rank {rank}"
        )
    parameters = config.parameters(module)
    return {
        f"{stem}[{index}]": Expert(factors, scale, index=index, count=count, parameters=parameters)
        for index in range(count)
    }


# --- writing ------------------------------------------------------------------------------------------------


def complete(
    updates: Mapping[str, LowRankUpdate], kinds: Mapping[str, Layer]
) -> tuple[dict[str, LowRankUpdate], dict[str, Layer]]:
    """Return updates with all that PEFT wants beside them, and their kinds of layers, sorted by module.

    Law: all experts of a parameter are there, those without an update as zeros; all parameters of one module
    have one rank, so that it does not matter which is which; all modules have a bias, or none has.

    Args:
        updates: The updates by module.
        kinds: The kinds of layers by module; a linear layer where a module has none.

    Raises:
        OutputError: PEFT does not load such layers from one folder.
    """
    linear = Linear({}, 1.0)
    own = {module: kinds.get(module, linear) for module in updates}
    whole = dict(updates)
    experts = {kind.stem(module): kind for module, kind in own.items() if isinstance(kind, Expert)}
    ranks: dict[str, int] = {}
    for stem, expert in experts.items():
        modules = [f"{stem}[{index}]" for index in range(expert.count)]
        known = [whole[module] for module in modules if module in whole]
        zero = LowRankUpdate(0 * known[0].B[:, :1], 0 * known[0].A[:1])
        own |= {module: replace(expert, index=index) for index, module in enumerate(modules)}
        whole |= {module: whole.get(module, zero) for module in modules}
        ranks[parent(stem)] = max(ranks.get(parent(stem), 1), *(update.rank for update in known))
    for module, kind in own.items():
        if isinstance(kind, Expert):
            whole[module] = whole[module].pad(ranks[parent(kind.stem(module))])
        elif isinstance(kind, Bias):
            whole[module] = LowRankUpdate(*kind.factors(kind.store(whole[module])), whole[module].scale)
    if any(isinstance(kind, Bias) for kind in own.values()):
        OutputError.refuse(
            f"{module}: is {kind.layout}, and other modules have a bias of factors: PEFT has no lora_bias "
            "beside embeddings and target_parameters: write the whole dW (out_type: delta)"
            for module, kind in sorted(own.items())
            if isinstance(kind, Embedding | Expert)
        )
        for module in [module for module, kind in own.items() if isinstance(kind, Linear | Convolution)]:
            own.setdefault(f"{module}.bias", Bias({}, 1.0))
            b = whole[module].B
            whole.setdefault(f"{module}.bias", LowRankUpdate(0 * b[:, :1], b.new_ones(1, 1)))
    return dict(sorted(whole.items())), own


def name_tensors(updates: Mapping[str, LowRankUpdate], kinds: Mapping[str, Layer]) -> dict[str, Tensor]:
    """Return the tensors of a file, by PEFT's names, that hold updates (see `complete`)."""
    groups: dict[tuple[str, type[Layer]], list[str]] = {}
    for module, kind in kinds.items():
        groups.setdefault((kind.stem(module), type(kind)), []).append(module)
    tensors = {}
    for (stem, own), modules in groups.items():
        modules.sort(key=lambda module: (len(module), module))  # experts by their number
        parts = [kinds[module].store(updates[module]) for module in modules]
        for side, tensor in kinds[modules[0]].gather(parts).items():
            name = _NAMES.get(own, "lora_{side}.weight").format(side=side)
            tensors[f"base_model.model.{stem}.{name}"] = tensor.contiguous()
    return tensors


_NAMES: Mapping[type[Layer], str] = {Embedding: "lora_embedding_{side}", Bias: "lora_B.bias"}


def describe(updates: Mapping[str, LowRankUpdate], kinds: Mapping[str, Layer]) -> dict[str, Any]:
    """Return the settings that make PEFT load updates (see `complete`) with the scales that they have."""
    modules, parameters = {}, {}
    for module, kind in kinds.items():
        update, stem = updates[module], kind.stem(module)
        if isinstance(kind, Expert):
            parameters.update({f"{parent(stem)}.{name}": update for name in kind.parameters})
        elif not isinstance(kind, Bias):
            modules[stem] = update
    settings: dict[str, Any] = {
        **scale_settings(modules | parameters),
        "use_rslora": False,
        "target_modules": sorted(modules),
    }
    if parameters:
        settings["target_parameters"] = sorted(parameters)
    if any(isinstance(kind, Bias) for kind in kinds.values()):
        settings["lora_bias"] = True
    return settings
