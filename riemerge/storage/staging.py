"""Files and folders that appear whole or not at all: made under a hidden name beside it, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from riemerge.errors import OutputError


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Check, before any work is done, that an output folder can appear at this path.

    Law: afterwards the path does not exist, its parent is a folder that can be written to, and it is neither
    inside any of the input folders nor around one.

    Raises:
        OutputError: With every problem found.
    """
    target = Path(path)
    problems = overlaps(path, inputs)
    if os.path.lexists(target):
        problems.append(
            f"{target}: exists already and is not overwritten: choose another folder or remove it"
        )
    elif not target.parent.is_dir():
        problems.append(f"{target}: the folder {target.parent} does not exist; create it first")
    elif not os.access(target.parent, os.W_OK | os.X_OK):
        problems.append(f"{target}: no permission to write in {target.parent}")
    if problems:
        raise OutputError(problems)


def overlaps(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return a problem for each input folder that a path is, contains or lies in."""
    target = Path(path)
    resolved = target.resolve()
    return [
        f"{target}: is, contains or lies inside the input {folder}; choose another folder"
        for folder, other in ((folder, Path(folder).resolve()) for folder in inputs)
        if resolved == other or resolved in other.parents or other in resolved.parents
    ]


def stage_beside(target: Path) -> Path:
    """Make an empty hidden folder on the file system of the target, with the modes of any new folder."""
    stage = target.parent / f".{target.name}.riemerge-{uuid.uuid4().hex}"
    stage.mkdir()
    return stage


def publish(stage: Path, target: Path) -> None:
    """Give a staged folder, whose files are synced, its name, by one rename.

    Raises:
        OutputError: The target has appeared meanwhile.
    """
    sync(stage)
    if os.path.lexists(target):
        raise OutputError(f"{target}: appeared while it was being written; nothing was overwritten")
    stage.rename(target)
    sync(target.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Make the file appear under its name with all of its content, synced.

    Raises:
        OutputError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            partial.unlink(missing_ok=True)  # as a killed run leaves it
            write_synced(partial, content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Around whatever writes: faults of the file system become an OutputError that names the target."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    except SafetensorError as error:  # wraps the fault of the file system in words of its own
        raise OutputError(f"{target}: cannot be written: {error}") from error
