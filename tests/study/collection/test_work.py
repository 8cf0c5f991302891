"""Work: what is kept is read back, what is of another hand is computed again, pairs are kept with pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from riemerge.study.collection.pairs import Facts
from riemerge.study.collection.work import Work
from tests.study.collection.updates import Held, some_updates

UPDATES = dict(zip("abcdefg", some_updates(), strict=True))


def adapters(names: str) -> dict[str, Any]:
    return {name: Held(UPDATES[name]) for name in names}


def facts(work: Work) -> tuple[list[str], Facts]:
    known = work.load("q")
    assert known is not None
    return known


def test_what_grew_is_what_is_made_at_once(tmp_path: Path) -> None:
    for name in ("grown", "once"):
        (tmp_path / name).mkdir()
    grown, once = Work(tmp_path / "grown"), Work(tmp_path / "once")
    for some_of_them in ("bd", "bdfg", "abcdefg"):
        assert grown.complete("q", adapters(some_of_them)) == {}
    once.complete("q", adapters("abcdefg"))
    (names, some), (others, all_of_them) = facts(grown), facts(once)
    assert names == others == list("abcdefg")
    for one, other in zip(some, all_of_them, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=1e-6, atol=1e-6 * float(other.abs().max()))
    flat = torch.stack([UPDATES[name].dense().flatten() for name in names])
    assert torch.allclose(some.inner, flat @ flat.mT, rtol=1e-9, atol=1e-9 * float(some.inner.max()))


def test_fewer_adapters_cost_nothing_and_lose_nothing(tmp_path: Path) -> None:
    work, every = Work(tmp_path), adapters("abcd")
    work.complete("q", every)
    reads = [adapter.reads for adapter in every.values()]
    assert work.complete("q", {name: every[name] for name in "bc"}) == {}
    assert [adapter.reads for adapter in every.values()] == reads
    assert facts(work)[0] == list("abcd")


def test_one_that_cannot_be_read_is_told_each_time_and_never_kept(tmp_path: Path) -> None:
    work, every = Work(tmp_path), {**adapters("abc"), "x": Held(None)}
    expected = {"x": ("broken: lora_A holds 1 NaN or Inf",)}
    assert work.complete("q", every) == expected
    assert facts(work)[0] == list("abc")
    before = work.path("q", ".safetensors").read_bytes()
    assert work.complete("q", every) == expected
    assert work.path("q", ".safetensors").read_bytes() == before


def test_a_file_that_is_not_whole_is_made_again(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.complete("q", adapters("ab"))
    path = work.path("q", ".safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    assert work.load("q") is None
    work.complete("q", adapters("ab"))
    assert path.read_bytes() == content


def test_what_is_remembered_is_computed_once_for_a_key(tmp_path: Path) -> None:
    work, calls = Work(tmp_path), []

    def compute() -> list[float]:
        calls.append(1)
        return [1.5, 2.5]

    assert [work.remember("q", ".json", key, compute) for key in ("x", "x", "y")] == [[1.5, 2.5]] * 3
    assert len(calls) == 2


@pytest.mark.parametrize("content", [b'["x", 1.', b"", b"\xff", b"7", b"{}", b"[]"])
def test_what_is_not_whole_or_of_another_hand_is_not_remembered(tmp_path: Path, content: bytes) -> None:
    work = Work(tmp_path)
    work.path("q", ".json").write_bytes(content)
    assert work.remember("q", ".json", "x", lambda: [1.5]) == [1.5]
    assert work.remember("q", ".json", "x", list) == [1.5]
