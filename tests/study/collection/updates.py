"""Updates of one module of several ranks, and adapters that hold them without files."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from riemerge.errors import AdapterError
from riemerge.updates.low_rank import LowRankUpdate
from tests.helpers import random_gauge, seeded

SHAPE = (11, 9)
RANKS = (3, 2, 3, 5, 1, 9, 3)


def some_updates(ranks: Sequence[int] = RANKS, seed: int = 0) -> list[LowRankUpdate]:
    """Updates of several ranks, in gauges of condition 1e3, of a scale each."""
    draw, (m, n) = seeded(seed), SHAPE
    updates = []
    for place, rank in enumerate(ranks):
        b, a = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((m, rank), (rank, n)))
        gauge = random_gauge(rank, 1e3, draw)
        updates.append(LowRankUpdate(b @ gauge, torch.linalg.solve(gauge, a), 0.5 + place))
    return updates


class Held:
    """What tiles ask of an adapter: one module, `q`; None stands for one that cannot be read."""

    dtype = torch.float32

    def __init__(self, update: LowRankUpdate | None) -> None:
        self.held = update
        self.ranks = {"q": 2}
        if update is not None:
            self.ranks = {"q": update.rank}
        self.reads = 0

    def shape(self, module: str) -> tuple[int, int]:
        return SHAPE

    def update(self, module: str) -> LowRankUpdate:
        self.reads += 1
        if self.held is None:
            raise AdapterError("broken: lora_A holds 1 NaN or Inf")
        return self.held
