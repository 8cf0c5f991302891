"""What was computed of each module of a collection, in files of its folder: nothing is computed twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from riemerge.formats.adapter import Adapter
from riemerge.formats.files.staging import write_atomically, writing
from riemerge.formats.files.tensor_file import as_safetensors, open_tensors, read_start
from riemerge.study.collection.pairs import Facts, compare_fresh
from riemerge.study.collection.tiles import Tiles

WORK = "work"
"""Name of the folder in which facts of modules are kept."""

# Goes up when what is kept means something else.
_FORMAT = "1"

_TABLES = ("inner", "left", "right")


@final
class Work:
    """Facts of modules, each in a file of its own, by the digests of the adapters that they are of.

    Law: a file appears whole or not at all. What is kept of an adapter stays while the files that it is of
    have the same sha256; all pairs of the adapters of a file are known.

    Args:
        folder: Folder of the collection, which is there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / WORK
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)

    def path(self, module: str, suffix: str) -> Path:
        """Return the path of a file about a module; names of modules are no names of files."""
        return self._folder / (hashlib.sha256(module.encode()).hexdigest()[:24] + suffix)

    def load(self, module: str) -> tuple[list[str], Facts] | None:
        """Return the digests of T adapters and the facts of a module of theirs; None where none are kept."""
        try:
            file = open_tensors(self.path(module, ".safetensors"))
            if file.metadata.get("format") != _FORMAT:
                return None
            names: list[str] = json.loads(file.metadata["adapters"])
        except (ValueError, KeyError):  # missing, or of another hand
            return None
        tensors = dict(zip(Facts._fields, file.read(*Facts._fields), strict=True))
        upper = torch.triu_indices(len(names), len(names))
        return names, Facts(
            **{
                name: _expand(tensor, upper, len(names)) if name in _TABLES else tensor
                for name, tensor in tensors.items()
            }
        )

    def store(self, module: str, names: Sequence[str], facts: Facts) -> None:
        """Keep the facts of a module.

        Raises:
            OutputError: The file cannot be written.
        """
        upper = torch.triu_indices(len(names), len(names))
        tensors = {
            name: tensor[upper[0], upper[1]] if name in _TABLES else tensor
            for name, tensor in facts._asdict().items()
        }
        metadata = {"format": _FORMAT, "module": module, "adapters": json.dumps(list(names))}
        write_atomically(self.path(module, ".safetensors"), as_safetensors(tensors, metadata))

    def remember(self, module: str, suffix: str, key: str, compute: Callable[[], Sequence[Any]]) -> list[Any]:
        """Return what was computed for a key, as JSON has it; compute it where there is none for that key.

        A file that is not whole, or of another hand, keeps nothing.
        """
        path = self.path(module, suffix)
        with suppress(ValueError, TypeError, LookupError):
            found: list[Any] = json.loads(read_start(path, -1))
            if found[0] == key:
                return found[1:]
        value = list(compute())
        write_atomically(path, json.dumps([key, *value]).encode())
        return value

    def complete(self, module: str, adapters: Mapping[str, Adapter]) -> dict[str, tuple[str, ...]]:
        """Compute what is not kept of a module.

        Law: adapters that are kept are read again only if there are others, and their pairs are not computed
        again. The result of a run that was broken off and went on is that of one run, bit for bit.

        Args:
            module: Name of the module.
            adapters: The adapters that have the module, by their digests, in the order of these.

        Returns:
            Problems of each adapter that cannot be read, by its digest.
        """
        names = list(adapters)
        old, known = self.load(module) or ([], None)
        where = {name: place for place, name in enumerate(old)}
        fresh = {place for place, name in enumerate(names) if name not in where}
        if not fresh:
            return {}
        tiles = Tiles(list(adapters.values()), module, fresh)
        facts = compare_fresh(tiles)
        if len(tiles.faults) < len(fresh):
            kept = [place for place in range(len(names)) if place not in fresh]
            if known is not None and kept:
                facts = _join(facts, kept, known, [where[names[place]] for place in kept])
            good = [place for place in range(len(names)) if place not in tiles.faults]
            self.store(module, [names[place] for place in good], select(facts, good))
        return {names[place]: problems for place, problems in tiles.faults.items()}


def select(facts: Facts, places: Sequence[int]) -> Facts:
    """Return the facts of some of the adapters, in their order."""
    index = torch.tensor(places)
    return Facts(
        *(
            value[index][:, index] if name in _TABLES else value[index]
            for name, value in facts._asdict().items()
        )
    )


def _join(facts: Facts, places: Sequence[int], known: Facts, others: Sequence[int]) -> Facts:
    """Put what is known of some adapters into the facts of all."""
    own, index = select(known, others), torch.tensor(places)
    width = max(facts.values.shape[1], own.values.shape[1])
    joint = facts._replace(values=_widen(facts.values, width))
    own = own._replace(values=_widen(own.values, width))
    for name, value in joint._asdict().items():
        if name in _TABLES:
            value[index.unsqueeze(1), index] = getattr(own, name)
        else:
            value[index] = getattr(own, name)
    return joint


def _widen(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def _expand(upper: Tensor, indices: Tensor, count: int) -> Tensor:
    """Return the symmetric (T, T) matrix of its upper triangle."""
    table = upper.new_zeros(count, count)
    table[indices[0], indices[1]] = upper
    table[indices[1], indices[0]] = upper
    return table
