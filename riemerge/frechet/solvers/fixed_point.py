"""The fixed-point iteration of GeoMerge as a Pymanopt optimizer."""

from __future__ import annotations

import time
from typing import Any, final

from pymanopt import Problem
from pymanopt.optimizers.optimizer import Optimizer, OptimizerResult

from riemerge.manifolds.guests.guarded import guard


@final
class FixedPointOptimizer(Optimizer):  # type: ignore[misc]
    """Moves by the whole negative gradient, again and again: x <- Exp_x(Σ wᵢ log_x yᵢ) on a Fréchet
    problem.

    No line search: converges near the mean of nearby data, and may cycle on data far apart. Source: GeoMerge
    (2026), eq. 9 with step one; Karcher 1977.
    """

    def run(self, problem: Problem, *, initial_point: Any = None, **kwargs: Any) -> OptimizerResult:
        """Iterate until one of the optimizer's own stopping rules holds."""
        manifold = guard(problem.manifold)
        point = manifold.random_point() if initial_point is None else initial_point
        began = time.time()
        self._initialize_log(optimizer_parameters={})
        iteration = 0
        while True:
            iteration += 1
            gradient = problem.riemannian_gradient(point)
            norm = manifold.norm(point, gradient)
            self._log_iterate(problem, iteration, point, norm)
            reason = self._check_stopping_criterion(start_time=began, iteration=iteration, gradient_norm=norm)
            if reason:
                break
            try:
                point = manifold.exp(point, -gradient)
            except NotImplementedError:
                point = manifold.retraction(point, -gradient)
        return self._return_result(
            start_time=began,
            point=point,
            cost=problem.cost(point),
            iterations=iteration,
            stopping_criterion=reason,
            cost_evaluations=1,
            step_size=norm,
            gradient_norm=norm,
        )

    def _log_iterate(self, problem: Problem, iteration: int, point: Any, norm: float) -> None:
        """Log an iterate as Pymanopt's own optimizers do; its cost is asked for only then."""
        if self._log_verbosity > 0:
            cost = problem.cost(point)
            self._add_log_entry(iteration=iteration, point=point, cost=cost, gradient_norm=norm)
