"""Inputs: models as a recipe names them, opened together, told apart by name, put in one order, read."""

from __future__ import annotations

import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import ClassVar, Generic, TypeAlias, TypeVar, final

import torch

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.checkpoint import Checkpoint, code_notes, read_checkpoint
from riemerge.formats.files.text import listed
from riemerge.formats.fit import check_checkpoints, check_collection
from riemerge.formats.kinds import holds_model, is_checkpoint, models_below
from riemerge.formats.peft import Adapter, read_adapter
from riemerge.merging.model_class import adapted_class, checkpoint_class
from riemerge.methods import Method, find_method
from riemerge.recipes.recipe import Recipe
from riemerge.records.run_record import OutType
from riemerge.statistics import read_statistics
from riemerge.updates import DenseSpan, LowRankUpdate

Model: TypeAlias = Adapter | Checkpoint
Models: TypeAlias = Mapping[Path, Model]
"""Models that are open, by path: what is read of them later is what was checked, or an error."""

WEIGHT = ".weight"

_Model = TypeVar("_Model", Adapter, Checkpoint)
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


@dataclass(frozen=True)
class Inputs(ABC, Generic[_Model]):
    """The T models that count in a merge, in the order of the stack: what is known of them, and their reader.

    Attributes:
        each: The T inputs.
        out_type: What they merge to if nothing else is asked for.
    """

    each: tuple[Input[_Model], ...]
    out_type: ClassVar[OutType]

    @property
    def models(self) -> tuple[_Model, ...]:
        """The T open models."""
        return tuple(entry.model for entry in self.each)

    @property
    def places(self) -> tuple[int, ...]:
        """The places of the T models among those asked for."""
        return tuple(entry.place for entry in self.each)

    @property
    def order(self) -> list[int]:
        """Places in the stack, in the order in which the record names the inputs."""
        return sorted(range(len(self.each)), key=lambda i: self.each[i].place)

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names of all modules, or tensors, of each model, sorted."""

    @property
    @abstractmethod
    def merged(self) -> tuple[str, ...]:
        """Those of the names that are merged: a tensor of integers is only copied."""

    @abstractmethod
    def measured(self, recipe: Recipe) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each module that must have statistics, by its name in the base model.

        Raises:
            AdapterError: None of those that have statistics is there.
        """

    @abstractmethod
    def unseen(self, method: Method, measured: Iterable[str]) -> frozenset[str]:
        """Return the modules that a row of the table does not see.

        Args:
            method: The row.
            measured: The modules with statistics, where the row needs them.
        """

    @abstractmethod
    def read(
        self, module: str, dtype: torch.dtype, device: torch.device
    ) -> tuple[LowRankUpdate, ...] | DenseSpan:
        """Read the T updates of a module.

        Args:
            module: One of `merged`.
            dtype: The dtype of tall factors; dense updates are float64.
            device: Where they go.

        Raises:
            AdapterError: A tensor cannot be read.
        """

    @abstractmethod
    def out_dtype(self, asked: torch.dtype | None) -> torch.dtype | None:
        """Return the dtype that is written; None where each tensor keeps that of the inputs."""

    @property
    @abstractmethod
    def stored(self) -> tuple[torch.dtype, ...]:
        """The T dtypes in which factors are stored."""

    @abstractmethod
    def bases(self, recipe: Recipe) -> tuple[str | None, ...]:
        """Return what the inputs, or their recipe, call the base model."""

    @property
    @abstractmethod
    def model_class(self) -> str:
        """`library.Class` of the model that the result is for, or is."""

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """Warnings that only the files of the inputs give rise to."""


@final
@dataclass(frozen=True)
class AdapterInputs(Inputs[Adapter]):
    """Adapters: an update of a module is its factors."""

    out_type: ClassVar[OutType] = "adapter"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the modules, which all adapters have."""
        return tuple(sorted(self.models[0].modules))

    @property
    def merged(self) -> tuple[str, ...]:
        """All modules."""
        return self.names

    def measured(self, recipe: Recipe) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of all modules."""
        first = self.models[0]
        return {module: first.shape(module) for module in first.modules}

    def unseen(self, method: Method, measured: Iterable[str]) -> frozenset[str]:
        """Return none: rows see all updates of adapters."""
        return frozenset()

    def read(self, module: str, dtype: torch.dtype, device: torch.device) -> tuple[LowRankUpdate, ...]:
        """Read the factors of a module."""
        return tuple(adapter.update(module, dtype=dtype, device=device) for adapter in self.models)

    def out_dtype(self, asked: torch.dtype | None) -> torch.dtype:
        """Return the dtype asked for, or the least that holds all stored factors."""
        return asked or reduce(torch.promote_types, self.stored)

    @property
    def stored(self) -> tuple[torch.dtype, ...]:
        """The T dtypes in which factors are stored."""
        return tuple(adapter.dtype for adapter in self.models)

    def bases(self, recipe: Recipe) -> tuple[str | None, ...]:
        """Return what the T adapters call their base model."""
        return tuple(adapter.config.base_model_name_or_path for adapter in self.models)

    @property
    def model_class(self) -> str:
        """The class of the model that the adapters are for."""
        return adapted_class(self.models)

    @property
    def notes(self) -> tuple[str, ...]:
        """None: what there is to say of adapters, the record says of each."""
        return ()


