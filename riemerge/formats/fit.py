"""Whether models fit each other, so that they can be merged: one set of names, one shape each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint.custom_code import check_code
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.files.text import brief, find_repeated, list_names, show


def check_collection(adapters: Sequence[Adapter]) -> None:
    """Check that these adapters can be merged with each other.

    Law: afterwards all have one set of modules, each module one shape (m, n), one `fan_in_fan_out`, at most
    one base model among those that name one, and no folder occurs twice. The ranks may differ.

    Raises:
        AdapterError: With every problem found.
    """
    names = {adapter: adapter.modules for adapter in adapters}
    problems = find_repeated([adapter.path for adapter in adapters])
    if adapters and not set.intersection(*map(set, names.values())):
        counts = "; ".join(f"{adapter.path} has {list_names(modules)}" for adapter, modules in names.items())
        problems.append(f"the adapters have no module in common: {counts}")
    else:
        problems += _missing(names, "modules")
    problems += _differing(
        "the shapes of dW differ",
        {
            adapter: {module: _size(adapter.shape(module)) for module in adapter.modules}
            for adapter in adapters
        },
        "is it one base model?",
    )
    for key in ("fan_in_fan_out", "base_model_name_or_path"):
        values = {adapter.path: getattr(adapter.config, key) for adapter in adapters}
        if len({value for value in values.values() if value is not None}) > 1:
            each = _each((show(str(value)) for value in values.values()), values)
            problems.append(f"{key} differs: {each}; it must be the same in all adapters")
    AdapterError.refuse(problems)


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
