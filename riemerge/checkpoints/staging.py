"""A folder that appears whole or not at all: made under a hidden name beside its place, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from riemerge.errors import OutputError


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
