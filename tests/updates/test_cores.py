"""Updates as decompositions side by side: all that is said of them is what the stack of them says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from riemerge.linalg import SVD, thin_svd
from riemerge.updates import Cores, LowRankUpdate
from riemerge.updates import cores as module
from tests.helpers import random_gauge, seeded

RANKS = {"equal": (3, 3, 3, 3), "unequal": (1, 4, 2, 4), "wide": (9, 2), "one": (2,)}
EACH = pytest.mark.parametrize("ranks", RANKS.values(), ids=list(RANKS))
WEIGHTS = torch.tensor([0.4, -0.3, 0.2, 1.0], dtype=torch.float64)


def draw(ranks: Sequence[int], condition: float = 1.0, seed: int = 0) -> list[LowRankUpdate]:
    generator = seeded(seed)
    updates = []
    for rank in ranks:
        b = torch.randn(7, rank, generator=generator, dtype=torch.float64)
        a = torch.randn(rank, 6, generator=generator, dtype=torch.float64)
        gauge = random_gauge(rank, condition, generator)
        updates.append(LowRankUpdate(b @ gauge, torch.linalg.solve(gauge, a), -2.0))
    return updates


def stack_of(updates: Sequence[LowRankUpdate]) -> Tensor:
    return torch.stack([update.dense() for update in updates])


def close(one: Tensor, other: Tensor, tolerance: float = 1e-13) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm())


def both(ranks: Sequence[int]) -> tuple[list[Cores], Tensor]:
    """The updates from factors and from a stack, and the stack."""
    updates = draw(ranks)
    stack = stack_of(updates)
    return [Cores.of(updates), Cores.of_stack(stack)], stack


@EACH
def test_what_is_said_of_them_is_what_the_stack_says(ranks: tuple[int, ...]) -> None:
    given, stack = both(ranks)
    weights = WEIGHTS[: len(ranks)]
    left, right = (torch.randn(size, 3, generator=seeded(size), dtype=torch.float64) for size in (7, 6))
    for x in given:
        assert (x.count, x.shape) == (len(ranks), (7, 6))
        assert close(x.dense(), stack)
        assert close(x.combine(weights), torch.einsum("t,tpq->pq", weights, stack))
        assert close(x.norms, torch.linalg.matrix_norm(stack))
        assert close(x.inner(), torch.einsum("spq,tpq->st", stack, stack))
        assert torch.equal(x.inner(), x.inner().mT)
        assert close(x.within(left, right), left.mT @ stack @ right)


@EACH
@pytest.mark.parametrize("rank", [1, 4, 6])
def test_distances_keep_their_digits(ranks: tuple[int, ...], rank: int) -> None:
    given, stack = both(ranks)
    for other in (torch.randn(7, 6, generator=seeded(9), dtype=torch.float64), stack[0] + 1e-9):
        svd = thin_svd(other).truncate(rank)
        expected = torch.linalg.matrix_norm(svd.matrix() - stack)
        for x in given:
            assert torch.allclose(x.distances(svd), expected, rtol=1e-12, atol=1e-14 * float(other.norm()))


@EACH
def test_the_decompositions_are_thin_svds(ranks: tuple[int, ...]) -> None:
    given, stack = both(ranks)
    for x in given:
        start = 0
        for rank, update in zip(x.ranks, stack, strict=True):
            left, sigma, right = (part[..., start : start + rank] for part in x.svds)
            assert close((left * sigma) @ right.mT, update)
            assert torch.allclose(sigma, torch.linalg.svdvals(update)[:rank], atol=1e-13)
            for frame in (left, right):
                assert torch.allclose(frame.mT @ frame, torch.eye(rank).double(), atol=1e-13)
            assert x.places[start : start + rank].tolist() == list(range(rank))
            start += rank
        assert start == len(x.places) == sum(x.ranks)


def test_of_more_columns_than_the_width_as_many_are_kept() -> None:
    assert Cores.of(draw(RANKS["wide"])).ranks == (6, 2)


@EACH
def test_a_gauge_costs_its_condition_and_not_the_square(ranks: tuple[int, ...]) -> None:
    assert close(Cores.of(draw(ranks, 1e6)).dense(), stack_of(draw(ranks, 1e6)), 1e-9)


@EACH
def test_inner_products_in_blocks_are_those_at_once(
    ranks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Cores.of(draw(ranks)).inner()
    for block in (1, 5):
        monkeypatch.setattr(module, "_BLOCK", block)
        found = Cores.of(draw(ranks)).inner()
        assert close(found, whole)
        assert torch.equal(found, found.mT)


@EACH
def test_narrow_keeps_the_nearest(ranks: tuple[int, ...]) -> None:
    given, stack = both(ranks)
    kept = [min(rank, 2 - place % 2) for place, rank in enumerate(ranks)]
    for x in given:
        narrow = x.narrow(kept)
        assert narrow.ranks == tuple(kept)
        for update, rank, found in zip(stack, kept, narrow.dense(), strict=True):
            assert close(found, LowRankUpdate(torch.eye(7).double(), update).truncate(rank).dense())


@EACH
def test_balanced_is_the_canonical_gauge(ranks: tuple[int, ...]) -> None:
    updates = draw(ranks, 1e3)
    for found, update in zip(Cores.of(updates).balanced(), updates, strict=True):
        expected = update.balance()
        assert close(found.B, expected.B[:, : found.rank], 1e-9)
        assert close(found.A, expected.A[: found.rank], 1e-9)


@EACH
def test_modules_side_by_side_are_each_by_itself(ranks: tuple[int, ...]) -> None:
    modules = [draw(ranks, seed=seed) for seed in range(3)]
    left = torch.stack([torch.cat([-2.0 * one.B for one in updates], dim=1) for updates in modules])
    right = torch.stack([torch.cat([one.A.mT for one in updates], dim=1) for updates in modules])
    x = Cores.of_factors(left, right, ranks)
    weights = torch.stack([seed + WEIGHTS[: len(ranks)] for seed in range(3)])
    frames = [torch.ones(size, 2).double() for size in (7, 6)]
    alone = [Cores.of(updates) for updates in modules]
    assert close(x.combine(weights), torch.stack([y.combine(w) for y, w in zip(alone, weights, strict=True)]))
    for found, expected in (
        (x.norms, [y.norms for y in alone]),
        (x.dense(), [y.dense() for y in alone]),
        (x.inner(), [y.inner() for y in alone]),
        (
            x.distances(thin_svd(1.0 + x.dense()[:, 0])),
            [y.distances(thin_svd(1.0 + y.dense()[0])) for y in alone],
        ),
        (x.within(*frames), [y.within(*frames) for y in alone]),
    ):
        assert close(found, torch.stack(expected))
    assert close(alone[0].alone().dense()[0], x.dense()[0])


def test_updates_of_zero() -> None:
    x = Cores.of([LowRankUpdate(torch.zeros(4, 2).double(), torch.zeros(2, 5).double())] * 2)
    assert not x.norms.any()
    assert not x.dense().any()
    assert not x.inner().any()
    assert x.narrow([0, 0]).combine(torch.ones(2)).shape == (4, 5)


def test_other_singular_values_in_place_of_their_own() -> None:
    x = Cores.of(draw((2, 3)))
    weights, values = torch.tensor([1.0, 2.0]).double(), torch.arange(1.0, 6.0).double()
    left, _, right = x.svds
    expected = SVD(left, values * torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0]), right).matrix()
    assert close(x.combine(weights, values), expected)
