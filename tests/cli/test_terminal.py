"""Results on stdout, all else on stderr, an exit code for each kind of fault, whatever the streams are."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from riemerge.cli.terminal import loading, progress_on_stderr
from riemerge.formats.dialects import read_adapter
from riemerge.progress import Progress
from tests.cli.runner import TENSORS, call, merged, run
from tests.helpers import ROOT


def test_a_terminal_gets_a_bar_on_stderr_and_nothing_of_it_on_stdout(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True)
    ran = run("merge", *folders, "-o", tmp_path / "out", "--json")
    assert "━" in ran.stderr
    assert "3/3" in ran.stderr
    json.loads(ran.stdout)


def below_zero(folders: list[Path], _: Path) -> list[object]:
    return [f"{folders[0]}:-1", folders[1]]


def pickles(folders: list[Path], _: Path) -> list[object]:
    for folder in folders:
        (folder / TENSORS).write_bytes(b"\x80 pickle")
    return [*folders]


def too_large(folders: list[Path], _: Path) -> list[object]:
    return [*folders, "--out-dtype", "float16", "--scale", 1e12]


def taken(folders: list[Path], root: Path) -> list[object]:
    (root / "out").mkdir()
    return [*folders]


def no_device(folders: list[Path], _: Path) -> list[object]:
    return [*folders, "--device", "cuda:77"]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("kind", "code", "arrange", "says"),
    [
        ("RecipeError", 3, below_zero, ["weight: -1 of"]),
        (
            "AdapterError",
            4,
            pickles,
            ["a/adapter_model.safetensors: is a pickle", "b/adapter_model.safetensors"],
        ),
        (
            "NumericalError",
            5,
            too_large,
            [f"{module}: the factors reach" for module in ("layers.0.q", "layers.0.v", "layers.1.q")],
        ),
        ("OutputError", 6, taken, ["exists already"]),
        ("ResourceError", 7, no_device, ["cuda:77 was asked for"]),
    ],
)
def test_each_kind_of_fault_has_its_code_and_says_every_problem(
    folders: list[Path], tmp_path: Path, kind: str, code: int, arrange: Any, says: list[str], as_json: bool
) -> None:
    words = arrange(folders, tmp_path)
    ran = run("merge", *words, "-o", tmp_path / "out", "-q", *(["--json"] if as_json else []))
    assert ran.exit_code == code
    lines = [
        line for line in ran.stderr.splitlines() if not line.endswith(f"nothing was written (exit {code})")
    ]
    assert len(lines) == len(says)
    for line, text in zip(lines, says, strict=True):
        assert line.startswith("error: ")
        assert text in line
    if as_json:
        problems = [line.removeprefix("error: ") for line in lines]
        assert json.loads(ran.stdout) == {"error": {"kind": kind, "code": code, "problems": problems}}
    else:
        assert ran.stdout == ""
    assert not (tmp_path / "out" / TENSORS).exists()


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing is half-written"),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "a bug: ZeroDivisionError: division by zero; please report it",
        ),
        (MemoryError(), 7, "out of memory"),
    ],
)
def test_interruption_bugs_and_exhaustion_end_in_one_line(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    code: int,
    says: str,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise fault

    monkeypatch.setattr("riemerge.merging.run.run_method", fail)
    ran = run("merge", *folders, "-o", tmp_path / "out", "--json", "-q")
    assert ran.exit_code == code
    assert says in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert json.loads(ran.stdout)["error"]["code"] == code
    assert not (tmp_path / "out").exists()


def test_a_bug_shows_its_traceback_when_asked(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riemerge.merging.run.run_method", lambda *_: 1 / 0)
    monkeypatch.setenv("RIEMERGE_TRACEBACK", "1")
    assert isinstance(run("merge", *folders, "-o", tmp_path / "out").exception, ZeroDivisionError)


def test_escapes_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    ran = run("inspect", tmp_path / "\x1b[31mred")
    assert ran.exit_code == 4
    assert "\x1b" not in ran.stderr
    assert "\\x1b[31mred" in ran.stderr


def test_a_terminal_without_unicode_gets_escapes() -> None:
    ran = call("methods", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ran.returncode == 0, ran.stderr
    assert b"Fr\\xe9chet" in ran.stdout


ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (RuntimeError(ALLOCATOR), 7, "out of memory"),
        (RuntimeError("CUDA error: out of memory"), 7, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"), 7, "out of memory"),
        (RuntimeError("can't start new thread"), 7, "--threads 1"),
        (OSError(12, "Cannot allocate memory"), 7, "Cannot allocate memory"),
        (OSError(24, "Too many open files", "a"), 7, "Too many open files"),
        (OSError(28, "No space left on device", "a"), 6, "a: No space left on device"),
        (OSError(30, "Read-only file system", "a"), 6, "a: Read-only file system"),
        (PermissionError(13, "Permission denied", "a"), 4, "a: Permission denied"),
        (OSError(36, "File name too long", "a"), 4, "a: File name too long"),
        (RuntimeError("something else"), 1, "a bug: RuntimeError: something else"),
    ],
)
def test_faults_of_the_machine_have_the_code_of_their_kind(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    code: int,
    says: str,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise fault

    monkeypatch.setattr("riemerge.merging.run.run_method", fail)
    ran = run("merge", *folders, "-o", tmp_path / "out", "-q")
    assert (ran.exit_code, ran.stdout) == (code, "")
    assert says in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_torch_says_in_these_words_that_memory_is_short(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*args: Any, **kwargs: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)  # more than any machine has

    monkeypatch.setattr("riemerge.merging.run.run_method", greedy)
    ran = run("merge", *folders, "-o", tmp_path / "out", "-q")
    assert ran.exit_code == 7
    assert "out of memory" in ran.stderr


def test_json_is_json_in_any_encoding() -> None:
    # A code page without é, for which its escape in Python is none in JSON.
    ran = call("methods", "--json", PYTHONIOENCODING="cp1251", PYTHONUTF8="0")
    assert "weighted Fréchet mean" in json.loads(ran.stdout.decode("cp1251"))[0]["summary"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_stdout_does_not_hide_that_the_merge_is_there(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Path("/dev/full").open("w") as full:
        ran = merged(folders, out, stdout=full, env={"PYTHONUNBUFFERED": ""})
    assert ran.returncode == 6
    assert ran.stderr.splitlines()[-2:] == [
        "error: stdout: cannot be written: No space left on device",
        f"{out}: is written, whole",
    ]
    assert "Exception ignored" not in ran.stderr
    assert read_adapter(out).modules


def test_a_pipe_that_no_one_reads_does_not_hide_that_the_merge_is_there(
    folders: list[Path], tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = merged(folders, tmp_path / "out", stdout=writing)
    os.close(writing)
    assert ran.returncode == 6
    assert ran.stderr.endswith(f"{tmp_path / 'out'}: is written, whole\n")
    assert read_adapter(tmp_path / "out").modules


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_list_that_cannot_be_printed(unbuffered: str) -> None:
    script = "from riemerge.cli.commands import main; main()"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}

    def listed(stdout: Any) -> tuple[int, bytes]:
        words = [sys.executable, "-c", script, "methods"]
        ran = subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, check=False, env=env)
        return ran.returncode, ran.stderr

    reading, writing = os.pipe()
    os.close(reading)
    assert listed(writing) == (6, b"")  # whoever stops reading wants no word
    os.close(writing)
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            assert listed(full) == (6, b"error: stdout: cannot be written: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_stderr_ends_no_merge(folders: list[Path], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ran = merged(folders, tmp_path / "out", stderr=full)
    assert ran.returncode == 0
    assert "written to" in ran.stdout


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
def test_closed_streams_end_no_merge(folders: list[Path], tmp_path: Path) -> None:
    command = f'exec "{sys.executable}" -c "from riemerge.cli.commands import main; main()" "$@" >&- 2>&-'
    words = ["sh", "merge", *map(str, folders), "-o", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(["sh", "-c", command, *words], capture_output=True, check=False, env=env)
    assert ran.returncode == 0, ran.stderr
    assert read_adapter(tmp_path / "out").modules


def test_a_report_that_fails_does_not_hide_that_the_merge_is_there(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riemerge.report.tables.merge_report", lambda *_, **__: 1 / 0)
    ran = run("merge", *folders, "-o", tmp_path / "out")
    assert ran.exit_code == 1
    assert f"{tmp_path / 'out'}: is written, whole" in ran.stderr


@pytest.mark.parametrize("columns", ["abc", "", "-3", "0", "1", "9" * 5000, "²"])
def test_any_number_of_columns_prints_a_report(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ran = run("merge", *folders, "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    assert "writtentoout" in "".join(ran.stdout.split()).replace(f"{tmp_path}/", "") or columns == "1"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_to_end_clears_away_what_is_staged(folders: list[Path], tmp_path: Path) -> None:
    """A merge that signals itself while its files are staged."""
    script = (
        "import os\nimport riemerge.formats.peft.adapter_writer as writer\n"
        "from riemerge.cli.commands import main\n"
        "writer._check_written = lambda *_: os.kill(os.getpid(), 15)\nmain()"
    )
    words = ["merge", *map(str, folders), "-o", str(tmp_path / "out"), "-q"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False, env=env
    )
    assert (ran.returncode, ran.stderr) == (143, "error: terminated; nothing is half-written\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_elsewhere_than_on_a_terminal_a_stage_ends_with_a_line_or_each_event_has_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for each in (False, True):
        with progress_on_stderr(quiet=False, each=each) as listener:
            assert listener is not None
            for done in (1, 2):
                listener(Progress("soup", done, 2, f"{done}\x1b"))
    assert capsys.readouterr().err.splitlines() == ["soup: 2 of 2: 2\\x1b", "soup: 1\\x1b", "soup: 2\\x1b"]
    with progress_on_stderr(quiet=True) as listener:
        assert listener is None


def test_loading_leaves_the_search_for_garbage_as_it_was() -> None:
    with loading():
        assert not gc.isenabled()
        with loading():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
