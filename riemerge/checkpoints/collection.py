"""Whether checkpoints fit each other: the same tensors, of the same shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from riemerge.checkpoints.code import check_code
from riemerge.checkpoints.reader import Checkpoint
from riemerge.errors import AdapterError
from riemerge.storage.text import listed, repeated, shown


def check_checkpoints(checkpoints: Sequence[Checkpoint]) -> None:
    """Check that these checkpoints can be merged with each other, from their headers and their code.

    Law: afterwards all have one set of names, each name one shape and one kind (a float of any width, or one
    dtype of integers or bools), no checkpoint occurs twice, and none brings other code. Whether integers
    and bools have the same values is known when they are read.

    Raises:
        AdapterError: With every problem found.
    """
    problems = [
        *repeated([checkpoint.path for checkpoint in checkpoints]),
        *_missing(checkpoints),
        *_differing(
            "the shape", {c: {name: _size(shape) for name, shape in c.shapes.items()} for c in checkpoints}
        ),
        *_differing(
            "the dtype", {c: {name: _kind(dtype) for name, dtype in c.dtypes.items()} for c in checkpoints}
        ),
        *check_code(checkpoints),
    ]
    if problems:
        raise AdapterError(problems)


def _missing(checkpoints: Sequence[Checkpoint]) -> list[str]:
    union = {name for checkpoint in checkpoints for name in checkpoint.shapes}
    missing = [(checkpoint, sorted(union - {*checkpoint.shapes})) for checkpoint in checkpoints]
    return [
        f"{checkpoint.path}: lacks {len(names)} of {len(union)} tensors that others have: {listed(names)}"
        for checkpoint, names in missing
        if names
    ]


def _differing(what: str, facts: Mapping[Checkpoint, Mapping[str, str]]) -> list[str]:
    problems = []
    for name in sorted({name for each in facts.values() for name in each}):
        values = {checkpoint.path: each[name] for checkpoint, each in facts.items() if name in each}
        if len(set(values.values())) > 1:
            each = ", ".join(f"{value} in {path}" for path, value in values.items())
            problems.append(f"{shown(name)}: {what} differs: {each}; is it one architecture?")
    return problems


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _kind(dtype: torch.dtype) -> str:
    return "a float" if dtype.is_floating_point else str(dtype)
