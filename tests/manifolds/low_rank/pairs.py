"""Pairs of points, and squared distances of aligned ones."""

from __future__ import annotations

import torch
from torch import Tensor

from riemerge.manifolds import FixedRank, Orthogonal
from tests.manifolds.subjects import family


def squared(total: FixedRank, point: Tensor, to: Tensor, element: Tensor) -> Tensor:
    found = total.logarithm(to, Orthogonal(total.r).act(total, point, element))
    return torch.where(found.valid, found.squared, torch.inf)


def starts(name: str, count: int = 4, r: int = 4, **options: float) -> tuple[FixedRank, Tensor, Tensor]:
    total = FixedRank(30, 24, r, k=3)
    points = torch.stack(family(name, count, 30, 24, r, seed=7, k=3, **options))
    weights = torch.full((count, 3), 1 / count, dtype=torch.float64)
    return total, points, weights
