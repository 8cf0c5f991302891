"""Means of many modules: each that of its block alone, from every start, whatever the number of threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from riemerge.manifolds import Euclidean, FixedRank, Orthogonal, QuotientManifold
from riemerge.methods import Options
from riemerge.methods.batches import Task, solve
from riemerge.methods.geometries.geometry import Placed, Solved
from tests.frechet.problems import mean_of
from tests.methods.spectra import normal

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
OPTIONS = Options(tol=1e-9, cost_tol=0.0, max_passes=300)
SIZE = (9, 8, 2)


def tasks(
    count: int, seed: int, size: tuple[int, int, int] = SIZE, starts: int = 1, **metric: Any
) -> list[Task]:
    """Modules whose three points are near to each other."""
    m, n, r = size
    total = FixedRank(*size, k=count)
    base = normal(count, m, r, seed=seed), normal(count, n, r, seed=seed + 1)
    points = torch.stack(
        [
            total.factor(*(side + 0.1 * normal(*side.shape, seed=seed + 10 * t + 3) for side in base))
            for t in range(3)
        ]
    )
    manifold = QuotientManifold(FixedRank(*size, **metric), Orthogonal(r))
    return [Task(Placed(manifold, points[:, k]), WEIGHTS, starts=starts) for k in range(count)]


def solved(given: list[Task], options: Options = OPTIONS) -> list[Solved]:
    return solve(given, "lbfgs", options, done=0, total=len(given))


def test_a_block_has_the_means_of_the_solver_and_their_certificates() -> None:
    given = tasks(3, 1)
    found = solved(given)
    points = torch.stack([task.placed.points for task in given], dim=1)
    manifold = QuotientManifold(FixedRank(*SIZE, k=3), Orthogonal(2))
    weights = WEIGHTS[:, None].expand(3, 3)
    expected = mean_of(manifold, list(points), weights, tol=1e-9, cost_tol=0.0, max_passes=300)
    for k, mean in enumerate(found):
        assert torch.allclose(mean.value, expected.point[k], atol=1e-12)
        assert mean.evidence.status is expected.status[k]
        assert mean.evidence.advice == expected.status[k].advice
        assert mean.evidence.starts is None


def test_threads_change_no_bit_and_kinds_do_not_meet() -> None:
    one, other = tasks(10, 1), tasks(2, 2, (7, 7, 3))
    given = [*one[:5], *other, *one[5:]]
    together, on_two = solved(given), solved(given, replace(OPTIONS, threads=2))
    first, second = solved(one), solved(other)
    for mean, same, alone in zip(together, on_two, [*first[:5], *second, *first[5:]], strict=True):
        assert torch.equal(mean.value, same.value)
        assert torch.equal(mean.value, alone.value)


def test_modules_of_different_metrics_do_not_meet() -> None:
    one, other = tasks(2, 1), tasks(2, 1, core="euclidean", weights=(1, 2, 3))
    together = solved([*one, *other])
    for mean, alone in zip(together, [*solved(one), *solved(other)], strict=True):
        assert torch.equal(mean.value, alone.value)
    assert not torch.allclose(together[0].value, together[2].value, atol=1e-6)


def test_several_starts_say_how_far_apart_they_end() -> None:
    (mean,) = solved(tasks(1, 3, starts=4))
    assert mean.evidence.starts == 4
    assert mean.evidence.cost_spread == pytest.approx(0.0, abs=1e-9)
    assert mean.evidence.update_spread is not None


def test_points_may_be_solved_in_a_unit_of_their_own() -> None:
    """The mean, the distances and the cost are those of the points as they are given."""
    points: Tensor = normal(3, 4, 1)
    found = [
        solved([Task(Placed(Euclidean(4, 1), points, unit=unit), WEIGHTS, loss)])[0]
        for loss in ("square", "absolute", "huber:delta=0.5")
        for unit in (1.0, 64.0)
    ]
    for mean, scaled in zip(found[::2], found[1::2], strict=True):
        assert torch.allclose(mean.value, scaled.value, atol=1e-6)
        assert mean.evidence.cost == pytest.approx(scaled.evidence.cost, rel=1e-9)
        assert mean.evidence.distances == pytest.approx(scaled.evidence.distances, rel=1e-5)


def test_a_gradient_is_told_in_the_unit_of_the_points() -> None:
    """Of one start and one step from it."""
    points: Tensor = normal(3, 4, 1)
    short = replace(OPTIONS, max_passes=1)
    for loss in ("square", "absolute"):
        one, other = (
            solved([Task(Placed(Euclidean(4, 1), points, start=points[2], unit=unit), WEIGHTS, loss)], short)[
                0
            ]
            for unit in (1.0, 64.0)
        )
        assert one.evidence.gradient_norm == pytest.approx(other.evidence.gradient_norm, rel=1e-12)
        assert one.evidence.gradient_norm != 0.0


def test_a_start_is_where_the_solver_begins() -> None:
    points: Tensor = normal(3, 4, 1)
    mean = torch.einsum("t,tnr->nr", WEIGHTS, points)
    placed = Placed(Euclidean(4, 1), points, start=mean)
    (found,) = solved([Task(placed, WEIGHTS)])
    assert torch.equal(found.value, mean)
    assert found.evidence.passes <= 2
