"""Whether models fit each other, so that they can be merged: one set of names, one shape each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, TypeVar, final

import torch

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.base_names import agree_on_base
from riemerge.formats.checkpoint.custom_code import check_code
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.files.text import brief, find_repeated, list_names, show
from riemerge.formats.layers import Expert
from riemerge.formats.module_names import find_renaming

Missing: TypeAlias = Literal["error", "zero", "skip"]
"""What a module counts as that some adapters lack: a fault, an update of zero, or nothing at all."""


@final
@dataclass(frozen=True, slots=True)
class Fit:
    """In what adapters that can be merged do not agree of themselves.

    Attributes:
        base: The base model that their merge names; None where no adapter names one.
        notes: What was taken to be the same, and what may have been meant otherwise.
    """

    base: str | None
    notes: tuple[str, ...]


def check_collection(
    adapters: Sequence[Adapter],
    *,
    same_base: bool = False,
    base_name: str | None = None,
    missing: Missing = "error",
) -> Fit:
    """Check that these adapters can be merged with each other.

    Law: afterwards all have one set of modules, unless `missing` says what those count as that some lack;
    each module has one shape (m, n) and one kind of layer, all adapters one `fan_in_fan_out` and one base
    model (see `riemerge.formats.base_names.agree_on_base`), and no folder occurs twice. The ranks may differ.

    Args:
        adapters: The adapters.
        same_base: Whether they are taken as trained on one base model, whatever they name.
        base_name: The base model that their merge is to name.
        missing: What a module counts as that some adapters lack.

    Raises:
        AdapterError: With every problem found.
    """
    base = agree_on_base(
        {adapter.path: adapter.config.base_model_name_or_path for adapter in adapters},
        same=same_base,
        name=base_name,
    )
    problems, notes = find_repeated([adapter.path for adapter in adapters]), list(base.notes)
    wrapped, lacking = _differing_modules(adapters)
    if missing == "error":
        problems += wrapped + lacking
    else:
        notes += wrapped
    problems += _differing(
        "the shapes of dW differ",
        {
            adapter: {module: _size(adapter.shape(module)) for module in adapter.modules}
            for adapter in adapters
        },
        "is it one base model?",
    )
    problems += _differing(
        "the kinds of layers differ",
        {adapter: {module: layer.layout for module, layer in adapter.layers.items()} for adapter in adapters},
        "is it one base model?",
    )
    problems += _differing_experts(adapters)
    turned = {adapter.path: adapter.config.fan_in_fan_out for adapter in adapters}
    if len(set(turned.values())) > 1:
        each = _each(map(str, turned.values()), turned)
        problems.append(f"fan_in_fan_out differs: {each}; it must be the same in all adapters")
    AdapterError.refuse([*problems, *base.problems])
    return Fit(base.name, tuple(notes))


def _differing_modules(adapters: Sequence[Adapter]) -> tuple[list[str], list[str]]:
    """Say which adapters have the modules of the first under a wrapper's name, and which lack modules."""
    names = {adapter: frozenset(adapter.modules) for adapter in adapters}
    wrapped = []
    for adapter, own in list(names.items())[1:]:
        first = names[adapters[0]]
        if own != first and (found := find_renaming(own, first)):
            names[adapter] = first
            old, new = found
            wrapped.append(
                f"{adapter.path}: has the modules of {adapters[0].path} but for the prefix {show(old)}: "
                f"--rename {show(old)}={show(new)} (rename: in a recipe) reads them as the same modules"
            )
    ways_out = (
        "merge with --missing zero (its update there is zero) or --missing skip (it takes no part there)"
    )
    if names and not frozenset.intersection(*names.values()):
        counts = "; ".join(f"{adapter.path} has {list_names(sorted(own))}" for adapter, own in names.items())
        return wrapped, [f"the adapters have no module in common: {counts}; {ways_out}"]
    return wrapped, [f"{text}; {ways_out}" for text in _missing(names, "modules")]


