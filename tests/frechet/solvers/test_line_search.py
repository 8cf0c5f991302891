"""The line search that gives every module its own step."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from riemerge import Status
from riemerge.frechet.solvers.lbfgs import InverseHessian
from tests.frechet.problems import mean_of
from tests.manifolds.subjects import family, updates


def test_a_bad_direction_is_given_up_before_the_module_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along one direction nothing is accepted; the gradient then goes on, and the solve converges."""
    quotient, points = updates(24, 20, 3), family("close", 3, 24, 20, 3, seed=5, k=1)
    apply, calls = InverseHessian.apply, list[int]()

    def spoiled(self: InverseHessian, point: Tensor) -> Any:
        calls.append(0)
        direction, algebra = apply(self, point), self._algebra
        gradient = algebra.push(self._gradient)
        if len(calls) != 2:
            return direction
        # Downhill by next to nothing, and far across.
        manifold = algebra.manifold
        across = manifold.random_tangent_vector(point)
        share = manifold.inner_product(point, across, gradient) / manifold.norm(point, gradient) ** 2
        return 1e9 * (across - share * gradient) + 1e-12 * gradient

    monkeypatch.setattr(InverseHessian, "apply", spoiled)
    assert mean_of(quotient, points, max_passes=200).status == (Status.CONVERGED,)
    assert len(calls) > 2
