"""Laws of the settings that say ranks and scales: PEFT's rule makes the scales of them again."""

from __future__ import annotations

import json

import torch

from riemerge.formats.peft.config import parse_config
from riemerge.formats.peft.written_scales import find_alpha, scale_settings
from riemerge.updates import LowRankUpdate


def update(rank: int, scale: float) -> LowRankUpdate:
    return LowRankUpdate(torch.ones(2, rank), torch.ones(rank, 3), scale)


def test_the_settings_give_every_module_its_rank_and_scale() -> None:
    updates = {
        "q": update(2, 0.5),
        "layers.0.q": update(2, 4.0),
        "k": update(4, 0.5),
        "layers.1.k": update(4, 1.0),
        "v": update(3, 1 / 3),
    }
    settings = {"peft_type": "LORA", **scale_settings(updates)}
    config, problems = parse_config(json.dumps(settings).encode())
    assert config is not None
    assert problems == []
    for module, one in updates.items():
        assert (config.rank(module), config.scale(module)) == (one.rank, one.scale)


def test_an_alpha_is_the_shortest_number_that_gives_the_scale() -> None:
    for rank in range(1, 65):
        for alpha in (1, 0.1, 16, 3, -0.5):
            assert find_alpha(update(rank, alpha / rank)) == alpha
    assert isinstance(find_alpha(update(3, 1.0)), int)
    assert abs(find_alpha(update(3, 2**0.5)) / 3 - 2**0.5) <= 2e-16 * 2**0.5
