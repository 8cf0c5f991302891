"""The cut of an update before a mean of fixed rank: nearest, or nothing, or refused."""

from __future__ import annotations

import pytest
import torch

from riemerge.errors import NumericalError
from riemerge.methods import Options
from riemerge.methods.geodesic.truncate import truncate
from riemerge.updates.low_rank import LowRankUpdate
from tests.methods.spectra import normal


def update(rank: int = 3) -> LowRankUpdate:
    return LowRankUpdate(normal(7, rank), normal(rank, 6, seed=1))


def test_the_cut_is_the_nearest_of_its_rank() -> None:
    given = update()
    cut = truncate(given, Options(rank=2))
    least = torch.linalg.svdvals(given.dense())[2:].norm()
    assert cut.rank == 2
    assert float((cut.dense() - given.dense()).norm()) == pytest.approx(float(least), rel=1e-10)


@pytest.mark.parametrize("rank", [None, 3, "sum"])
def test_an_update_stays_as_it_is_where_nothing_is_to_be_cut(rank: int | str | None) -> None:
    given = update()
    assert truncate(given, Options(rank=rank)) is given


@pytest.mark.parametrize(("columns", "asked", "most"), [(3, 4, 3), (9, 7, 6)])
def test_a_rank_above_that_of_the_update_is_refused(columns: int, asked: int, most: int) -> None:
    with pytest.raises(NumericalError, match=f"its rank is at most {most}, below the rank {asked} asked for"):
        truncate(update(columns), Options(rank=asked))
