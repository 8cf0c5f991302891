"""Files and folders that appear whole or not at all: made under a hidden name beside it, then renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias, final

from safetensors import SafetensorError

from riemerge.errors import AdapterError, OutputError
from riemerge.formats.files.text import is_plain_name, show

Text: TypeAlias = str | Callable[[Mapping[str, str]], str]
"""A text to be written, or the function that makes it from the sha256 of each file beside it, by name."""


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Check, before any work is done, that an output folder can appear at this path.

    Law: afterwards the path does not exist, its parent is a folder that can be written to, and it is neither
    inside any of the input folders nor around one.

    Raises:
        OutputError: With every problem found.
    """
    target = Path(path)
    problems = overlaps(path, inputs)
    with writing(target):
        if _is_there(target):
            problems.append(
                f"{target}: exists already and is not overwritten: choose another folder or remove it"
            )
        elif not target.parent.is_dir():
            problems.append(f"{target}: the folder {target.parent} does not exist; create it first")
        elif not os.access(target.parent, os.W_OK | os.X_OK):
            problems.append(f"{target}: no permission to write in {target.parent}")
    OutputError.refuse(problems)


def _is_there(path: Path) -> bool:
    """Return whether something has this name; raise OSError where nothing can have it, as it is too long."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def overlaps(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return a problem for each input folder that a path is, contains or lies in."""
    # realpath, since Path.resolve raises where links go in circles.
    target, resolved = Path(path), Path(os.path.realpath(path))
    return [
        f"{target}: is, contains or lies inside the input {folder}; choose another folder"
        for folder, other in ((folder, Path(os.path.realpath(folder))) for folder in inputs)
        if resolved == other or resolved in other.parents or other in resolved.parents
    ]


@final
class NewFolder:
    """A folder that appears whole or not at all; made in a hidden folder beside it, which `close` removes.

        with closing(NewFolder("merged")) as folder:
            folder.write("config.json", b"{}")
            folder.publish(check)

    Law: all files are synced before the folder has its name, which it gets by one rename.

    Args:
        target: The path of the folder; it must not exist, its parent must.

    Attributes:
        target: The path of the folder.
        stage: The hidden folder.
        sha256: The sha256 of each file that was written or copied, by name; not those of texts.

    Raises:
        OutputError: The folder exists or cannot be written.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self.target = Path(target)
        self.sha256: dict[str, str] = {}
        self._texts: dict[str, Text] = {}
        check_output(target, [])
        # On the file system of the target, with the modes of any new folder.
        self.stage = self.target.parent / f"{hidden_prefix(self.target)}{uuid.uuid4().hex}"
        with writing(self.target):
            self.stage.mkdir()

    def write(self, name: str, content: bytes) -> None:
        """Write a new file.

        Raises:
            OutputError: The file cannot be written.
        """
        with writing(self.target):
            write_synced(self.stage / name, content)
        self.sha256[name] = hashlib.sha256(content).hexdigest()

    def add(self, name: str, content: Text | Path) -> None:
        """Put a file beside what is written.

        Args:
            name: The name of the file, not used before.
            content: The path of a file to copy, or a text, which is written last.

        Raises:
            OutputError: The file cannot be copied.
            ValueError: The name was used before, or is no plain file name.
        """
        path = self.stage / name
        if not is_plain_name(name) or path.exists() or name in self._texts:
            raise ValueError(f"{name!r} cannot be the name of an extra file")
        if not isinstance(content, Path):
            self._texts[name] = content
            return
        with writing(self.target):
            shutil.copyfile(content, path)
            sync(path)
            self.sha256[name] = file_sha256(path)

    def publish(self, check: Callable[[Path], None]) -> None:
        """Write the texts, check the hidden folder, and give it its name.

        Raises:
            OutputError: The folder cannot be written, or has appeared meanwhile.
        """
        with writing(self.target):
            for name, text in self._texts.items():
                content = text(self.sha256) if callable(text) else text
                write_synced(self.stage / name, content.encode())
            check(self.stage)
            publish(self.stage, self.target)

    def close(self) -> None:
        """Remove the hidden folder, if it is still there."""
        shutil.rmtree(self.stage, ignore_errors=True)


def hidden_prefix(target: Path) -> str:
    """Return how the names of hidden folders begin that belong to a target: never too long a name."""
    return f".{target.name[:40]}.riemerge-"


def publish(stage: Path, target: Path) -> None:
    """Give a staged folder, whose files are synced, its name, by one rename.

    Raises:
        OutputError: The target has appeared meanwhile.
    """
    sync(stage)
    if os.path.lexists(target):
        raise OutputError(f"{target}: appeared while it was being written; nothing was overwritten")
    stage.rename(target)
    try:
        sync(target.parent)
    except OSError as error:
        error.add_note(f"{target} is written, but may be gone after a power cut")
        raise


def exchange(stage: Path, target: Path, aside: Path) -> None:
    """Give a staged folder the name of what is there, which goes to `aside`, and sync it (see `publish`).

    Raises:
        OutputError: The folder cannot be renamed; what was there is there.
    """
    with writing(target):
        if os.path.lexists(target):
            target.rename(aside)
        try:
            publish(stage, target)
        except BaseException:
            with suppress(OSError):  # as it should be, where the name is taken or nothing was there
                aside.rename(target)
            raise


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Make the file appear under its name with all of its content, synced.

    Raises:
        OutputError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            partial.unlink(missing_ok=True)  # a killed run leaves one
            write_synced(partial, content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def check_read_back(differing: Iterator[str]) -> None:
    """Check that a staged folder reads back as it was to be written.

    Args:
        differing: Reads the folder, and yields the name of each module or tensor that differs.

    Raises:
        OutputError: The folder cannot be read, or something in it differs.
    """
    try:
        wrong = next(differing, None)
    except AdapterError as error:
        raise OutputError(
            f"what was written cannot be read back: {text}" for text in error.problems
        ) from error
    if wrong is not None:
        raise OutputError(f"{show(wrong)}: what was written does not read back; is the disk faulty?")


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn faults of the file system into an OutputError that names the target."""
    try:
        yield
    except OSError as error:
        fault = OutputError(f"{target}: cannot be written: {error.strerror or error}")
        for note in getattr(error, "__notes__", ()):
            fault.add_note(note)
        raise fault from error
    except SafetensorError as error:  # wraps the fault of the file system in words of its own
        raise OutputError(f"{target}: cannot be written: {error}") from error
