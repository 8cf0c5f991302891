"""Dialects: what one writes it reads again, and each path has one."""

from __future__ import annotations

from pathlib import Path

import torch

from riemerge.formats.dialects import DIALECTS, read_adapter, write_adapter
from riemerge.updates import LowRankUpdate


def test_what_a_dialect_writes_it_reads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    update = LowRankUpdate(torch.randn(5, 2, generator=generator), torch.randn(2, 7, generator=generator))
    for name in DIALECTS:
        write_adapter(tmp_path / name, {"layers.0.q_proj": update}, dialect=name)
        adapter = read_adapter(tmp_path / name)
        assert adapter.dialect == name
        read = adapter.update("layers.0.q_proj").dense()
        assert torch.linalg.vector_norm(read - update.dense()) <= 1e-6 * update.norm()
