"""What the quotient geometry asks of its inputs, and the distance in which it takes their mean."""

from __future__ import annotations

import torch

from riemerge.methods.geodesic.quotient_mean import distances, refuse_mixed
from riemerge.updates.low_rank import LowRankUpdate
from tests.helpers import random_gauge, random_orthonormal, seeded
from tests.methods.spectra import normal


def updates(seed: int, count: int = 2, rank: int = 2) -> list[LowRankUpdate]:
    return [
        LowRankUpdate(normal(9, rank, seed=seed + i), normal(rank, 7, seed=seed + i + 50))
        for i in range(count)
    ]


def test_ranks_that_differ_are_said_with_their_names_and_the_remedy() -> None:
    assert refuse_mixed("q", [("one", 2), ("two", 2)]) == []
    (problem,) = refuse_mixed("q", [("one", 2), ("two", 4)])
    assert problem == (
        "q: the ranks differ (one 2, two 4): geomerge needs one rank: truncate all with --rank 2, or use "
        "method average"
    )


def test_the_distance_is_one_of_updates() -> None:
    """Symmetric, zero for copies in any gauge, and kept by orthogonal maps of both spaces."""
    first, second = updates(1), updates(3)
    apart = distances(first, second)
    assert bool((apart > 0.1).all())
    assert torch.allclose(distances(second, first), apart, rtol=1e-7)  # d² errs by the square of the gauge
    gauge = random_gauge(2, 10.0, seeded(5))
    turned = [LowRankUpdate(one.B @ gauge, torch.linalg.solve(gauge, one.A)) for one in first]
    assert float(distances(first, turned).max()) <= 1e-6
    left, right = random_orthonormal(12, 9, seeded(6)), random_orthonormal(11, 7, seeded(7))
    moved = [[LowRankUpdate(left @ one.B, one.A @ right.mT) for one in side] for side in (first, second)]
    assert torch.allclose(distances(*moved), apart, rtol=1e-7)
