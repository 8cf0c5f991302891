"""Modules that are reduced side by side, against each by itself and Householder's way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from riemerge.linalg import SVD, thin_svd
from riemerge.updates import JointSpan, LowRankUpdate, reduction
from riemerge.updates.reduction import Kind, Lift, Reduction, reduce
from tests.fake_cuda import fake_cuda
from tests.helpers import random_gauge, seeded

SHAPE = (24, 20)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def module(seed: int, ranks: Sequence[int] = (3, 3), shape: tuple[int, int] = SHAPE) -> list[LowRankUpdate]:
    """Updates of scales 0.5, 1.5, … whose columns have lengths from 1 to 1e4."""
    lengths = torch.logspace(0, 4, max(ranks), dtype=torch.float64)
    return [
        LowRankUpdate(
            normal(shape[0], rank, seed=seed + t) * lengths[:rank],
            normal(rank, shape[1], seed=seed + t + 50) / lengths[:rank, None],
            t + 0.5,
        )
        for t, rank in enumerate(ranks)
    ]


def near_copies(seed: int, noise: float) -> list[LowRankUpdate]:
    first, second = module(seed)
    return [first, LowRankUpdate(first.B + noise * second.B, first.A + noise * second.A)]


def zero(seed: int) -> list[LowRankUpdate]:
    first, second = module(seed)
    return [first, LowRankUpdate(0.0 * second.B, second.A)]


MODULES = {
    "plain": (module(0), "product"),
    "two Grams": (near_copies(100, 1e-3), "product"),
    "copies": (near_copies(200, 0.0), "reflectors"),
    "nearly copies": (near_copies(300, 1e-7), "reflectors"),
    "zero": (zero(400), "reflectors"),
    "another": (module(500), "product"),
}


def cut(span: Reduction, rank: int) -> SVD:
    """The nearest updates of that rank to the sums, in the bases of the spans."""
    return thin_svd(span.sum(torch.ones_like(span.scales))).truncate(rank)


def lift(span: Reduction) -> list[Lift]:
    """What gives the sums, cut to rank 2, their width."""
    svd = cut(span, 2)
    roots = svd.values.sqrt().unsqueeze(-2)
    return span.lifts(svd.left * roots, svd.right * roots, torch.float64)


def check(modules: Sequence[Sequence[LowRankUpdate]], span: Reduction, tolerance: float = 1e-10) -> None:
    """Compare with the dense updates, and with Householder's QR of each module by itself."""
    lifts, distances, products = lift(span), span.cores.distances(cut(span, 2)), span.cores.inner()
    for k, updates in enumerate(modules):
        dense = torch.stack([update.dense() for update in updates])
        size = torch.linalg.matrix_norm(dense)
        unit = float(size.max())
        exact = thin_svd(dense.sum(dim=0)).truncate(2).matrix()
        merged = lifts[k](updates)
        assert torch.linalg.matrix_norm(merged.dense() - exact) <= tolerance * unit
        apart = torch.linalg.matrix_norm(exact - dense)
        torch.testing.assert_close(distances[k], apart, rtol=0, atol=tolerance * unit)
        torch.testing.assert_close(span.cores.norms[k], size, rtol=0, atol=tolerance * unit)
        flat = dense.flatten(1)
        torch.testing.assert_close(products[k], flat @ flat.mT, rtol=0, atol=tolerance * unit**2)
        slow = JointSpan([update.to(torch.float64) for update in updates])
        for small, other in zip(span.updates(k), slow.updates, strict=True):
            sigma, expected = small.singular_values(), other.singular_values()
            torch.testing.assert_close(sigma, expected, rtol=0, atol=tolerance * unit)
        rounding = [update.rounding(torch.float16) for update in slow.updates]
        found = span.rounding([torch.float16] * len(updates))[k].tolist()
        assert found == pytest.approx(rounding, rel=1e-9)


