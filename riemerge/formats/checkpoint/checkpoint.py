"""A full checkpoint in files: all headers checked when it is opened, its tensors read one at a time."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import final

from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats import kinds
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.files.tensor_file import (
    DTYPES,
    TensorFile,
    open_tensors,
    read_start,
    reading,
)
from riemerge.formats.files.text import is_plain_name, list_names, show, strict_json
from riemerge.formats.hub import advise, name_model

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
TENSOR_FILE = kinds.MODEL_FILE
INDEX_FILE = kinds.MODEL_INDEX

# What a model needs beside its weights: settings, tokenizer, chat template, its own code. Not weights in
# other formats, not what a trainer or an earlier merge recorded.
_OTHER_SUFFIXES = {".jinja", ".json", ".model", ".py", ".tiktoken", ".txt"}
_RECORDS = re.compile(r".*\.index\.json|(trainer_state|.*_results?|adapter_config|riemerge)\.json|\..*")

_PICKLE = "; a pickle is never opened: convert it to safetensors"
_NO_TENSORS = ": expected the tensors of a model"
_KINDS = {
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), _PICKLE),
    ".gguf": "; GGUF is not read: give the checkpoint that it was made from, in safetensors",
    **dict.fromkeys((".yaml", ".yml"), "; a recipe is given alone and without a weight"),
}

_SHARD = re.compile(r".*-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


@final
@dataclass(frozen=True, eq=False)
class StoredCheckpoint(Checkpoint):
    """A full checkpoint in files: each tensor lies in one of them, spread in any way.

    No file stays open; each read fails loudly if its file is no longer the one that was checked.
    """

    _files: Mapping[str, TensorFile] = field(repr=False)  # by tensor
    _index_sha256: Mapping[str, str] = field(repr=False)  # by file name; empty without an index

    @property
    def name(self) -> str:
        """The name of the folder or file."""
        return name_model(self.path)

    @cached_property
    def sha256(self) -> Mapping[str, str]:
        """The sha256, in hex, of each file that enters the tensors, by file name.

        Raises:
            AdapterError: A file is no longer the one that was checked.
        """
        files = {file.path.name: file for file in self._files.values()}
        sums = {name: file.sha256() for name, file in sorted(files.items())}
        return MappingProxyType({**self._index_sha256, **sums})

    def source(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._files[name].path

    def _read(self, name: str, rows: Sequence[range] | None) -> Tensor:
        if rows is not None:
            return self._files[name].read_rows(name, rows)
        (tensor,) = self._files[name].read(name)
        return tensor


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a full checkpoint and check all that its index and headers can tell.

    Law: a checkpoint that opens is read exactly, each tensor from one place. Only the index and the headers
    of the shards it names are read, in its own folder; nothing is executed, nothing is downloaded. The values
    are checked when they are read (`Checkpoint.tensor`). Floats narrower than 16 bits are refused by name:
    they mean nothing without their scales. So are the factors of a LoRA, which mean nothing apart.

    Args:
        path: A folder with `model.safetensors`, or with `model.safetensors.index.json` and its shards; such
            an index of any name; or a single `.safetensors` file.

    Raises:
        AdapterError: With every problem found.

    Source: the format as safetensors and transformers 4 and 5 write it.
    """
    path = Path(path)
    with reading(path):
        start = _locate(path)
        others = _other_files(path)
    index_sha256: dict[str, str] = {}
    if start.name.endswith(INDEX_SUFFIX):
        placed, index_sha256 = _read_index(start)
        files, problems = _open_shards(start, placed)
    else:
        files, problems = _open_all([start])
        problems += [f"{file.path}: holds no tensors" for file in files if not file.entries]
    holders = {name: file for file in files for name in file.entries}
    if (why := kinds.why_no_checkpoint(holders)) is not None:
        problems.append(f"{path}: {why}")
    AdapterError.refuse(problems)
    entries = {name: holders[name].entries[name] for name in sorted(holders)}
    return StoredCheckpoint(
        path=path,
        shapes=MappingProxyType({name: entry.shape for name, entry in entries.items()}),
        dtypes=MappingProxyType({name: DTYPES[entry.dtype] for name, entry in entries.items()}),
        other_files=others,
        _files=MappingProxyType(holders),
        _index_sha256=MappingProxyType(index_sha256),
    )


