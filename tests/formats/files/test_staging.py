"""What is written appears whole or not at all, and only where it may."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import AdapterError, OutputError
from riemerge.formats.files.staging import (
    NewFolder,
    check_output,
    check_read_back,
    exchange,
    file_sha256,
    write_atomically,
)

# --- where a folder may appear ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["a", "a/out", ".", "link", "link/out"])
def test_the_output_is_apart_from_the_inputs(tmp_path: Path, where: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(OutputError, match="is, contains or lies inside the input"):
        check_output(tmp_path / where, [tmp_path / "a"])


def test_a_free_place_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    check_output(tmp_path / "ab", [tmp_path / "a"])
    check_output("surely-not-there", [tmp_path / "a"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="no permission"):
            check_output(tmp_path / "out", [])
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("where", ["x" * 300, "x" * 300 + "/out"])
def test_too_long_a_name_is_no_place(tmp_path: Path, where: str) -> None:
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        check_output(tmp_path / where, [])


def with_stage(target: Path) -> None:
    with closing(NewFolder(target)) as folder:
        folder.publish(lambda _: None)


def test_the_longest_name_has_a_stage(tmp_path: Path) -> None:
    for name in ("x" * 255, "ü" * 127):  # 255 and 254 bytes
        with_stage(tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).rmdir()


def test_links_in_circles_are_no_fault_of_the_output(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    check_output(tmp_path / "out", [tmp_path / "circle"])
    with pytest.raises(OutputError, match="exists already"):
        check_output(tmp_path / "circle", [])


def test_a_parent_that_cannot_be_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(OutputError, match="out: cannot be written: Permission denied"):
        check_output(tmp_path / "out", [])


def test_what_is_there_when_the_last_sync_fails_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, fsync = tmp_path / "out", os.fsync

    def fail_late(descriptor: int) -> None:
        if target.exists():
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_late)
    with pytest.raises(OutputError, match="Input/output error") as caught:
        with_stage(target)
    assert caught.value.__notes__ == [f"{target} is written, but may be gone after a power cut"]
    assert target.is_dir()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_an_exchange_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    """The n-th of the calls fails, for every n until one exchange succeeds."""
    target, new, aside = (tmp_path / name for name in ("out", "new", "old"))
    target.mkdir()
    (target / "old").touch()
    new.mkdir()
    (new / "new").touch()
    owner = {"rename": Path, "fsync": os}[call]
    real, count = getattr(owner, call), 0
    for n in range(1, 10):

        def failing(*args: Any, at: int = n) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise error
            return real(*args)

        count = 0
        with monkeypatch.context() as patch:
            patch.setattr(owner, call, failing)
            try:
                exchange(new, target, aside)
            except (OutputError, KeyboardInterrupt):
                # Whole, and the new one only where all that was left to do was a sync.
                assert [path.name for path in target.iterdir()] in (["old"], ["new"])
                if not new.exists():
                    break
            else:
                break
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in aside.iterdir()] == ["old"]
    assert n > 1


# --- one file -----------------------------------------------------------------------------------------------


CALLS = [(Path, "open"), (os, "fsync"), (Path, "replace")]  # all that change the disk before it is done


@pytest.mark.parametrize(("owner", "name"), CALLS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(28, "No space left on device"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_file_that_cannot_be_replaced_stays_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    error: BaseException,
    raised: type[BaseException],
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(raised) as caught:
            write_atomically(path, b"new")
    assert raised is KeyboardInterrupt or str(caught.value) == (
        f"{path}: cannot be written: No space left on device"
    )
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_file_is_replaced_whole_once_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / ".file.partial").write_bytes(b"half of another content")  # as a killed run leaves it
    synced = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_ino, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert synced == [(path.stat().st_ino, b"old")]
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


# --- a new folder -------------------------------------------------------------------------------------------


def test_a_new_folder_has_its_files_their_sums_and_texts_that_know_them(tmp_path: Path) -> None:
    (tmp_path / "given.json").write_bytes(b"\x00\xff")
    with closing(NewFolder(tmp_path / "out")) as folder:
        folder.write("a", b"content")
        folder.add("b", tmp_path / "given.json")
        folder.add("c", lambda sha256: ", ".join(sha256))
        folder.add("d", "text")
        assert not (tmp_path / "out").exists()
        folder.publish(lambda _: None)
    out = tmp_path / "out"
    contents = {path.name: path.read_bytes() for path in out.iterdir()}
    assert contents == {"a": b"content", "b": b"\x00\xff", "c": b"a, b", "d": b"text"}
    assert folder.sha256 == {name: file_sha256(out / name) for name in ("a", "b")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.json", "out"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "written", "added"])
def test_a_name_that_is_taken_or_lies_elsewhere_is_refused_and_nothing_is_left(
    tmp_path: Path, name: str
) -> None:
    with closing(NewFolder(tmp_path / "out")) as folder:
        folder.write("written", b"")
        folder.add("added", "")
        with pytest.raises(ValueError, match="cannot be the name of an extra file"):
            folder.add(name, "text")
    assert not list(tmp_path.iterdir())


def test_a_check_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def refuse(_: Path) -> None:
        raise OutputError("wrong")

    with pytest.raises(OutputError, match="wrong"), closing(NewFolder(tmp_path / "out")) as folder:
        folder.publish(refuse)
    assert not list(tmp_path.iterdir())


def test_what_differs_or_cannot_be_read_back_is_refused() -> None:
    check_read_back(iter(()))
    with pytest.raises(OutputError, match=r"^'q\\n': what was written does not read back"):
        check_read_back(iter(["q\n", "v"]))

    def broken() -> Iterator[str]:
        yield from ()
        raise AdapterError(["one", "two"])

    with pytest.raises(OutputError) as caught:
        check_read_back(broken())
    assert caught.value.problems == tuple(
        f"what was written cannot be read back: {n}" for n in ("one", "two")
    )
