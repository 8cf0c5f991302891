"""What is written of a merge of checkpoints: the base and the update, and what no merge changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from riemerge.errors import AdapterError
from tests.merging.merges import ONE, merge, write_checkpoint


def test_integers_are_copied_where_they_agree_and_refused_by_name_where_not(tmp_path: Path) -> None:
    first = {"w": torch.ones(2, 2), "ids": torch.arange(3), "mask": torch.tensor([True, False])}
    second = {**first, "w": 3.0 * first["w"]}
    other = {**first, "ids": torch.arange(3).flip(0)}
    a, b, c = (
        write_checkpoint(tmp_path / name, x) for name, x in zip("abc", (first, second, other), strict=True)
    )
    merge(tmp_path / "same", "average", [a, b])
    written = load_file(tmp_path / "same" / ONE)
    assert torch.equal(written["w"], torch.full((2, 2), 2.0))
    assert all(torch.equal(written[name], first[name]) for name in ("ids", "mask"))
    with pytest.raises(AdapterError, match=r"^ids: holds torch.int64 that differ between the checkpoints"):
        merge(tmp_path / "other", "average", [a, c])
    assert not (tmp_path / "other").exists()
