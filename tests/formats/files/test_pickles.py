"""What a process that opens a pickle may take, and what is told of it; conversions show that it works."""

from __future__ import annotations

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
        (1, "holds something else than tensors by name", "something else than tensors by name"),
    ],
)
def test_what_the_process_says_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str, why: str
) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    ended = subprocess.CompletedProcess([], code, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(AdapterError, match=why):
        unpickle(tmp_path / "a.bin", tmp_path / "a.safetensors")