def _locate(path: Path) -> Path:
    """Return the file to start from: the index, or the only file."""
    if not os.path.lexists(path):
        raise AdapterError(f"{path}: no such folder or file; nothing is downloaded, {advise(path)}")
    if not path.is_dir():
        shard = _SHARD.fullmatch(path.name)
        if shard and int(shard["count"]) > 1:
            raise AdapterError(f"{path}: is one shard of {int(shard['count'])}: give its folder")
        if path.name.endswith((SUFFIX, INDEX_SUFFIX)):
            return path
        raise AdapterError(f"{path}: is no {SUFFIX} file{_KINDS.get(path.suffix, _NO_TENSORS)}")
    candidates = [path / name for name in (TENSOR_FILE, INDEX_FILE) if os.path.lexists(path / name)]
    if len(candidates) > 1:
        raise AdapterError(f"{path}: has both {TENSOR_FILE} and {INDEX_FILE}: give the one that is meant")
    if not candidates:
        raise AdapterError(f"{path}: has neither {TENSOR_FILE} nor {INDEX_FILE}{_hint(path)}")
    return candidates[0]


def _hint(folder: Path) -> str:
    """Say what is in a folder without the tensors of a checkpoint, and what to do."""
    if kinds.holds_adapter(folder):
        return "; it is an adapter, not a full checkpoint"
    if kinds.holds_statistics(folder):
        return "; it holds statistics of a model, not a full checkpoint"
    names = _files_in(folder)
    reasons = {
        name: kinds.why_file_is_none(folder / name) for name in names if name.endswith((SUFFIX, INDEX_SUFFIX))
    }
    if fit := [name for name, why in reasons.items() if why is None]:
        return f"; did you mean one of its files: {list_names(fit)}?"
    for name, why in reasons.items():
        return f"; its {name} {why}"
    others = ((advice, [name for name in names if name.endswith(end)]) for end, advice in _KINDS.items())
    hints = (f" ({list_names(files)}){advice}" for advice, files in others if files)
    return kinds.hint_below(folder) or next(hints, "")


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the file of each tensor as the index names it, and the sha256 of the index by its file name."""
    try:
        content = read_start(path)
        files = _weight_map(strict_json(content))
    except ValueError as error:
        raise AdapterError(f"{path}: {error}") from error
    shards = sorted({*files.values()})
    unsafe = [shard for shard in shards if not is_plain_name(shard)]
    others = [shard for shard in shards if shard not in unsafe and not shard.endswith(SUFFIX)]
    expected = dict.fromkeys(unsafe, "a file of its folder") | dict.fromkeys(others, f"a {SUFFIX} file")
    AdapterError.refuse(
        f"{path}: places tensors in {show(shard)}: expected {kind}" for shard, kind in expected.items()
    )
    return files, {path.name: hashlib.sha256(content).hexdigest()}


def _weight_map(index: object) -> dict[str, str]:
    """Return the file of each tensor, from the index's content; ValueError says what it is instead."""
    files = isinstance(index, dict) and index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(shard, str) for shard in files.values()):
        raise ValueError("has no weight_map: expected an object of tensor names and their files")
    if not files:
        raise ValueError("has an empty weight_map: expected the name of each tensor and its file")
    return files


def _open_all(paths: Iterable[Path]) -> tuple[list[TensorFile], list[str]]:
    """Open files of tensors that mean what they say, and say what is wrong with the others."""
    files, problems = [], []
    for path in paths:
        try:
            file = open_tensors(path)
        except ValueError as error:
            problems.append(f"{path}: {error}")
            continue
        if faults := file.faults():
            problems += [f"{path}: {fault}" for fault in faults]
        else:
            files.append(file)
    return files, problems


def _open_shards(index: Path, placed: Mapping[str, str]) -> tuple[list[TensorFile], list[str]]:
    """Open the shards that the index names, and say in what they differ from what it says."""
    shards: dict[str, set[str]] = {}
    for name, shard in placed.items():
        shards.setdefault(shard, set()).add(name)
    files, problems = _open_all(index.parent / shard for shard in sorted(shards))
    for file in files:
        expected, held = shards[file.path.name], {*file.entries}
        faults = (
            ("lacks", "places there", expected - held),
            ("holds", "places in other files", (held - expected) & {*placed}),
            ("holds", "does not name", held - {*placed}),
        )
        problems += [
            f"{file.path}: {verb} {len(names)} tensors that {index.name} {fault}: {list_names(sorted(names))}"
            for verb, fault, names in faults
            if names
        ]
    return files, problems


def _files_in(folder: Path) -> list[str]:
    """Return the names of the regular files in a folder, sorted; a link counts as what it leads to."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file())


def _other_files(path: Path) -> tuple[Path, ...]:
    """Return what else a model needs, from its folder; nothing where a file is given, which stands alone."""
    if not path.is_dir():
        return ()
    return tuple(
        path / name
        for name in _files_in(path)
        if Path(name).suffix in _OTHER_SUFFIXES and is_plain_name(name) and not _RECORDS.fullmatch(name)
    )
