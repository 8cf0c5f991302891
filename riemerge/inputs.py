"""Inputs: adapters as a recipe names them, opened together, told apart by name, put in one order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from riemerge.adapters import Adapter, check_collection, read_adapter
from riemerge.errors import AdapterError
from riemerge.methods import Method


@final
@dataclass(frozen=True, slots=True)
class Input:
    """One adapter that takes part in a merge.

    Attributes:
        place: Its place among the adapters asked for.
        name: Its name in messages and records.
        weight: Its weight as used.
        adapter: The open folder.
    """

    place: int
    name: str
    weight: float
    adapter: Adapter


def open_inputs(
    paths: Sequence[Path], weights: Sequence[float], method: Method, opened: Mapping[int, Adapter]
) -> tuple[Input, ...]:
    """Open the adapters that have a weight, and put them in an order that depends on their content alone.

    Law: an adapter of weight 0 is not touched; the order asked for changes nothing but `place`. Weights are
    divided by their sum where the method does so.

    Args:
        paths: T folders.
        weights: T finite weights, not all zero.
        method: The row of the table.
        opened: Place to adapter, of those that are open already.

    Raises:
        AdapterError: Every problem of every folder; or the adapters do not fit each other.
    """
    names = display_names(paths)
    used = [place for place, weight in enumerate(weights) if weight != 0]
    adapters = read_all([opened.get(place, paths[place]) for place in used])
    check_collection(adapters)
    total = math.fsum(weights) if method.normalised else 1.0
    inputs = [
        Input(place, names[place], weights[place] / total, adapter)
        for place, adapter in zip(used, adapters, strict=True)
    ]
    return tuple(sorted(inputs, key=lambda one: (*one.adapter.sha256.values(), one.weight)))


def read_all(adapters: Sequence[str | Path | Adapter]) -> list[Adapter]:
    """Open adapters that are not open yet, and report the problems of all of them at once.

    Raises:
        AdapterError: Every problem of every folder.
    """
    found: list[Adapter] = []
    problems: list[str] = []
    for one in adapters:
        try:
            found.append(one if isinstance(one, Adapter) else read_adapter(one))
        except AdapterError as fault:
            problems += fault.problems
    if problems:
        raise AdapterError(problems)
    return found


def display_names(paths: Sequence[str | Path]) -> tuple[str, ...]:
    """Return short names that tell folders apart: as many of the last parts of each path as that takes.

    >>> display_names(["runs/a/law", "runs/b/law", "runs/b/med"])
    ('a/law', 'b/law', 'med')
    """
    parts = [Path(path).absolute().parts for path in paths]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]))
    return tuple(names)
