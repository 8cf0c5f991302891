"""What dialects of one file share: the kinds of layers that they have, and what their headers carry on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riemerge.errors import AdapterError, OutputError
from riemerge.formats.dialect import carry_header, find_base
from riemerge.formats.dialects import read_adapter, write_adapter
from riemerge.updates import LowRankUpdate
from tests.formats.image_files import random, write_kohya
from tests.formats.pico import Pico

MODULE = "lora_unet_mid_block_attentions_0_proj_in"


def test_a_header_carries_what_all_agree_in(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for path, base, tag in zip(paths, ("sd_v1", "sd_v1", "sd_v2"), ("x", "y", "x"), strict=True):
        said = {"ss_base_model_version": base, "ss_tag": tag, "ss_steps": "7", "ss_network_dim": "2"}
        write_kohya(path, {MODULE: (6, 5, 2)}, **said)  # type: ignore[arg-type]
    a, b, c = map(read_adapter, paths)
    assert carry_header([]) == {}
    assert carry_header([a, b]) == {"ss_base_model_version": "sd_v1", "ss_steps": "7"}
    assert (find_base([a, b]), find_base([a, c]), find_base([])) == ("sd_v1", None, None)


def test_layers_that_a_dialect_has_not_are_refused_by_name(tmp_path: Path, pico: Pico) -> None:
    factors = {
        "base_model.model.lora_unet_embed.lora_embedding_A": torch.ones(3, 9),
        "base_model.model.lora_unet_embed.lora_embedding_B": torch.ones(6, 3),
    }
    adapter = read_adapter(pico("a", factors, r=3, target_modules=["lora_unet_embed"]))
    updates = {"lora_unet_embed": adapter.update("lora_unet_embed")}
    with pytest.raises(AdapterError, match="lora_unet_embed: is an embedding: kohya has no such layers"):
        write_adapter(tmp_path / "out", updates, dialect="kohya", like=[adapter])


def test_what_does_not_read_back_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a faulty disk would: every tensor is written as zeros.
    monkeypatch.setattr("riemerge.formats.dialect.as_safetensors", _as_zeros)
    update = LowRankUpdate(random(0, 6, 3), random(1, 3, 5))
    with pytest.raises(OutputError, match="does not read back"):
        write_adapter(tmp_path / "out", {MODULE: update}, dialect="kohya")
    assert [*tmp_path.iterdir()] == []


def _as_zeros(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    from riemerge.formats.files.tensor_file import as_safetensors

    kept = {key: tensor if key.endswith(".alpha") else 0 * tensor for key, tensor in tensors.items()}
    return as_safetensors(kept, metadata)
