"""Updates, settings and averages that the tests of polar means share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from riemerge.linalg import SVD
from riemerge.methods import METHODS
from riemerge.methods.polar import positive as polar
from riemerge.methods.setting import Answer, Setting
from tests.helpers import random_orthonormal, seeded
from tests.methods.rows import Alone
from tests.methods.spectra import low_rank, normal

KINDS = pytest.mark.parametrize("kind", ["bures_wasserstein", "affine_invariant", "log_euclidean"])
POLAR = pytest.mark.parametrize("kind", ["average", "bures_wasserstein", "affine_invariant", "log_euclidean"])
DEFAULTS = {
    "core_mean": "bures_wasserstein",
    "frames": "chordal",
    "rank": None,
    "tol": 1e-10,
    "cost_tol": 1e-6,
    "max_passes": 1000,
}
WEIGHTS = [0.5, 0.3, 0.2]

balanced, subspace, shared_private = (
    Alone(METHODS[name]) for name in ("balanced", "subspace", "shared_private")
)


def _bare(weights: Tensor) -> Setting:
    return Setting("layer", weights, {}, (400, 300))


def polar_mean(cores: Tensor, weights: Tensor, kind: str) -> Answer:
    """The mean of matrices, solved by itself."""
    return shared_private.settle(polar.polar_mean(cores, weights, kind), _bare(weights))


def positive_mean(matrices: Tensor, weights: Tensor, kind: str) -> Answer:
    """The mean of positive matrices, solved by itself."""
    return shared_private.settle(polar.positive_mean(matrices, weights, kind), _bare(weights))


def setting(weights: list[float], shape: tuple[int, int] = (400, 300), **values: Any) -> Setting:
    return Setting("layer", torch.tensor(weights, dtype=torch.float64), DEFAULTS | values, shape)


def value(found: Tensor | SVD | Answer) -> Tensor:
    assert isinstance(found, Answer)
    assert found.ok
    return found.value


def average(x: Tensor, weights: list[float]) -> Tensor:
    return torch.einsum("t,tpq->pq", torch.tensor(weights, dtype=torch.float64), x)


def close(count: int, p: int, q: int, rank: int, noise: float, seed: int = 0) -> Tensor:
    """Updates of one rank that differ in frames and cores by some noise."""
    left = normal(1, p, rank, seed=seed) + noise * normal(count, p, rank, seed=seed + 1)
    right = normal(1, rank, q, seed=seed + 2) + noise * normal(count, rank, q, seed=seed + 3)
    return left @ right


def orthogonal_updates() -> Tensor:
    left, right = random_orthonormal(12, 6, seeded(3)), random_orthonormal(14, 6, seeded(4))
    return torch.stack(
        [left[:, i : i + 2] @ normal(2, 2, seed=i + 1) @ right[:, i : i + 2].mT for i in (0, 2, 4)]
    )


def positive(count: int, size: int, seed: int = 0) -> Tensor:
    roots = normal(count, size, size + 2, seed=seed)
    return roots @ roots.mT


CASES = {
    "close": close(3, 9, 11, 2, 0.3),
    "independent": low_rank(3, 9, 14, 2),
    "full": close(3, 5, 5, 5, 0.2, seed=5),
}

EACH_CASE = pytest.mark.parametrize("x", CASES.values(), ids=list(CASES))