@final
@dataclass(frozen=True)
class CheckpointInputs(Inputs[Checkpoint]):
    """Full checkpoints: an update of a tensor is its difference from the base model, or the tensor itself.

    Attributes:
        base: The base model, if any.
        carried: The model whose other files go with the result: the base model, or the first asked for.
    """

    base: Checkpoint | None
    carried: Checkpoint
    out_type: ClassVar[OutType] = "checkpoint"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors."""
        return self.carried.names

    @cached_property
    def merged(self) -> tuple[str, ...]:
        """The names of the tensors of floats."""
        return tuple(name for name in self.names if self.models[0].dtypes[name].is_floating_point)

    def measured(self, recipe: Recipe) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the weights that have statistics, by module."""
        first = self.models[0]
        folders = [*(recipe.models[i].statistics for i in self.places), recipe.base_statistics]
        known = {module for folder in folders if folder for module in read_statistics(folder).modules}
        shapes = {
            name.removesuffix(WEIGHT): first.shapes[name]
            for name in self.merged
            if name.endswith(WEIGHT) and name.removesuffix(WEIGHT) in known
        }
        if not shapes:
            raise AdapterError(
                f"statistics: of {listed(sorted(known))}, none of them a weight of {first.path}: expected "
                "those of its modules, under their names there"
            )
        return shapes

    def unseen(self, method: Method, measured: Iterable[str]) -> frozenset[str]:
        """Return the tensors without statistics, or of a shape that the domain does not see."""
        weights = {module + WEIGHT for module in measured}
        if method.statistics:
            return frozenset(name for name in self.merged if name not in weights)
        return frozenset(
            name for name in self.merged if not _sees(method.domain, self.models[0].shapes[name])
        )

    def read(self, module: str, dtype: torch.dtype, device: torch.device) -> DenseSpan:
        """Read a tensor of all checkpoints, less that of the base model."""
        x = torch.stack([model.tensor(module, device=device) for model in self.models])
        if self.base is not None:
            x -= self.base.tensor(module, device=device)
        return DenseSpan(x)

    def out_dtype(self, asked: torch.dtype | None) -> torch.dtype | None:
        """Return the dtype asked for."""
        return asked

    @property
    def stored(self) -> tuple[torch.dtype, ...]:
        """float64 for each: there are no factors."""
        return (torch.float64,) * len(self.each)

    def bases(self, recipe: Recipe) -> tuple[str | None, ...]:
        """Return what the recipe calls the base model."""
        return (recipe.base_model,)

    @property
    def model_class(self) -> str:
        """The class that the settings beside the tensors name."""
        return checkpoint_class(self.carried)

    @property
    def notes(self) -> tuple[str, ...]:
        """Which code goes with the result."""
        return tuple(code_notes(self.carried))


def _sees(domain: str, shape: tuple[int, ...]) -> bool:
    """Whether rows of a domain see tensors of a shape."""
    if domain == "entries":
        return True
    if domain == "gram":
        return math.prod(shape) > 1  # a number has no direction, and its sign is no angle
    return len(shape) == 2 and 0 not in shape


# --- opening ------------------------------------------------------------------------------------------------


def open_inputs(recipe: Recipe, method: Method, opened: Models) -> AdapterInputs | CheckpointInputs:
    """Open the models that count somewhere, and put them in an order that depends on their content alone.

    Law: a model of weight 0 is not touched; the order asked for changes nothing but `place`, except for a
    method whose models are a sequence.

    Args:
        recipe: What names the models, expanded (see `expanded`).
        method: The row of the table.
        opened: Models that are open already.

    Raises:
        RecipeError: The models are of two kinds, or the recipe asks what makes no sense for their kind.
        AdapterError: Every problem of every model; or the models do not fit each other.
    """
    paths = [entry.model for entry in recipe.models]
    used = counting(recipe)
    # One that is not there is refused by the reader of the others.
    kinds = {is_checkpoint(path) for path in paths if os.path.lexists(path)}
    if kinds != {True} and (True in kinds or recipe.base_model or recipe.out_type == "checkpoint"):
        # First what is wrong with a path, which may not be of the kind that it seems to be.
        read_each(lambda path: _open(opened, path), [paths[i] for i in used])
    if len(kinds) > 1:
        named = ", ".join(path for path in paths if is_checkpoint(path))
        raise RecipeError(
            f"models: {named}: full checkpoints, the others are adapters: merge one kind at a time"
        )
    if kinds == {True}:
        base = [recipe.base_model] if recipe.base_model else []
        # Here too: what is asked of a path may have been meant otherwise.
        models = read_each(lambda path: _open_checkpoint(opened, path), [*(paths[i] for i in used), *base])
        _check_for_checkpoints(recipe, method)
        check_checkpoints(models)
        checkpoints = models[: len(used)]
        own = models[-1] if base else None
        return CheckpointInputs(in_order(recipe, method, checkpoints), own, own or checkpoints[0])
    _check_for_adapters(recipe, method)
    adapters = read_each(lambda path: _open_adapter(opened, path), [paths[i] for i in used])
    check_collection(adapters)
    return AdapterInputs(in_order(recipe, method, adapters))


