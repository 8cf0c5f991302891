"""Dialects: what one writes it reads again, and each path has one."""

from __future__ import annotations

from pathlib import Path

import torch

from riemerge.formats.dialects import DIALECTS, read_adapter, write_adapter
from riemerge.updates import LowRankUpdate

NAMES = {
    "kohya": "lora_unet_mid_block_attentions_0_proj_in",
    "diffusers": "unet.mid_block.attentions.0.proj_in",
    "mlx": "model.layers.0.q_proj",
    "peft": "layers.0.q_proj",
}


def test_what_a_dialect_writes_it_reads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    update = LowRankUpdate(torch.randn(5, 2, generator=generator), torch.randn(2, 7, generator=generator))
    assert NAMES.keys() == DIALECTS.keys()
    for name, module in NAMES.items():
        write_adapter(tmp_path / name, {module: update}, dialect=name)
        adapter = read_adapter(tmp_path / name)
        assert adapter.dialect == name
        read = adapter.update(module).dense()
        assert torch.linalg.vector_norm(read - update.dense()) <= 1e-6 * update.norm()
