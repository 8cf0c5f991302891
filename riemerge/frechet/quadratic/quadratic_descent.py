"""Minimisation among matrices of one rank by Pymanopt's optimizers, and how each solve ended."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn, final

import numpy as np
import torch
from pymanopt.optimizers import ConjugateGradient, SteepestDescent, TrustRegions
from pymanopt.optimizers.optimizer import Optimizer
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.frechet.quadratic.quadratic_cost import LowRankQuadratic
from riemerge.frechet.solvers.guest_optimizer import ENDLESS, MAX_REJECTIONS, Stop
from riemerge.frechet.solvers.lbfgs import LBFGSOptimizer
from riemerge.frechet.solvers.watch import WINDOW
from riemerge.frechet.status import Status
from riemerge.linalg import single_threaded
from riemerge.manifolds.base import host

_OPTIMIZERS: dict[str, type[Optimizer]] = {
    "trust_regions": TrustRegions,
    "lbfgs": LBFGSOptimizer,
    "conjugate_gradient": ConjugateGradient,
    "steepest_descent": SteepestDescent,
}
# Costs are known to this, relative to the data: what Pymanopt's trust regions take round-off to be.
_NOISE = 1e3 * torch.finfo(torch.float64).eps
# Radii of trust regions are lengths of matrices of a problem whose data have length one. mininner=0: where
# one inner step solves the model exactly, a second one divides zero by zero.
_RUN_OPTIONS: dict[str, dict[str, Any]] = {"trust_regions": {"mininner": 0, "Delta_bar": 1.0, "Delta0": 0.25}}


class Minimum(NamedTuple):
    """The end of a solve.

    Attributes:
        point: The last accepted point, (1, m + r + n, r).
        status: How the solve ended.
        cost: F at that point.
        slope: Length of the gradient at that point, in the metric of matrices.
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
        tol: Length of the gradient, as a matrix, at which a solve is converged.
        cost_tol: Share of the cost by which a few iterates lower a flat one; 0 for never.
        max_passes: Budget of evaluations of F and its Hessian.

    Raises:
        RecipeError: A solver that does not take such problems.
    """
    if solver not in _OPTIMIZERS:
        raise RecipeError(
            f"parameters.solver: {solver}: under a rank constraint expected one of {', '.join(_OPTIMIZERS)}"
        )
    watch = _QuadraticWatch(problem, tol, cost_tol, max_passes)
    with torch.no_grad(), single_threaded():
        try:
            watch.riemannian_gradient(start)
            optimizer = _OPTIMIZERS[solver](**ENDLESS)
            optimizer.run(watch, initial_point=start, **_RUN_OPTIONS.get(solver, {}))
        except Stop:
            pass
    end = problem.evaluate(watch.point)
    return Minimum(watch.point, watch.status, float(end.cost), float(end.slope), watch.passes)


@final
class _QuadraticWatch:
    """Watches a problem of one module, whose cost and gradient are known to round-off of its data."""

    passes = 0

    def __init__(self, problem: LowRankQuadratic, tol: float, cost_tol: float, max_passes: int) -> None:
        self.manifold, self._cost_tol, self._max_passes = problem.manifold, cost_tol, max_passes
        self._costs: list[Tensor] = []
        self._rejections = 0
        self.point = torch.empty(0)
        self.status = Status.STOPPED
        self._problem, self._tol = problem, tol

    def cost(self, point: Tensor) -> np.float64:
        """Return F, +inf where it is not a number."""
        if not self._problem.remembers(point):
            self._count_pass()
            self._rejections += 1
            if self._rejections > MAX_REJECTIONS:
                self.finish(Status.STALLED)
        return np.nan_to_num(self._problem.cost(point), nan=np.inf, neginf=np.inf)

    def riemannian_gradient(self, point: Tensor) -> Tensor:
        """Return the gradient on the quotient."""
        if point is not self.point:
            self._accept(point)
        return self._problem.riemannian_gradient(point)

    def riemannian_hessian(self, point: Tensor, vector: Tensor) -> Tensor:
        """Return the Hessian on the quotient along a horizontal vector."""
        self._count_pass()
        return self._problem.riemannian_hessian(point, vector)

    def preconditioner(self, point: Tensor, vector: Tensor) -> Tensor:
        """Apply the inverse of the Hessian of the squared norm along the manifold."""
        return self._problem.preconditioner(point, vector)

    def finish(self, status: Status) -> NoReturn:
        """Set the status, and end the solve."""
        self.status = status
        raise Stop

    def _accept(self, point: Tensor) -> None:
        known = self._problem.evaluate(point)
        cost = known.cost
        # An optimizer may accept what round-off hides, but nothing that can be seen to cost more.
        if self._costs and not cost - self._costs[-1] <= _NOISE * cost.abs().clamp_min(1.0):
            self.finish(Status.STALLED)
        self.point, self._rejections = point, 0
        self._costs.append(cost)
        if host(known.slope) <= self._tol:
            self.finish(Status.CONVERGED)
        late = self._cost_tol > 0 and len(self._costs) > WINDOW
        if late and bool(self._costs[-1 - WINDOW] - cost <= self._cost_tol * cost.abs()):
            self.finish(Status.FLAT)

    def _count_pass(self) -> None:
        if self.passes >= self._max_passes:
            self.finish(Status.BUDGET)
        self.passes += 1
