"""A stack of layers: a checkpoint whose layers are those of others, in any order and as often as asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, final

import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint.embedded import find_head
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.files.text import list_names

_LAYER = re.compile(r"(?P<stack>(?:.*\.)?(?:layers|layer|blocks|block|h)\.)(?P<layer>\d{1,9})(?P<rest>\..+)")
_INPUT = re.compile(
    r"(.*\.)?(embed_tokens|wte|wpe|embed_in|tok_embeddings|\w*embeddings?\w*|embed_positions)\..*"
)


class Run(NamedTuple):
    """Layers that follow each other in a stack.

    Attributes:
        first: The first of them in the stack.
        length: How many they are.
        start: The layer of the checkpoint that the first of them is; None where the checkpoint has no part in
            the run.
    """

    first: int
    length: int
    start: int | None


@final
@dataclass(frozen=True, eq=False)
class StackedCheckpoint(Checkpoint):
    """A checkpoint with other layers: a view. Made by `stack`.

    Law: each tensor is one of the checkpoint's, bit for bit. Where the checkpoint has no part in a run, its
    tensors there are those of `fill`, or zero.

    Attributes:
        of: The checkpoint.
        places: The tensor of the checkpoint that each tensor is.
        fill: What has the tensors in which the checkpoint has no part; None for zeros.
    """

    of: Checkpoint
    places: Mapping[str, str] = field(repr=False)
    fill: Checkpoint | None

    @property
    def name(self) -> str:
        """The name of the checkpoint."""
        return self.of.name

    @property
    def sha256(self) -> Mapping[str, str]:
        """The sha256, in hex, of each file that enters the checkpoint's own tensors, by file name."""
        return self.of.sha256

    def source(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        if name in self.places:
            return self.of.source(self.places[name])
        return self.of.path

    def _read(self, name: str, rows: Sequence[range] | None) -> Tensor:
        if name in self.places:
            return self.of._read(self.places[name], rows)
        if self.fill is not None:
            return self.fill._read(name, rows)
        shape = self.shapes[name]
        if rows is not None:
            shape = (sum(map(len, rows)), *shape[1:])
        return torch.zeros(shape, dtype=self.dtypes[name])


def stack(
    checkpoints: Sequence[Checkpoint], runs: Sequence[Sequence[Run]], base: Checkpoint | None = None
) -> list[StackedCheckpoint]:
    """Return checkpoints whose layers are runs of those that they have.

    Law: all have one set of tensors. What embeds the tokens is of the checkpoints that have a part in the
    first run, all else outside of the layers of those that have one in the last.

    Args:
        checkpoints: The checkpoints, of one architecture.
        runs: The runs of each checkpoint, from the first layer on; they begin and end at the same layers.
        base: One of the checkpoints, with a part in every run, that stands where another has none; None for
            zeros.

    Raises:
        AdapterError: A checkpoint has no such layers, or no layers at all.

    Source: mergekit 0.1.5, `MergePlanner`.
    """
    for checkpoint, own in zip(checkpoints, runs, strict=True):
        _, count = layers_of(checkpoint)
        AdapterError.refuse(
            f"{checkpoint.path}: has {count} layers, and those of the layer_range "
            f"[{run.start}, {run.start + run.length}] are asked for"
            for run in own
            if run.start is not None and run.start + run.length > count
        )
    placed = [_places(one, own) for one, own in zip(checkpoints, runs, strict=True)]
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for checkpoint, places in zip(checkpoints, placed, strict=True):
        shapes = {name: checkpoint.shapes[place] for name, place in places.items()} | shapes
        dtypes = {name: checkpoint.dtypes[place] for name, place in places.items()} | dtypes
    names = sorted(shapes)
    views: dict[Checkpoint, StackedCheckpoint] = {}
    # The base first: it is what others have where they have no part.
    pairs = sorted(zip(checkpoints, placed, strict=True), key=lambda pair: pair[0] is not base)
    for checkpoint, places in pairs:
        found = {name: places.get(name) for name in names}
        views[checkpoint] = StackedCheckpoint(
            path=checkpoint.path,
            shapes=MappingProxyType(
                {name: checkpoint.shapes[place] if place else shapes[name] for name, place in found.items()}
            ),
            dtypes=MappingProxyType(
                {name: checkpoint.dtypes[place] if place else dtypes[name] for name, place in found.items()}
            ),
            other_files=checkpoint.other_files,
            of=checkpoint,
            places=MappingProxyType(places),
            fill=base and views.get(base),
        )
    return [views[checkpoint] for checkpoint in checkpoints]


def untie(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return checkpoints that all have a head where one has: that of the others is their embedding."""
    found = {checkpoint: find_head(checkpoint) for checkpoint in checkpoints}
    heads = {pair[1] for pair in found.values() if pair and pair[1]}
    if len(heads) != 1:
        return list(checkpoints)
    (head,) = heads
    return [
        _with_head(checkpoint, pair[0], head) if (pair := found[checkpoint]) and not pair[1] else checkpoint
        for checkpoint in checkpoints
    ]


def _with_head(checkpoint: Checkpoint, embedding: str, head: str) -> Checkpoint:
    """Return a checkpoint with its embedding as its head too."""
    places = {**{name: name for name in checkpoint.names}, head: embedding}
    names = sorted(places)
    return StackedCheckpoint(
        path=checkpoint.path,
        shapes=MappingProxyType({name: checkpoint.shapes[places[name]] for name in names}),
        dtypes=MappingProxyType({name: checkpoint.dtypes[places[name]] for name in names}),
        other_files=checkpoint.other_files,
        of=checkpoint,
        places=MappingProxyType(places),
        fill=None,
    )


def _places(checkpoint: Checkpoint, runs: Sequence[Run]) -> dict[str, str]:
    """Return the tensor of a checkpoint that each tensor of the stack is, where it has a part."""
    before, _ = layers_of(checkpoint)
    by_layer: dict[int, list[str]] = {}
    places: dict[str, str] = {}
    for name in checkpoint.names:
        if match := _LAYER.fullmatch(name):
            by_layer.setdefault(int(match["layer"]), []).append(match["rest"])
        elif runs[run_of(name, runs)].start is not None:
            places[name] = name
    for run in runs:
        for i in range(run.length):
            if run.start is not None:
                pair = (f"{before}{run.first + i}", f"{before}{run.start + i}")
                places |= {pair[0] + rest: pair[1] + rest for rest in by_layer[run.start + i]}
    return places


def run_of(name: str, runs: Sequence[Run]) -> int:
    """Return the place of the run in which a tensor of a stack stands."""
    if match := _LAYER.fullmatch(name):
        layer = int(match["layer"])
        return next(k for k, run in enumerate(runs) if layer < run.first + run.length)
    if _INPUT.fullmatch(name):
        return 0
    return len(runs) - 1


def depth_in(name: str, run: Run) -> float:
    """Return how deep in its run a tensor stands, from 0 to 1: 1 in a run of one layer, 0 in none."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return 0.0
    if run.length == 1:
        return 1.0
    return (int(match["layer"]) - run.first) / (run.length - 1)


def layers_of(checkpoint: Checkpoint) -> tuple[str, int]:
    """Return how the names of a checkpoint's layers begin, and how many layers there are.

    Raises:
        AdapterError: There are no layers, several stacks of them, or gaps between them.
    """
    matches = [match for name in checkpoint.names if (match := _LAYER.fullmatch(name))]
    stacks = sorted({match["stack"] for match in matches})
    if len(stacks) != 1:
        what = list_names(stacks) or "none"
        raise AdapterError(f"{checkpoint.path}: has the stacks of layers {what}: slices are of one stack")
    layers = {int(match["layer"]) for match in matches}
    if layers != {*range(len(layers))}:
        raise AdapterError(f"{checkpoint.path}: has the layers {sorted(layers)}: expected 0, 1, 2 ...")
    return stacks[0], len(layers)
