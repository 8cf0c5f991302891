"""Laws of mlx-lm's folders: turned factors, and one scale for all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from riemerge.errors import AdapterError
from riemerge.formats.dialects import read_adapter, write_adapter
from riemerge.formats.files.rounding import Rounding
from riemerge.updates import LowRankUpdate
from tests.formats.image_files import random

Q = "model.layers.3.self_attn.q_proj"
EMBEDDING = "model.embed_tokens"


def write_mlx(
    folder: Path, tensors: Mapping[str, torch.Tensor] | None = None, **settings: Any
) -> Mapping[str, torch.Tensor]:
    """Write factors of a linear layer (6, 5) and of an embedding of 9 tokens in 6 dimensions."""
    folder.mkdir()
    own = {
        f"{Q}.lora_a": random(0, 5, 2),
        f"{Q}.lora_b": random(1, 2, 6),
        f"{EMBEDDING}.lora_a": random(2, 9, 2),
        f"{EMBEDDING}.lora_b": random(3, 2, 6),
        **(tensors or {}),
    }
    save_file(own, folder / "adapters.safetensors")
    parameters = {"rank": 2, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    said = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": parameters, "model": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps({**said, **settings}))
    return own


def test_factors_are_turned_and_scaled_alike(tmp_path: Path) -> None:
    own = write_mlx(tmp_path / "a")
    adapter = read_adapter(tmp_path / "a")
    assert (adapter.dialect, adapter.config.base_model_name_or_path) == ("mlx", "some/base")
    for module, turned in ((Q, True), (EMBEDDING, False)):
        # What mlx-lm adds to the base model's own weight when it fuses them.
        added = 20.0 * own[f"{module}.lora_a"].double() @ own[f"{module}.lora_b"].double()
        layer, dense = adapter.layers[module], adapter.update(module).dense()
        torch.testing.assert_close(layer.as_stored(dense), added.mT if turned else added, rtol=1e-14, atol=0)


def test_what_is_written_reads_back_to_the_same_bytes(tmp_path: Path) -> None:
    ranks = {Q: 2, "model.layers.0.mlp.up_proj": 3, EMBEDDING: 2}
    updates = {
        module: LowRankUpdate(random(0, 6, rank), random(1, rank, 5), 0.3) for module, rank in ranks.items()
    }
    unchanged = {module: Rounding(torch.float32, 1.0, 0.0) for module in updates}
    write_adapter(tmp_path / "0", updates, dialect="mlx", rounding=unchanged)
    adapter = read_adapter(tmp_path / "0")
    updates = {module: adapter.update(module, dtype=torch.float32) for module in adapter.modules}
    write_adapter(tmp_path / "1", updates, dialect="mlx", rounding=unchanged, like=[adapter])
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    settings = json.loads((tmp_path / "0" / "adapter_config.json").read_text())
    assert settings["lora_parameters"] == {
        "dropout": 0.0,
        "keys": ["mlp.up_proj", "model.embed_tokens", "self_attn.q_proj"],
        "rank": 3,
        "scale": 0.3,
    }
    assert load_file(tmp_path / "0" / "adapters.safetensors")[f"{Q}.lora_a"].shape == (5, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type"),
        ({"lora_parameters": {"rank": 2}}, "lora_parameters.scale"),
        ({"lora_parameters": {"rank": 2, "scale": "x"}}, "lora_parameters.scale"),
        ({"lora_parameters": {"rank": 2, "scale": 10.0, "alpha": 16}}, "early mlx-lm"),
    ],
)
def test_settings_that_have_no_exact_meaning_are_refused(
    tmp_path: Path, settings: Mapping[str, Any], words: str
) -> None:
    write_mlx(tmp_path / "a", **settings)
    with pytest.raises(AdapterError, match=words):
        read_adapter(tmp_path / "a")


def test_a_missing_file_of_settings_is_told(tmp_path: Path) -> None:
    write_mlx(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json beside it is missing"):
        read_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        (f"{Q}.m", (6,), "whole weights"),
        (f"{Q}.lora_a", (4, 5, 2), "factors of experts"),
        (f"{Q}.lora_a", (5, 3), "expected"),
    ],
)
def test_what_does_not_enter_dw_is_refused_by_name(
    tmp_path: Path, key: str, shape: tuple[int, ...], words: str
) -> None:
    write_mlx(tmp_path / "a", {key: torch.ones(shape)})
    with pytest.raises(AdapterError, match=words):
        read_adapter(tmp_path / "a")


def test_several_scales_are_refused_with_a_way_out(tmp_path: Path) -> None:
    updates = {f"{Q}{i}": LowRankUpdate(random(0, 6, 2), random(1, 2, 5), 1.0 + i) for i in range(2)}
    unchanged = {module: Rounding(torch.float32, 1.0, 0.0) for module in updates}
    with pytest.raises(AdapterError, match="--to mlx"):
        write_adapter(tmp_path / "a", updates, dialect="mlx", rounding=unchanged)
