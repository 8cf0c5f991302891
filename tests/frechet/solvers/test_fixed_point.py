"""The fixed-point iteration by itself."""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
import pymanopt
from pymanopt import manifolds

from riemerge.frechet.solvers.fixed_point import FixedPointOptimizer
from tests.frechet.guests import unit


def test_a_fixed_point_by_itself_stays_on_the_manifold_and_logs() -> None:
    generator = np.random.default_rng(8)
    points = [unit(x) for x in generator.standard_normal((3, 5))]
    sphere = manifolds.Sphere(5)

    @pymanopt.function.autograd(sphere)
    def cost(x: np.ndarray) -> Any:
        return sum(anp.sum((x - y) ** 2) for y in points) / 6

    found = FixedPointOptimizer(max_iterations=300, log_verbosity=1, verbosity=0).run(
        pymanopt.Problem(sphere, cost), initial_point=points[0]
    )
    np.testing.assert_allclose(found.point, unit(np.mean(points, axis=0)), atol=1e-5)
    entries = found.log["iterations"]
    assert entries["iteration"] == [*range(1, found.iterations + 1)]
    assert entries["cost"][-1] == found.cost
    assert entries["gradient_norm"][-1] == found.gradient_norm
