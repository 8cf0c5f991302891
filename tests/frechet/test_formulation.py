"""The memory of passes."""

from __future__ import annotations

import pytest

from tests.frechet.problems import away, search_of
from tests.manifolds.subjects import family, updates


def test_two_passes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    quotient, points = updates(12, 11, 3), family("close", 3, 12, 11, 3, seed=5, k=1)
    problem = search_of(quotient, points)
    x, y, z = problem.start(), away(problem), away(problem, 0.2)
    problem = search_of(quotient, points)
    for point in (x, y, x, y):
        problem.evaluate(point)
    assert problem.passes == 2
    problem.evaluate(z)
    problem.evaluate(y)
    assert problem.passes == 3
    assert problem.evaluate(y) is problem.evaluate(y)
    # Another tensor of the same numbers is another point: nothing is compared.
    problem.evaluate(y.clone())
    assert problem.passes == 4
