"""Reduced problems of a few families, and points off their starts."""

from __future__ import annotations

from torch import Tensor

from riemerge.frechet import Search
from tests.frechet.problems import search_of
from tests.manifolds.subjects import family, updates

M, N, R, T, K = 30, 26, 4, 3, 2


def problem(name: str, weights: Tensor | None = None, **options: float) -> Search:
    """The reduced problem of one family."""
    return search_of(updates(M, N, R, k=K), family(name, T, M, N, R, 7, K, **options), weights)


def off(subject: Search, point: Tensor, length: float) -> Tensor:
    """A point at this distance from another one."""
    search = subject.form.manifold
    moved: Tensor = search.retraction(point, length * search.random_tangent_vector(point))
    return moved
