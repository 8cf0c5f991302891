"""Quadratic forms and data for the tests of means of one rank."""

from __future__ import annotations

import torch
from torch import Tensor

from riemerge.frechet.quadratic.quadratic_cost import LowRankQuadratic
from tests.helpers import seeded
from tests.methods.stacks import spd

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def cut(x: Tensor, rank: int) -> Tensor:
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def problem(rank: int = 3) -> LowRankQuadratic:
    lefts = torch.stack([spd(8, t) * WEIGHTS[t] for t in range(3)])
    linear = normal(8, 7)
    return LowRankQuadratic(
        lefts, torch.stack([spd(7, t + 5) for t in range(3)]), linear / linear.norm(), 0.4, rank
    )
