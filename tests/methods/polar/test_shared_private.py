"""The mean of what is shared, and the average of what is private: limits and continuity."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from riemerge.methods.polar.shared_private import shares
from riemerge.updates import Cores
from tests.helpers import random_orthonormal, seeded
from tests.methods.polar.polar_cases import (
    EACH_CASE,
    KINDS,
    POLAR,
    WEIGHTS,
    average,
    orthogonal_updates,
    polar_mean,
    setting,
    shared_private,
    value,
)
from tests.methods.spectra import assert_near, low_rank, normal


@POLAR
def test_orthogonal_updates_give_their_average(kind: str) -> None:
    x = orthogonal_updates()
    assert_near(value(shared_private(x, setting(WEIGHTS, core_mean=kind))), average(x, WEIGHTS))
    # One side shared alone: still nothing that both sides share.
    half = torch.cat([low_rank(1, 6, 8, 2), low_rank(1, 6, 8, 2, seed=3)])
    half[1] = half[0] @ torch.linalg.pinv(half[0]) @ half[1]
    half[1] -= half[1] @ torch.linalg.pinv(half[0]) @ half[0]
    assert_near(value(shared_private(half, setting([0.5, 0.5], core_mean=kind))), average(half, [0.5, 0.5]))


@KINDS
def test_a_common_block_has_the_polar_mean_and_private_blocks_their_average(kind: str) -> None:
    common, private = normal(3, 2, 2, seed=4), normal(3, 2, 2, seed=5)
    x = torch.zeros(3, 8, 8, dtype=torch.float64)
    for place in range(3):
        x[place, :2, :2] = common[place]
        x[place, 2 + 2 * place : 4 + 2 * place, 2 + 2 * place : 4 + 2 * place] = private[place]
    expected = average(x, WEIGHTS)
    expected[:2, :2] = value(polar_mean(common, torch.tensor(WEIGHTS, dtype=torch.float64), kind))
    assert_near(value(shared_private(x, setting(WEIGHTS, core_mean=kind))), expected, 1e-9)


@EACH_CASE
def test_half_shared_directions_come_in_by_their_shares(x: Tensor) -> None:
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    mixed = torch.cat([x[:2], low_rank(1, x.shape[1], x.shape[2], 2, seed=8)])
    functions = []
    for one, width in ((mixed, 4000), (mixed.mT, 3000)):
        ranks = [int(rank) for rank in torch.linalg.matrix_rank(one)]
        onto = average(one @ torch.linalg.pinv(one), WEIGHTS)
        level = 0.5 * (1 + ((sum(ranks) - max(ranks)) / width) ** 0.5) ** 2
        eigenvalues, vectors = torch.linalg.eigh(onto)
        functions.append(vectors * ((eigenvalues - level) / (1 - level)).clamp(min=0.0) @ vectors.mT)
    parts = functions[0] @ mixed @ functions[1]
    mean = value(polar_mean(parts, weights, "bures_wasserstein"))
    expected = average(mixed, WEIGHTS) + mean - average(parts, WEIGHTS)
    assert_near(value(shared_private(mixed, setting(WEIGHTS, (4000, 3000)))), expected, 1e-6)


def test_independent_subspaces_share_next_to_nothing_and_copies_all() -> None:
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    frames = [random_orthonormal(256, 8, seeded(i)) for i in range(8)]
    x = torch.stack([left @ right.mT for left, right in zip(frames[:4], frames[4:], strict=True)])
    left, right = shares(Cores.of_stack(x), weights, (256, 256))
    for found in (left, right):
        assert found.shape[1] == 0 or float(found.norm(dim=0).max()) <= 0.1
    left, right = shares(Cores.of_stack(x[:1].expand(4, 256, 256)), weights, (256, 256))
    for found in (left, right):
        assert_near(found.mT @ found, torch.eye(8, dtype=torch.float64))


def test_what_is_shared_comes_in_without_a_jump() -> None:
    one = low_rank(1, 9, 8, 2)
    way = [one[0] + step * low_rank(1, 9, 8, 2, seed=9)[0] for step in np.linspace(0.0, 4.0, 81)]
    found = [value(shared_private(torch.stack([one[0], other]), setting([0.6, 0.4]))) for other in way]
    steps = [float((b - a).norm()) for a, b in itertools.pairwise(found)]
    apart = [
        float((value - average(torch.stack([one[0], other]), [0.6, 0.4])).norm())
        for value, other in zip(found, way, strict=True)
    ]
    assert max(apart) >= 0.1
    assert max(steps) <= 4.0 * float(np.median(steps))
