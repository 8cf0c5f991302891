"""Pymanopt's manifolds where their own verbs fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pymanopt import manifolds
from pymanopt.optimizers import ConjugateGradient, SteepestDescent, TrustRegions
from pymanopt.optimizers.optimizer import Optimizer

from riemerge import Status
from tests.frechet.guests import drawn
from tests.frechet.problems import ITERATIVE, mean_of


def test_a_manifold_that_can_only_retract_is_enough() -> None:
    class Retracting(manifolds.manifold.Manifold):
        """The sphere without exp, transport and to_tangent_space."""

        def __init__(self) -> None:
            super().__init__("Sphere by retraction", 3)
            self._sphere = manifolds.Sphere(4)
            for verb in ("dist", "log", "retraction"):
                setattr(self, verb, getattr(self._sphere, verb))

        def inner_product(self, point: Any, tangent_vector_a: Any, tangent_vector_b: Any) -> Any:
            return self._sphere.inner_product(point, tangent_vector_a, tangent_vector_b)

        def projection(self, point: Any, vector: Any) -> Any:
            return self._sphere.projection(point, vector)

        def norm(self, point: Any, tangent_vector: Any) -> Any:
            return self._sphere.norm(point, tangent_vector)

        def random_point(self) -> Any:
            return self._sphere.random_point()

        def random_tangent_vector(self, point: Any) -> Any:
            return self._sphere.random_tangent_vector(point)

        def zero_vector(self, point: Any) -> Any:
            return self._sphere.zero_vector(point)

    points = drawn(manifolds.Sphere(4))
    expected = mean_of(manifolds.Sphere(4), points).point
    for solver in ITERATIVE:
        solution = mean_of(Retracting(), points, solver=solver)
        assert solution.ok
        np.testing.assert_allclose(solution.point, expected, atol=1e-7)


def test_equal_columns_have_a_logarithm() -> None:
    """Pymanopt's is arccos(1 + eps) there."""
    a, b = np.array([[1, 0.6], [1, 0], [1, 0.8]]), np.array([[1, 0], [1, 0.6], [1, 0.8]])
    a, b = (x / np.linalg.norm(x, axis=0) for x in (a, b))
    solution = mean_of(manifolds.Oblique(3, 2), [a, b])
    assert solution.status == (Status.CONVERGED,)
    middle = (a + b) / np.linalg.norm(a + b, axis=0)
    np.testing.assert_allclose(solution.point, middle, atol=1e-7)


def ill_conditioned(condition: float) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    frames = [np.linalg.qr(generator.standard_normal((4, 4)))[0] for _ in range(3)]
    spectrum = np.logspace(0, -np.log10(condition), 4)
    return [(q * spectrum) @ q.T for q in frames]


@pytest.mark.parametrize("condition", [1e6, 1e10])
@pytest.mark.parametrize(
    "solver",
    [*ITERATIVE, *(x(verbosity=0) for x in (SteepestDescent, ConjugateGradient, TrustRegions))],
    ids=str,
)
def test_trial_points_out_of_the_set_cost_infinity(solver: str | Optimizer, condition: float) -> None:
    """Steps between cores of such condition end at matrices that are none to round-off."""
    points = [(x + x.T) / 2 for x in ill_conditioned(condition)]
    spd = manifolds.SymmetricPositiveDefinite(4)
    solution = mean_of(spd, points, solver=solver, max_passes=60)
    assert np.isfinite(solution.cost).all()
    costs = [x.cost[0] for x in solution.trace]
    if solver != "fixed_point":  # which has no line search
        assert costs[-1] <= costs[0]
