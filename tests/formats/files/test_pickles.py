"""What a process that opens a pickle may take, and what is told of it; conversions show that it works."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from riemerge.errors import AdapterError, ResourceError
from riemerge.formats.files import pickles
from riemerge.formats.files.pickles import unpickle

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")


def test_a_pickle_takes_no_more_memory_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(2**22)}, tmp_path / "a.bin")
    monkeypatch.setattr(pickles, "_SPARE", -4 * (tmp_path / "a.bin").stat().st_size)
    with pytest.raises(AdapterError, match="needs more memory"):
        unpickle(tmp_path / "a.bin", tmp_path / "a.safetensors")


def test_a_pickle_takes_no_more_time_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.bin")
    monkeypatch.setattr(pickles, "SECONDS", 1e-3)
    with pytest.raises(AdapterError, match="not opened within"):
        unpickle(tmp_path / "a.bin", tmp_path / "a.safetensors")


def test_no_pickle_is_opened_where_memory_cannot_be_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.bin")
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(ResourceError, match="on Linux only"):
        unpickle(tmp_path / "a.bin", tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (1, "_pickle.UnpicklingError: Weights only load failed", "more than tensors in plain containers"),
        (1, "RuntimeError: [enforce fail] DefaultCPUAllocator: not enough memory", "more memory"),
        (-9, "", "more memory"),
        (1, "EOFError: Ran out of input", "no whole file that torch.save wrote"),
        (1, "RuntimeError: PytorchStreamReader failed reading zip archive", "no whole file that torch.save"),
        (1, "holds something else than tensors by name", "something else than tensors by name"),
    ],
)
def test_what_the_process_says_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str, why: str
) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x80\x02")
    ended = subprocess.CompletedProcess([], code, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(AdapterError, match=why):
        unpickle(tmp_path / "a.bin", tmp_path / "a.safetensors")


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "SECONDS", 5)
    os.mkfifo(tmp_path / "a.bin")
    with pytest.raises(AdapterError, match=r"a\.bin: is not a regular file"):
        unpickle(tmp_path / "a.bin", tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"junk", b""])
def test_what_is_no_pickle_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(AdapterError, match=r"is no file that torch\.save wrote"):
        unpickle(tmp_path / "a.bin", tmp_path / "a.safetensors")
