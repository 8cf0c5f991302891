"""Dense updates, and the laws that both kinds of update share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from riemerge.updates import Dense, DenseSpan, LowRankUpdate
from riemerge.updates.update import Update
from tests.helpers import seeded


def factors() -> Update:
    b, a = (torch.randn(*shape, generator=seeded(1), dtype=torch.float64) for shape in ((7, 2), (2, 5)))
    return LowRankUpdate(b, a, scale=-1.5)


def tensor(*shape: int) -> Callable[[], Update]:
    return lambda: Dense(torch.randn(shape, generator=seeded(2), dtype=torch.float64))


KINDS = {
    "factors": factors,
    "matrix": tensor(7, 5),
    "bias": tensor(6),
    "kernel": tensor(2, 3, 2),
    "number": tensor(),
}
EVERY = pytest.mark.parametrize("kind", KINDS)


@EVERY
def test_the_norm_and_the_shape_are_those_of_dw(kind: str) -> None:
    update = KINDS[kind]()
    assert update.shape == tuple(update.dense().shape)
    assert update.dense().dtype is torch.float64
    assert update.norm() == pytest.approx(float(update.dense().norm()), rel=1e-14)


@EVERY
@pytest.mark.parametrize("factor", [-2.0, 0.0, 0.5, 1.0])
def test_a_factor_scales_dw_and_nothing_else(kind: str, factor: float) -> None:
    update = KINDS[kind]()
    scaled = update.times(factor)
    torch.testing.assert_close(scaled.dense(), factor * update.dense(), rtol=1e-14, atol=0)
    assert scaled.norm() == pytest.approx(abs(factor) * update.norm(), rel=1e-14)
    assert (scaled.shape, scaled.rank) == (update.shape, update.rank)


@EVERY
@pytest.mark.parametrize("factor", [-3.0, 0.0, 2.0])
def test_a_scale_that_is_absorbed_changes_no_dw(kind: str, factor: float) -> None:
    scaled = KINDS[kind]().times(factor)
    alone = scaled.absorb_scale()
    torch.testing.assert_close(alone.dense(), scaled.dense(), rtol=1e-14, atol=1e-15)
    assert getattr(alone, "scale", 1.0) == 1.0


def test_the_rank_of_a_dense_update_is_not_known_and_that_of_factors_is_bounded() -> None:
    assert KINDS["matrix"]().rank is None
    assert factors().rank == 2


def test_a_span_of_dense_updates_is_made_of_views() -> None:
    stacked = torch.randn(3, 4, 2, generator=seeded(3), dtype=torch.float64)
    updates = DenseSpan(stacked).updates
    assert len(updates) == 3
    assert all(torch.equal(update.tensor, x) for update, x in zip(updates, stacked, strict=True))
    assert {update.tensor.untyped_storage().data_ptr() for update in updates} == {
        stacked.untyped_storage().data_ptr()
    }
