"""A folder of statistics gives what it was asked to hold, and nothing that it cannot hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from riemerge.errors import AdapterError
from riemerge.statistics import collect_statistics, read_statistics
from tests.statistics.tiny import USED, data, loss, tiny


@pytest.fixture(name="folder")
def collected(tmp_path: Path) -> Path:
    collect_statistics(tiny(), data(), loss, tmp_path / "out", modules=USED)
    return tmp_path / "out"


def test_reading_gives_what_is_asked_for(folder: Path) -> None:
    statistics = read_statistics(folder)
    assert set(statistics.of("up", ["gram"])) == {"gram", "tokens", "examples", "loss"}
    assert statistics.problems({"up": (4, 5), "head": (3, 4)}, ["fisher", "gram"]) == []
    found = statistics.problems({"up": (4, 6), "gone": (1, 1)}, ["fisher", "hessian"])
    assert [text for text in found if "holds no hessian" in text]
    assert [text for text in found if "1 of 2 modules" in text and "gone" in text]
    assert [
        text for text in found if "up: the statistics are of a weight (4, 5) but the update is (4, 6)" in text
    ]
    assert len(found) == 3
    with pytest.raises(KeyError):
        statistics.of("gone")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda t: t.pop("gram"), "holds no gram"),
        (lambda t: t.update(gram=t["gram"][:2]), r"gram is \(2, 5\): expected \(5, 5\)"),
        (lambda t: t["fisher"].fill_(torch.nan), "fisher holds NaN"),
        (lambda t: t["fisher"].neg_(), "fisher holds negative"),
        (lambda t: t["covariance"][0].add_(1.0), "covariance is not symmetric"),
        (lambda t: t.pop("tokens"), "holds no tokens"),
        (lambda t: t.update(fisher=t["fisher"].to(torch.float8_e4m3fn)), "stores 1 of 6 tensors as F8_E4M3"),
    ],
)
def test_a_file_of_other_content_is_refused(folder: Path, spoil: Any, text: str) -> None:
    tensors = load_file(folder / "up.safetensors")
    spoil(tensors)
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "up.safetensors")
    with pytest.raises(AdapterError, match=rf"up\.safetensors: {text}.*collect the statistics again"):
        read_statistics(folder).of("up")


def test_a_torn_file_and_a_foreign_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "up.safetensors").write_bytes((folder / "up.safetensors").read_bytes()[:-3])
    with pytest.raises(AdapterError, match=r"up\.safetensors: cannot be read"):
        read_statistics(folder).of("up")
    with pytest.raises(AdapterError, match="no statistics there"):
        read_statistics(tmp_path)
    content = json.loads((folder / "statistics.json").read_text())
    for change in ({"version": 2}, {"kinds": ["x"]}, {"modules": 3}, {"dtype": "int8"}):
        (folder / "statistics.json").write_text(json.dumps(content | change))
        with pytest.raises(AdapterError, match=r"statistics\.json: is not understood .* expected version 1"):
            read_statistics(folder)
    (folder / "statistics.json").write_text("{")
    with pytest.raises(AdapterError, match="not acceptable JSON"):
        read_statistics(folder)
