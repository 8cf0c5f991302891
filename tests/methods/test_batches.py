"""Means of many modules: each that of its block alone, from every start, whatever the number of threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.methods import Options
from riemerge.methods.geodesic.batches import Size, solve
from tests.frechet.problems import mean_of
from tests.methods.spectra import normal

WEIGHTS = [0.5, 0.3, 0.2]
OPTIONS = Options(tol=1e-9, cost_tol=0.0, max_passes=300)
Group = dict[str, tuple[Tensor, list[float]]]


def group(size: Size, count: int, seed: int) -> Group:
    """Modules whose three points are near to each other."""
    total = FixedRank(*size, k=count)
    base = normal(count, size.m, size.r, seed=seed), normal(count, size.n, size.r, seed=seed + 1)
    points = [
        total.factor(*(side + 0.1 * normal(*side.shape, seed=seed + 10 * t + 3) for side in base))
        for t in range(3)
    ]
    stacked = torch.stack(points)
    return {f"m{seed}.{k}": (stacked[:, k], WEIGHTS) for k in range(count)}


def test_a_block_has_the_means_of_the_solver_and_their_certificates() -> None:
    size = Size(9, 8, 2)
    modules = group(size, 3, 1)
    found = solve({(size, 1): modules}, OPTIONS, done=0)
    points = torch.stack([points for points, _ in modules.values()], dim=1)
    manifold = QuotientManifold(FixedRank(*size, k=3), Orthogonal(2))
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)[:, None].expand(3, 3)
    expected = mean_of(manifold, list(points), weights, reduce=False, tol=1e-9, cost_tol=0.0, max_passes=300)
    for k, name in enumerate(modules):
        assert torch.equal(found[name].point, expected.point[k])
        assert found[name].evidence.status is expected.status[k]
        assert found[name].evidence.advice == expected.status[k].advice
        assert found[name].evidence.starts is None


def test_threads_change_no_bit_and_groups_do_not_meet() -> None:
    groups = {(Size(9, 8, 2), 1): group(Size(9, 8, 2), 10, 1), (Size(7, 7, 3), 1): group(Size(7, 7, 3), 2, 2)}
    together = solve(groups, OPTIONS, done=0)
    on_two = solve(groups, replace(OPTIONS, threads=2), done=0)
    apart = [solve({key: modules}, OPTIONS, done=0) for key, modules in groups.items()]
    alone = apart[0] | apart[1]
    assert together.keys() == on_two.keys() == alone.keys()
    for name, mean in together.items():
        assert torch.equal(mean.point, on_two[name].point)
        assert torch.equal(mean.point, alone[name].point)


def test_several_starts_say_how_far_apart_they_end() -> None:
    size = Size(9, 8, 2)
    (mean,) = solve({(size, 4): group(size, 1, 3)}, OPTIONS, done=0).values()
    assert mean.evidence.starts == 4
    assert mean.evidence.cost_spread == pytest.approx(0.0, abs=1e-9)
    assert mean.evidence.update_spread == pytest.approx(0.0, abs=1e-5)
