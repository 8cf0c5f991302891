"""Inputs: adapters as a recipe names them, opened together, told apart by name, put in one order."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar, final

from riemerge.errors import AdapterError
from riemerge.formats.fit import check_collection
from riemerge.formats.kinds import holds_model, models_below
from riemerge.formats.peft import Adapter, read_adapter
from riemerge.methods import Method, find_method
from riemerge.recipes.recipe import Recipe


class Hashed(Protocol):
    """A model whose files have been hashed."""

    @property
    def sha256(self) -> Mapping[str, str]:
        """By file name, in hex."""
        ...


_Model = TypeVar("_Model", bound=Hashed)
_Given = TypeVar("_Given")
_Read = TypeVar("_Read")


@final
@dataclass(frozen=True, slots=True)
class Input(Generic[_Model]):
    """One model that takes part in a merge.

    Attributes:
        place: Its place among the models asked for.
        name: Its name in messages and records.
        model: The open folder.
    """

    place: int
    name: str
    model: _Model


def open_inputs(recipe: Recipe, method: Method, opened: Mapping[int, Adapter]) -> tuple[Input[Adapter], ...]:
    """Open the adapters that count somewhere, and put them in an order that depends on their content alone.

    Law: an adapter of weight 0 is not touched; the order asked for changes nothing but `place`, except for a
    method whose models are a sequence.

    Args:
        recipe: What names them.
        method: The row of the table.
        opened: Place to adapter, of those that are open already.

    Raises:
        AdapterError: Every problem of every folder; or the adapters do not fit each other.
    """
    paths = [Path(entry.model) for entry in recipe.models]
    used = counting(recipe)
    adapters = read_all([opened.get(place, paths[place]) for place in used])
    check_collection(adapters)
    return in_order(recipe, method, adapters)


def in_order(recipe: Recipe, method: Method, models: Sequence[_Model]) -> tuple[Input[_Model], ...]:
    """Put the models that count in an order that depends on their content alone, if the method lets it.

    Args:
        recipe: What names them.
        method: The row of the table.
        models: They themselves, in the order asked for.
    """
    names, used = display_names([entry.model for entry in recipe.models]), counting(recipe)
    inputs = [Input(place, names[place], model) for place, model in zip(used, models, strict=True)]
    if method.ordered:
        return tuple(inputs)
    # Copies of one file may differ in what is said of them.
    entries = [(entry.statistics or "", dict(entry.parameters)) for entry in recipe.models]
    said = [json.dumps(entry, sort_keys=True) for entry in entries]
    return tuple(sorted(inputs, key=lambda one: (*one.model.sha256.values(), said[one.place])))


def expanded(recipe: Recipe) -> Recipe:
    """Return a recipe with the folder of a run replaced by the checkpoints in it, for a method of a sequence.

    Law: a folder that is no model itself stands for the models in it, each with what was said of the folder,
    in the order of the last number in their names (`checkpoint-500` before `checkpoint-1000`), else of the
    names.
    """
    method = find_method(recipe.merge_method)
    if not method.ordered or method.models[1] is not None:
        return recipe
    models = [
        entry.model_copy(update={"model": str(path)})
        for entry in recipe.models
        for path in _steps(Path(entry.model))
    ]
    return recipe.model_copy(update={"models": tuple(models)})


def _steps(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a run; the folder itself where it is none."""
    # Pickles are steps too, and are refused by name later: none is left out in silence.
    names = [] if holds_model(folder) else models_below(folder)
    return [folder / name for name in sorted(names, key=lambda name: (_step(name), name))] or [folder]


def _step(name: str) -> int:
    """The last number in a name; -1 without one."""
    found = re.findall(r"\d+", name)
    return int(found[-1]) if found else -1


def counting(recipe: Recipe) -> tuple[int, ...]:
    """Return the places of the models whose weight is not 0 everywhere."""
    return tuple(place for place, weight in enumerate(recipe.weights) if weight is None or weight != 0)


def read_all(adapters: Sequence[str | Path | Adapter]) -> list[Adapter]:
    """Open adapters that are not open yet, and report the problems of all of them at once.

    Raises:
        AdapterError: Every problem of every folder.
    """
    return read_each(lambda one: one if isinstance(one, Adapter) else read_adapter(one), adapters)


def read_each(read: Callable[[_Given], _Read], given: Iterable[_Given]) -> list[_Read]:
    """Apply a reader to each model, and report the problems of all of them at once.

    Raises:
        AdapterError: Every problem of every model.
    """
    found: list[_Read] = []
    problems: list[str] = []
    for one in given:
        try:
            found.append(read(one))
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
