"""Adapters, whatever their dialect: only what was named can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riemerge.formats.dialects import read_adapter, write_adapter
from riemerge.updates import LowRankUpdate


def test_an_adapter_reads_its_modules_and_no_others(tmp_path: Path) -> None:
    update = LowRankUpdate(torch.ones(5, 2), torch.ones(2, 7))
    write_adapter(tmp_path / "one", {"layers.0.q_proj": update})
    adapter = read_adapter(tmp_path / "one")
    assert (adapter.modules, dict(adapter.ranks)) == (("layers.0.q_proj",), {"layers.0.q_proj": 2})
    torch.testing.assert_close(adapter.update("layers.0.q_proj").dense(), update.dense().double())
    with pytest.raises(KeyError):
        adapter.update("layers.1.q_proj")
    with pytest.raises(KeyError):
        adapter.tensor("classifier.weight")
