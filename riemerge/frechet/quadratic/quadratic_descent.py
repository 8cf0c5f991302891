"""Solves problems of one rank by Pymanopt's optimizers, and says honestly how each solve ended."""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np
import torch
from pymanopt.optimizers import ConjugateGradient, SteepestDescent, TrustRegions
from pymanopt.optimizers.optimizer import Optimizer
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.frechet.quadratic.quadratic_cost import LowRankQuadratic
from riemerge.frechet.solvers.lbfgs import LBFGS
from riemerge.frechet.solvers.monitor import ENDLESS, MAX_REJECTIONS, WINDOW, Stop
from riemerge.frechet.status import Status
from riemerge.linalg import single_threaded
from riemerge.manifolds.base import host

_OPTIMIZERS: dict[str, type[Optimizer]] = {
    "trust_regions": TrustRegions,
    "lbfgs": LBFGS,
    "conjugate_gradient": ConjugateGradient,
    "steepest_descent": SteepestDescent,
}
# Costs are known to this, relative to the data: what Pymanopt's trust regions take round-off to be.
_NOISE = 1e3 * torch.finfo(torch.float64).eps
# Radii of trust regions, as lengths of matrices of a problem whose data have length one.
_RADII = {"Delta_bar": 1.0, "Delta0": 0.25}


class Minimum(NamedTuple):
    """Where a solve ended.

    Attributes:
        point: (1, m + r + n, r).
        status: How it ended.
        cost: F there.
        slope: Length of the gradient there, in the metric of matrices.
        passes: Evaluations of F and its Hessian.
    """

    point: Tensor
    status: Status
    cost: float
    slope: float
    passes: int


def minimise(
    problem: LowRankQuadratic,
    start: Tensor,
    *,
    solver: str = "trust_regions",
    tol: float = 1e-10,
    cost_tol: float = 0.0,
    max_passes: int = 1000,
) -> Minimum:
    """Minimise from a start, by an unmodified optimizer of Pymanopt (or our LBFGS).

    Law: the cost never exceeds that of the start, but for round-off. `CONVERGED` is a gradient, as a matrix,
    of length at most tol; `FLAT` a cost that a few iterates lowered by at most the share cost_tol; `BUDGET`
    and `STALLED` are what they say. A minimum is a local one.

    Args:
        problem: Scaled, so that its data have about length one.
        start: A point of `problem.manifold`.
        solver: `trust_regions`, `lbfgs`, `conjugate_gradient` or `steepest_descent`.
        tol: See above.
        cost_tol: See above; 0 for never.
        max_passes: Budget.

    Raises:
        RecipeError: A solver that does not take such problems.
    """
    if solver not in _OPTIMIZERS:
        raise RecipeError(
            f"parameters.solver: {solver}: under a rank constraint expected one of {', '.join(_OPTIMIZERS)}"
        )
    watch = _Watch(problem, tol, cost_tol, max_passes)
    # mininner=0: where one inner step solves the model exactly, a second one divides zero by zero.
    options = {"mininner": 0, **_RADII} if solver == "trust_regions" else {}
    with torch.no_grad(), single_threaded():
        try:
            watch.riemannian_gradient(start)
            _OPTIMIZERS[solver](**ENDLESS).run(watch, initial_point=start, **options)
        except Stop:
            pass
    at = problem.at(watch.point)
    return Minimum(watch.point, watch.status, float(at.cost), float(at.slope), watch.passes)


@final
class _Watch:
    """All that Pymanopt's optimizers ask of a problem, and what ends them: `Stop`."""

    def __init__(self, problem: LowRankQuadratic, tol: float, cost_tol: float, max_passes: int) -> None:
        self.manifold = problem.manifold
        self.passes = 0
        self.point = torch.empty(0)
        self.status = Status.STOPPED
        self._problem, self._tol, self._cost_tol, self._max_passes = problem, tol, cost_tol, max_passes
        self._costs: list[float] = []
        self._rejections = 0

    def cost(self, point: Tensor) -> np.float64:
        if not self._problem.remembers(point):
            self._spend()
            self._rejections += 1
            if self._rejections > MAX_REJECTIONS:
                self._end(Status.STALLED)
        cost = self._problem.cost(point)
        return cost if np.isfinite(cost) else np.float64(np.inf)

    def riemannian_gradient(self, point: Tensor) -> Tensor:
        """Every new point here is one that the optimizer has accepted."""
        if point is not self.point:
            self._accept(point)
        return self._problem.riemannian_gradient(point)

    def riemannian_hessian(self, point: Tensor, vector: Tensor) -> Tensor:
        self._spend()
        return self._problem.riemannian_hessian(point, vector)

    def preconditioner(self, point: Tensor, vector: Tensor) -> Tensor:
        return self._problem.preconditioner(point, vector)

    def _accept(self, point: Tensor) -> None:
        at = self._problem.at(point)
        cost = float(at.cost)
        # An optimizer may accept what round-off hides, but nothing that can be seen to cost more.
        if self._costs and not cost - self._costs[-1] <= _NOISE * max(1.0, abs(cost)):
            self._end(Status.STALLED)
        self.point, self._rejections = point, 0
        self._costs.append(cost)
        if host(at.slope) <= self._tol:
            self._end(Status.CONVERGED)
        settled = len(self._costs) > WINDOW and self._cost_tol > 0
        if settled and self._costs[-1 - WINDOW] - cost <= self._cost_tol * abs(cost):
            self._end(Status.FLAT)

    def _spend(self) -> None:
        if self.passes >= self._max_passes:
            self._end(Status.BUDGET)
        self.passes += 1

    def _end(self, status: Status) -> None:
        self.status = status
        raise Stop
