"""Code that comes with a checkpoint: it runs where the model is loaded with `trust_remote_code`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint.checkpoint import Checkpoint
from riemerge.formats.files.tensor_file import read_start
from riemerge.formats.files.text import shown, strict_json

_SUFFIX = ".py"
_SETTINGS = "config.json"  # config.json itself, tokenizer_config.json, preprocessor_config.json, ...


def check_code(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Say in what the code of checkpoints differs: a merge carries that of one, to run on the weights of all.

    Law: files of the same name have the same bytes. What settings call a class (`auto_map`) has one name, and
    comes from one repository among the checkpoints that name one.

    Raises:
        AdapterError: A file of code cannot be read.
    """
    advice = (
        "a merge carries the code of one model, to run on the weights of all: make them equal, or give "
        "single files of tensors, which carry no code"
    )
    problems: dict[str, str] = {}  # by what differs: of many models, the first two that do
    for one, other in combinations(checkpoints, 2):
        files, others = _files(one), _files(other)
        for name in (name for name in files if others.get(name, files[name]) != files[name]):
            problems.setdefault(name, f"is other code in {other.path} than in {one.path}")
        names, others = _named(one), _named(other)
        for key in (key for key in names if not _same_class(names[key], others.get(key, names[key]))):
            said = f"is {shown(names[key])} in {one.path} and {shown(others[key])} in {other.path}"
            problems.setdefault(key, said)
    return [f"{shown(what)}: {said}: {advice}" for what, said in sorted(problems.items())]


def code_notes(carried: Checkpoint) -> list[str]:
    """Say by name which code a checkpoint whose files are carried on brings with it."""
    repositories = {_repository(name) for name in _named(carried).values()} - {""}
    brought = [*sorted(_files(carried)), *(f"repository {name} (auto_map)" for name in sorted(repositories))]
    if not brought:
        return []
    code = ", ".join(map(shown, brought))
    advice = "it runs where the result is loaded with trust_remote_code, so read it first"
    return [f"{carried.name}: its code goes with the result: {code}: {advice}"]


def _files(checkpoint: Checkpoint) -> dict[str, str]:
    """The sha256 of each file of code that lies beside the tensors, by its name."""
    paths = [path for path in checkpoint.other_files if path.suffix == _SUFFIX]
    try:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    except OSError as error:
        raise AdapterError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _named(checkpoint: Checkpoint) -> dict[str, str]:
    """The classes that settings name, `repository--file.Class`, by the file and what they stand for."""
    return {
        f"{path.name}: {key}": name
        for path in checkpoint.other_files
        if path.name.endswith(_SETTINGS)
        for key, name in _auto_map(path)
    }


def _auto_map(path: Path) -> Iterator[tuple[str, str]]:
    try:
        settings = strict_json(read_start(path))
    except ValueError:
        return  # no settings that anyone could load
    said = settings.get("auto_map") if isinstance(settings, dict) else None
    # Old settings of a tokenizer are a list alone.
    for key, value in said.items() if isinstance(said, dict) else [("", said)]:
        where = f"auto_map.{key}".removesuffix(".")
        # A list is of a slow tokenizer and a fast one, either of which may be missing.
        for place, name in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(name, str):
                yield where if place is None else f"{where}[{place}]", name


def _same_class(one: str, other: str) -> bool:
    same = one.rpartition("--")[2] == other.rpartition("--")[2]
    return same and len({_repository(one), _repository(other)} - {""}) < 2


def _repository(name: str) -> str:
    return name.rpartition("--")[0]
