"""Helpers of the tests of means."""

from __future__ import annotations

import numpy as np

from riemerge.frechet import Solution


def certified(solution: Solution, tol: float = 1e-8) -> bool:
    """Whether the certificate itself, not the status, says that this is a mean."""
    scale = np.maximum(1, np.sqrt(2 * solution.cost))
    return bool(
        (solution.gradient_norm <= tol * scale).all() and (solution.horizontality <= 10 * tol * scale).all()
    )