def _open(opened: Models, path: str) -> Model:
    """Open a folder as what it is."""
    return opened.get(Path(path)) or (read_checkpoint(path) if is_checkpoint(path) else read_adapter(path))


def _open_adapter(opened: Models, path: str) -> Adapter:
    model = opened.get(Path(path))
    return model if isinstance(model, Adapter) else read_adapter(path)


def _open_checkpoint(opened: Models, path: str) -> Checkpoint:
    model = opened.get(Path(path))
    return model if isinstance(model, Checkpoint) else read_checkpoint(path)


def _check_for_adapters(recipe: Recipe, method: Method) -> None:
    """Refuse what makes no sense for adapters."""
    if recipe.base_model:
        raise RecipeError("base_model: the base model is not needed to merge adapters: leave it out")
    if recipe.out_type == "checkpoint":
        raise RecipeError(
            "out_type: checkpoint: adapters merge to an adapter or a delta: add a delta to the base"
        )
    if recipe.out_type != "delta":
        return
    whole = "out_type delta writes the whole dW, which has no rank: leave it out"
    cut = recipe.parameters.get("rank") not in {None, "sum"}
    if cut and not (method.truncates_inputs or method.constrained):
        raise RecipeError(f"parameters.rank: {whole}")
    if recipe.uniform_rank:
        raise RecipeError(f"uniform_rank: {whole}")


def _check_for_checkpoints(recipe: Recipe, method: Method) -> None:
    """Refuse what makes no sense for full checkpoints."""
    problems = []
    if method.checkpoints == "no":
        problems.append(f"merge_method: {method.name} merges adapters only, and these are full checkpoints")
    if method.checkpoints == "updates" and not recipe.base_model:
        problems.append(
            f"base_model: missing: {method.name} merges what each model changed of a common base: name it"
        )
    if recipe.base_model and method.checkpoints == "weights":
        base = Path(recipe.base_model).resolve()
        problems += [
            f"models[{i}]: {entry.model} is the base_model itself, and its difference from it is zero: "
            "leave base_model out to merge the weights as they are"
            for i, entry in enumerate(recipe.models)
            if Path(entry.model).resolve() == base
        ]
    if "scale" in recipe.parameters and not recipe.base_model:
        problems.append("parameters.scale: scales the merged update, which needs base_model: name it")
    if "rank" in recipe.parameters:
        problems.append("parameters.rank: full checkpoints are not cut to a rank: leave it out")
    if recipe.uniform_rank:
        problems.append("uniform_rank: full checkpoints have no rank: leave it out")
    if recipe.dtype != "float64":
        problems.append(f"dtype: {recipe.dtype}: full checkpoints are merged in float64: leave it out")
    if recipe.out_type not in {None, "checkpoint"}:
        problems.append(f"out_type: {recipe.out_type}: full checkpoints merge to a checkpoint")
    if problems:
        raise RecipeError(problems)


def in_order(recipe: Recipe, method: Method, models: Sequence[_Model]) -> tuple[Input[_Model], ...]:
    """Put the models that count in an order that depends on their content alone, if the method lets it.

    Args:
        recipe: What names them.
        method: The row of the table.
        models: The open models, in the order asked for.
    """
    names, used = display_names([entry.model for entry in recipe.models]), counting(recipe)
    inputs = [Input(i, names[i], model) for i, model in zip(used, models, strict=True)]
    if method.ordered:
        return tuple(inputs)
    # Two entries may share a file, but not their parameters: these break the tie.
    entries = [(entry.statistics or "", dict(entry.parameters)) for entry in recipe.models]
    said = [json.dumps(entry, sort_keys=True) for entry in entries]
    return tuple(sorted(inputs, key=lambda entry: (*entry.model.sha256.values(), said[entry.place])))


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
    return int(["-1", *re.findall(r"\d+", name)][-1])


def counting(recipe: Recipe) -> tuple[int, ...]:
    """Return the places of the models whose weight is not 0 everywhere."""
    return tuple(i for i, weight in enumerate(recipe.weights) if weight is None or weight != 0)


def folders_of(recipe: Recipe) -> list[str]:
    """Return the folders of models that a recipe reads, which no output may touch."""
    return [*(entry.model for entry in recipe.models), *filter(None, [recipe.base_model])]


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
    models: list[_Read] = []
    problems: list[str] = []
    for model in given:
        try:
            models.append(read(model))
        except AdapterError as fault:
            problems += fault.problems
    if problems:
        raise AdapterError(problems)
    return models


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
