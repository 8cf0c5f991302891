"""Tangent spaces carried along a path."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from riemerge.frechet import Search
from riemerge.frechet.low_rank.carrier import Carrier
from riemerge.frechet.low_rank.joint import Joint
from riemerge.frechet.low_rank.search_space import JointManifold
from tests.frechet.problems import search_of
from tests.manifolds.subjects import family, updates


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(("n", "dtype"), [(20, None), (24, None), (20, torch.float32), (24, torch.float32)])
def test_a_carrier_is_the_transport(steps: int, n: int, dtype: torch.dtype | None) -> None:
    """Also of equal sides, which it carries as one batch, and in single precision, to its digits."""
    points = family("independent", 3, 24, n, 4, seed=5, k=2, cond=1e3)
    problem = search_of(updates(24, n, 4, k=2), points, reduce=False)
    search, point = problem.form.manifold, problem.start()
    assert isinstance(search, JointManifold)
    carrier = Carrier(search, point, dtype)
    blurred = 1.0 if dtype is None else 1e8
    a, b = (search.projection(point, search.random_ambient(point)) for _ in range(2))
    moved, kept, length = a, a, search.inner_products(point, a, b)
    for _ in range(steps):
        arrival = search.retraction(point, 0.4 * search.random_tangent_vector(point))
        moved = search.transport(point, arrival, moved)
        carrier.advance(point, arrival)
        point = arrival
    # Round-off times the condition of the cores.
    near: dict[str, Any] = {"rtol": 0, "atol": 1e-10 * blurred * float(moved.abs().max())}
    torch.testing.assert_close(carrier.push(kept), moved, **near)
    assert carrier.pull(b).dtype is (dtype or torch.float64)
    torch.testing.assert_close(carrier.pull(carrier.push(b)).double(), b, **near)
    size = float(search.norms(point, moved).max() ** 2)
    close: dict[str, Any] = {"rtol": 1e-9 * blurred**0.5, "atol": 1e-12 * blurred * size}
    torch.testing.assert_close(search.inner_products(point, moved, carrier.push(b)), length, **close)
    torch.testing.assert_close(
        (carrier.functional(a.to(carrier.pull(a))) * carrier.pull(moved)).sum(dim=(-2, -1)).double(),
        search.inner_products(point, moved, moved),
        **close,
    )
    carrier.narrow(torch.tensor([1]), search_of_one(search, problem))
    torch.testing.assert_close(carrier.push(kept[1:]), moved[1:], **near)


def search_of_one(search: JointManifold, problem: Search) -> JointManifold:
    """The search manifold of the second of two modules."""
    assert isinstance(problem.form, Joint)
    manifold = problem.form.narrow(torch.tensor([1])).manifold
    assert manifold.k == search.k - 1
    return manifold
