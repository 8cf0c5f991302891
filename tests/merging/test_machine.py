"""Devices by name, and as many threads as they are worth."""

from __future__ import annotations

import os

import pytest
import torch

from riemerge.errors import RecipeError, ResourceError
from riemerge.merging.machine import find_device, find_dtype, find_threads

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 7])
def test_a_cpu_has_the_threads_that_are_asked_for_and_a_gpu_one(count: int) -> None:
    assert find_threads(count, CPU) == count
    assert find_threads(count, torch.device("cuda")) == 1
    assert find_threads(None, torch.device("cuda")) == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_threads_are_too_few(device: str) -> None:
    with pytest.raises(RecipeError, match="threads: 0: expected at least 1"):
        find_threads(0, torch.device(device))


def test_by_default_they_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert find_threads(None, CPU) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert find_threads(None, CPU) == 1


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, there: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(there))
    assert find_device("auto") == torch.device(device)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert find_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ResourceError, match=r"cuda:1 was asked for, but torch .* finds 1 CUDA devices"):
        find_device("cuda:1")


@pytest.mark.parametrize(("name", "words"), [("tpu", "is not known"), ("meta", "is not supported")])
def test_other_names_are_refused(name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=f"device: '{name}' {words}: expected cpu, cuda, cuda:N or auto"):
        find_device(name)


def test_dtypes_that_can_be_written_have_names() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert find_dtype(str(dtype).removeprefix("torch.")) == dtype
    with pytest.raises(RecipeError, match="out_dtype: 'int8': expected float64, float32, float16, bfloat16"):
        find_dtype("int8")