def test_modules_side_by_side_are_reduced_as_each_by_itself() -> None:
    modules = [updates for updates, _ in MODULES.values()]
    span = reduce(modules)
    ways = [way for _, way in MODULES.values()]
    assert [list(side) for side in span.ways] == [ways, [*ways[:4], "product", ways[5]]]
    check(modules, span)
    for k, updates in enumerate(modules):
        torch.testing.assert_close(reduce([updates]).left[0], span.left[k], rtol=1e-9, atol=1e-9)


def test_one_gram_matrix_is_not_enough_for_near_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = near_copies(100, 1e-3)
    columns = torch.cat([update.B for update in updates], dim=1)

    def skew() -> float:
        basis = torch.linalg.solve_triangular(reduce([updates]).left[0], columns, upper=True, left=False)
        return float((basis.mT @ basis - torch.eye(6, dtype=torch.float64)).abs().max())

    exact = skew()
    assert exact <= 1e-11
    monkeypatch.setattr(reduction, "_ONE_GRAM", 1e9)
    assert skew() >= 100 * exact


@pytest.mark.parametrize("ranks", [(3, 1, 2), (6, 5, 7), (12, 12, 12), (30, 2)])
def test_ranks_may_differ_and_wide_sides_are_their_own_bases(ranks: tuple[int, ...]) -> None:
    modules = [module(10 * k, ranks, (24, 18)) for k in range(3)]
    span = reduce(modules)
    width = sum(ranks)
    assert span.left.shape[1:] == (min(24, width), width)
    assert span.right.shape[1:] == (min(18, width), width)
    assert (span.ways[0][0] == "itself", span.ways[1][0] == "itself") == (width >= 24, width >= 18)
    check(modules, span)


def test_the_gauge_of_the_factors_does_not_matter() -> None:
    plain = [module(k) for k in range(3)]
    gauges = [random_gauge(3, 100.0, seeded(k)) for k in range(2)]
    turned = [
        [
            LowRankUpdate(one.B @ gauge, torch.linalg.solve(gauge, one.A), one.scale)
            for one, gauge in zip(updates, gauges, strict=True)
        ]
        for updates in plain
    ]
    first, second = reduce(plain), reduce(turned)
    torch.testing.assert_close(first.cores.inner(), second.cores.inner(), rtol=1e-9, atol=0)
    check(turned, second, 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_factors_are_reduced_in_float64(dtype: torch.dtype) -> None:
    modules = [[update.to(dtype) for update in module(k)] for k in range(2)]
    span = reduce(modules)
    assert span.left.dtype is torch.float64
    assert span.dtype is torch.float32
    check(modules, span)


def test_blocks_of_rows_change_no_digit_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [updates for updates, _ in MODULES.values()]
    monkeypatch.setattr(reduction, "_BLOCK", 200)
    check(modules, reduce(modules))


def test_some_modules_and_some_updates_are_those_of_the_whole() -> None:
    modules = [module(10 * k, (3, 2, 4), (24, 20)) for k in range(3)]
    part = reduce(modules).take([2, 0], [0, 2])
    assert part.kind == Kind((24, 20), (3, 4), "cpu")
    expected = reduce([[modules[k][0], modules[k][2]] for k in (2, 0)])
    torch.testing.assert_close(part.cores.inner(), expected.cores.inner())


def test_a_device_is_waited_for_once_for_all_modules() -> None:
    modules = [module(k) for k in range(7)]
    expected = reduce(modules)
    with fake_cuda() as traffic:
        there = [[update.to(device="cuda") for update in updates] for updates in modules]
        span = reduce(there)
        assert traffic.synchronisations == 1, traffic.operations
        assert span.left.device.type == "cpu"
        lifted = lift(span)[3](there[3])
        assert traffic.synchronisations == 1, traffic.operations
        assert lifted.device.type == "cuda"
        apart = lifted.to(device="cpu").dense() - lift(expected)[3](modules[3]).dense()
        assert float(apart.norm()) <= 1e-12 * float(modules[3][0].norm())


def test_kinds_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="all of one kind"):
        reduce([])
    with pytest.raises(ValueError, match="all of one kind"):
        reduce([module(0), module(0, (2, 3))])
