"""Solvers are values: what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from riemerge.errors import RecipeError
from riemerge.solvers import SOLVERS


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize(
    "options",
    [{"tol": -1.0}, {"tol": float("nan")}, {"cost_tol": -1.0}, {"max_passes": 0}, {"max_seconds": 0.0}],
)
def test_a_tolerance_or_budget_that_is_none_is_refused(name: str, options: dict[str, Any]) -> None:
    ((option, _),) = options.items()
    with pytest.raises(RecipeError, match=f"{option} is"):
        SOLVERS.make(name, **options)
    assert SOLVERS.make(name) == SOLVERS.make(name)
