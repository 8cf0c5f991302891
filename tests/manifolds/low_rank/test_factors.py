"""Factoring updates as points, and reducing them."""

from __future__ import annotations

import pytest
import torch

from riemerge.errors import NumericalError
from riemerge.manifolds import FixedRank
from tests.helpers import random_gauge, random_update, seeded


def factors(m: int, n: int, r: int, cond: float = 100.0) -> tuple[torch.Tensor, torch.Tensor]:
    """One module's (m, r) and (n, r) with dW = left right'."""
    b, a = random_update(m, n, r, cond, seeded(m + n + r))
    return b[None], a.mT[None]


@pytest.mark.parametrize(("m", "n", "r"), [(20, 17, 4), (4, 9, 4), (9, 4, 4), (5, 5, 1), (1, 1, 1)])
def test_a_point_is_its_update(m: int, n: int, r: int) -> None:
    total = FixedRank(m, n, r)
    left, right = factors(m, n, r)
    point = total.factor(left, right)
    assert bool(total.feasible(point).all())
    torch.testing.assert_close(total.matrix(point), left @ right.mT, rtol=0, atol=1e-15)
    _, core, _ = total.split(point)
    values = torch.linalg.svdvals(left @ right.mT)[..., :r]
    torch.testing.assert_close(torch.diagonal(core, dim1=-2, dim2=-1), values, rtol=1e-12, atol=0)


def test_the_point_depends_on_the_update_alone() -> None:
    total = FixedRank(20, 17, 4)
    left, right = factors(20, 17, 4)
    point = total.factor(left, right)
    assert torch.equal(total.factor(-left, -right), point)
    gauge = random_gauge(4, 1e3, seeded(0))
    turned = total.factor(left @ gauge, torch.linalg.solve(gauge, right.mT).mT)
    # Signs are fixed by the update, so the frames agree too: to eps times the conditions of gauge and core.
    torch.testing.assert_close(turned, point, rtol=0, atol=1e-10)


def test_huge_and_tiny_updates_keep_their_relative_accuracy() -> None:
    total = FixedRank(20, 17, 4)
    left, right = factors(20, 17, 4)
    point = total.factor(left, right)
    for scale in (1e-30, 1e30):
        other = total.factor(scale * left, right)
        torch.testing.assert_close(
            total.split(other)[1] / scale, total.split(point)[1], rtol=1e-12, atol=1e-18
        )


def test_the_name_says_another_metric_than_the_default() -> None:
    assert str(FixedRank(9, 8, 2, k=3, frames=0.5)) == "Factored 9x8 matrices of rank 2^3"
    named = FixedRank(9, 8, 2, core="euclidean", frames="euclidean", weights=(1, 2, 3))
    others = "frames=euclidean, core=euclidean, weights=(1.0, 2.0, 3.0)"
    assert str(named) == f"Factored 9x8 matrices of rank 2 ({others})"
    assert str(named.with_modules(1)) == str(named)


def test_updates_of_lower_rank_are_refused() -> None:
    total = FixedRank(20, 17, 4, k=2)
    left, right = (torch.cat(pair) for pair in zip(factors(20, 17, 4), factors(20, 17, 4), strict=True))
    left[1, :, 3] = left[1, :, 2]
    with pytest.raises(NumericalError, match=r"1 of 2 updates have a numerical rank below 4 \(least: 3\)"):
        total.factor(left, right)
    with pytest.raises(NumericalError, match="least: 0"):
        total.factor(0 * left, right)


@pytest.mark.parametrize(("m", "n", "r"), [(3, 9, 4), (9, 3, 4), (3, 3, 0)])
def test_bad_sizes_are_refused(m: int, n: int, r: int) -> None:
    with pytest.raises(ValueError, match="1 <= r <= min"):
        FixedRank(m, n, r)


@pytest.mark.parametrize(("m", "n", "small"), [(40, 30, (12, 12)), (40, 10, (12, 10)), (10, 9, (10, 9))])
def test_reduction_is_an_isometry_onto_the_joint_span(m: int, n: int, small: tuple[int, int]) -> None:
    total = FixedRank(m, n, 4, seed=3)
    points = torch.stack([total.random_point() for _ in range(3)])
    reduction = total.reduce(points)
    assert isinstance(reduction.manifold, FixedRank)
    assert (reduction.manifold.m, reduction.manifold.n) == small
    torch.testing.assert_close(reduction.lift(reduction.points[1]), points[1], rtol=0, atol=1e-13)
    for i, j in ((0, 1), (1, 2)):
        inside, outside = reduction.manifold.dists(*reduction.points[[i, j]]), total.dists(*points[[i, j]])
        torch.testing.assert_close(inside, outside, rtol=1e-12, atol=0)


def test_unknown_metrics_and_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="core is 'flat'; known are affine_invariant"):
        FixedRank(5, 4, 2, core="flat")
    with pytest.raises(ValueError, match="frames is 'flat'; known are canonical"):
        FixedRank(5, 4, 2, frames="flat")
    with pytest.raises(ValueError, match="expected 3 positive numbers"):
        FixedRank(5, 4, 2, weights=(1, 0, 1))
    with pytest.raises(ValueError, match="SpdLogEuclidean has no retraction 'quadratic'"):
        FixedRank(5, 4, 2, core="log_euclidean", retraction="quadratic")


def test_the_metric_stays_where_the_size_changes() -> None:
    total = FixedRank(30, 28, 2, frames=0.8, core="bures_wasserstein", weights=(1.0, 3.0, 0.5), seed=1)
    points = torch.stack([total.random_point() for _ in range(3)])
    small = total.reduce(points)
    assert isinstance(small.manifold, FixedRank)
    for other in (small.manifold, total.with_modules(4)):
        assert (other.beta, other.scales, type(other.core)) == (0.8, (1.0, 3.0, 0.5), type(total.core))
    before, after = total.logarithm(points[0], points[1]), small.manifold.logarithm(*small.points[:2])
    assert bool(before.valid)
    torch.testing.assert_close(before.squared, after.squared, rtol=1e-10, atol=0)
