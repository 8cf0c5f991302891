"""Code that comes with a checkpoint: it runs where the model is loaded with `trust_remote_code`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.files.tensor_file import read_start
from riemerge.formats.files.text import show, strict_json

_SUFFIX = ".py"
_SETTINGS = "config.json"  # config.json itself, tokenizer_config.json, preprocessor_config.json, ...


def check_code(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Say in what the code of checkpoints differs: a merge carries the code of one, to run on all weights.

    Law: where nothing is said, files of one name have the same bytes, and a class that settings name
    (`auto_map`) has one name, and comes from one repository among the checkpoints that name one.

    Raises:
        AdapterError: A file of code cannot be read.
    """
    advice = (
        "a merge carries the code of one model, to run on the weights of all: make them equal, or give "
        "single files of tensors, which carry no code"
    )
    problems: dict[str, str] = {}  # by what differs: of many models, the first two that do
    for first, second in combinations(checkpoints, 2):
        files, others = _hash_files(first), _hash_files(second)
        for name in (name for name in files.keys() & others if files[name] != others[name]):
            problems.setdefault(name, f"is other code in {second.path} than in {first.path}")
        classes, others = _read_classes(first), _read_classes(second)
        for key in (key for key in classes.keys() & others if not _same_class(classes[key], others[key])):
            names = f"is {show(classes[key])} in {first.path} and {show(others[key])} in {second.path}"
            problems.setdefault(key, names)
    return [f"{show(name)}: {difference}: {advice}" for name, difference in sorted(problems.items())]


def code_notes(carried: Checkpoint) -> list[str]:
    """Say by name which code a checkpoint whose files are carried on brings with it."""
    repositories = {_repository(name) for name in _read_classes(carried).values()} - {""}
    names = [f"repository {name} (auto_map)" for name in sorted(repositories)]
    names = sorted(_hash_files(carried)) + names
    if not names:
        return []
    code = ", ".join(map(show, names))
    advice = "it runs where the result is loaded with trust_remote_code, so read it first"
    return [f"{carried.name}: its code goes with the result: {code}: {advice}"]


def _hash_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the sha256 of each file of code that lies beside the tensors, by its name."""
    paths = [path for path in checkpoint.other_files if path.suffix == _SUFFIX]
    try:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    except OSError as error:
        raise AdapterError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _read_classes(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the classes that settings name, `repository--file.Class`, by file and place in it."""
    return {
        f"{path.name}: {key}": name
        for path in checkpoint.other_files
        if path.name.endswith(_SETTINGS)
        for key, name in _auto_map(path)
    }


def _auto_map(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what settings say of each class under `auto_map`, and its name."""
    try:
        settings = strict_json(read_start(path))
    except ValueError:
        return  # no settings that anyone could load
    if isinstance(settings, dict):
        yield from _texts(settings.get("auto_map"), "auto_map")


def _texts(value: object, where: str) -> Iterator[tuple[str, str]]:
    """Yield the texts in JSON, each behind where it stands.

    Old settings of a tokenizer are a list alone; a list names a slow tokenizer and a fast one, and either may
    be missing.
    """
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(part, f"{where}.{key}")
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from _texts(part, f"{where}[{place}]")


def _same_class(first: str, second: str) -> bool:
    same = first.rpartition("--")[2] == second.rpartition("--")[2]
    return same and len({_repository(first), _repository(second)} - {""}) < 2


def _repository(name: str) -> str:
    return name.rpartition("--")[0]