def _differing_experts(adapters: Sequence[Adapter]) -> list[str]:
    """Say which adapters have factors for each expert, where others have them for one parameter of all.

    Source: PEFT 0.21.2, `utils.transformers_weight_conversion`.
    """
    stacked = [
        str(adapter.path)
        for adapter in adapters
        if any(isinstance(layer, Expert) for layer in adapter.layers.values())
    ]
    apart = [
        str(adapter.path)
        for adapter in adapters
        if any(re.search(r"(^|\.)experts\.\d+\.", module) for module in adapter.modules)
    ]
    if not stacked or not apart or {*stacked} & {*apart}:
        return []
    text = (
        f"{', '.join(apart)}: has factors for each expert (experts.0, ...), but {', '.join(stacked)} for all "
        "experts in one parameter (target_parameters): so do transformers before and from version 5 name one "
        "model. PEFT converts the older form as it loads: load that adapter with transformers 5 and save it "
        "again (save_pretrained), so that all have one form"
    )
    return [text]


def check_checkpoints(checkpoints: Sequence[Checkpoint]) -> None:
    """Check that these checkpoints can be merged with each other, from their headers and their code.

    Law: afterwards all have one set of names, each name one shape and one kind (a float of any width, or one
    dtype of integers or bools), no checkpoint occurs twice, and none brings other code. Whether integers
    and bools have the same values is known when they are read.

    Raises:
        AdapterError: With every problem found.
    """
    sizes = {model: {name: _size(shape) for name, shape in model.shapes.items()} for model in checkpoints}
    kinds = {model: {name: _kind(dtype) for name, dtype in model.dtypes.items()} for model in checkpoints}
    AdapterError.refuse(
        [
            *find_repeated([checkpoint.path for checkpoint in checkpoints]),
            *_missing(sizes, "tensors"),
            *_differing("the shape differs", sizes, "is it one architecture?"),
            *_differing("the dtype differs", kinds, "is it one architecture?"),
            *check_code(checkpoints),
        ]
    )


def differing_facts(adapters: Mapping[str, Adapter]) -> list[str]:
    """Say in which facts beside dW adapters, by their names, differ, so that a merge of them has none.

    Source: PEFT 0.21.2. It loads the base model at the `revision` of an adapter (null is `main`), in the
    class of its `task_type` or `auto_mapping`, and merges adapters that differ in them without a word.
    """
    texts = []
    for key, lost in (
        ("revision", "their bases may differ, and the merged adapter names none, which is main"),
        ("task_type", "the merged adapter names none"),
        ("auto_mapping", "the merged adapter names none"),
    ):
        values = {name: getattr(adapter.config, key) for name, adapter in adapters.items()}
        facts = [None if (key, value) == ("revision", "main") else value for value in values.values()]
        if any(fact != facts[0] for fact in facts):
            texts.append(f"{key} differs: {_each(map(brief, values.values()), values)}: {lost}")
    return texts


class _Model(Protocol):
    """A model that is known by its path."""

    @property
    def path(self) -> Path: ...


_AnyModel = TypeVar("_AnyModel", bound=_Model)


def _missing(names: Mapping[_AnyModel, Iterable[str]], things: str) -> list[str]:
    """Say which models lack modules, or tensors, that others have."""
    union = {name for own in names.values() for name in own}
    missing = {model: sorted(union.difference(own)) for model, own in names.items()}
    return [
        f"{model.path}: lacks {len(lacking)} of {len(union)} {things} that others have: {list_names(lacking)}"
        for model, lacking in missing.items()
        if lacking
    ]


def _differing(fault: str, facts: Mapping[_AnyModel, Mapping[str, str]], question: str) -> list[str]:
    """Say which modules, or tensors, have a fact that is not the same in all models."""
    problems = []
    for name in sorted({name for own in facts.values() for name in own}):
        values = {model.path: own[name] for model, own in facts.items() if name in own}
        if len(set(values.values())) > 1:
            problems.append(f"{show(name)}: {fault}: {_each(values.values(), values)}; {question}")
    return problems


def _each(values: Iterable[str], models: Iterable[object]) -> str:
    """Say which value is in which model."""
    return ", ".join(f"{value} in {model}" for value, model in zip(values, models, strict=True))


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _kind(dtype: torch.dtype) -> str:
    return "a float" if dtype.is_floating_point else str(dtype)
