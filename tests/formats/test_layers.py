"""Laws of layers: what is stored of an update makes its factors again."""

from __future__ import annotations

import torch

from riemerge.formats.files.tensor_file import Entry
from riemerge.formats.layers import Linear
from riemerge.updates import LowRankUpdate


def test_what_a_linear_layer_stores_are_its_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    update = LowRankUpdate(
        torch.randn(5, 2, generator=generator, dtype=torch.float64),
        torch.randn(2, 7, generator=generator, dtype=torch.float64),
    )
    stored = Linear({}, 1.0).store(update)
    entries = {side: Entry(side, "F64", tuple(tensor.shape), 0) for side, tensor in stored.items()}
    layer = Linear(entries, 1.0)
    b, a = layer.factors(stored)
    assert torch.equal(b @ a, update.dense())
    assert (layer.shape, layer.rank) == ((5, 7), 2)
