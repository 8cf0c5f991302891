"""Watches a solve from outside the optimizer: counts, freezes finished modules, and ends it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

import numpy as np
import torch
from torch import Tensor

from riemerge.frechet import Evaluation, FrechetProblem, Point
from riemerge.manifolds.base import host, host_array
from riemerge.solvers.solution import Status, TracePoint

# A module is flat when this many accepted iterates together lowered its cost by less than cost_tol.
_WINDOW = 5
# Rejected trials in a row after which an optimizer without a line search of ours is taken to be stuck.
_MAX_REJECTIONS = 40


class Stop(Exception):  # noqa: N818 - not an error: the way out of an unmodified optimizer
    """Raised inside an optimizer's callback to end it; the monitor holds the point."""


@final
class Monitor:
    """Sees every accepted iterate of an unmodified optimizer, because optimizers ask for the gradient there.

    Pymanopt's optimizers stop on the norm of the whole stack, do not count evaluations, and report success on
    NaN. So they are given no stopping rule: this decides per module, and raises `Stop` when none is left.

    Args:
        problem: What is solved.
        tol: A module is converged where |gradient| <= tol * max(1, sqrt(2 F)).
        cost_tol: A module is flat where the relative decrease of F over a few iterates is at most this; 0 for
            never.
        max_passes: Budget of passes.
        callback: Called with each accepted iterate.
    """

    def __init__(
        self,
        problem: FrechetProblem,
        *,
        tol: float,
        cost_tol: float,
        max_passes: int,
        callback: Callable[[TracePoint], None] | None,
    ) -> None:
        self._problem = problem
        self._tol = tol
        self._cost_tol = cost_tol
        self._max_passes = max_passes
        self._callback = callback
        self._began = time.perf_counter()
        self._costs: list[Tensor] = []
        self._rejections = 0
        self._seen: Evaluation | None = None
        self._defined: Tensor = torch.ones(problem.k, dtype=torch.bool)
        self.trace: list[TracePoint] = []
        self.point: Point = None
        self.status: list[Status | None] = [None] * problem.k
        self.active: Tensor = torch.ones(problem.k, dtype=torch.bool)

    @property
    def seconds(self) -> float:
        """Wall time since the solve began."""
        return time.perf_counter() - self._began

    def cost(self, point: Point) -> np.float64:
        """The cost an optimizer sees: of all modules that had one at the start. Ends the solve when the
        budget is spent.
        """
        if self._problem.passes >= self._max_passes and not self._problem.remembers(point):
            self.finish(Status.BUDGET)
        if self._rejections >= _MAX_REJECTIONS:
            self.finish(Status.STALLED)
        self._rejections += 1
        cost = self._problem.evaluate(point).cost
        return host(torch.where(self._defined.to(cost.device), cost, 0.0).sum())

    def gradient(self, point: Point) -> Point:
        """The gradient an optimizer sees: zero in frozen modules. Each new point here is an accepted
        iterate.
        """
        evaluation = self._problem.evaluate(point)
        self.accept(point, evaluation)
        return self.masked(point, evaluation.gradient)

    def hessian(self, point: Point, vector: Point) -> Point:
        """The Hessian-vector product an optimizer sees: zero in frozen modules."""
        return self.masked(point, self._problem.hessian(point, vector))

    def masked(self, point: Point, vector: Point) -> Point:
        """Sets a tangent vector to zero in frozen modules."""
        if bool(self.active.all()):
            return vector
        zero = self._problem.form.manifold.zero_vector(point)
        return self._problem.form.choose(self.active.to(_device(vector)), vector, zero)

    def accept(self, point: Point, evaluation: Evaluation) -> None:
        """Records an iterate, freezes the modules that it finishes, and ends the solve when none is left."""
        if evaluation is self._seen:
            return
        self._seen = evaluation
        self._rejections = 0
        cost, norms = evaluation.cost.cpu(), evaluation.norms.cpu()
        defined = torch.isfinite(cost)
        # The tensor itself where it is whole: the problem remembers it.
        whole = self.point is None or bool(defined.all())
        self.point = (
            point
            if whole
            else self._problem.form.choose(defined.to(evaluation.cost.device), point, self.point)
        )
        first = not self._costs
        if first:
            self._defined = defined
        self._costs.append(cost)
        self._freeze(~defined, Status.UNDEFINED if first else Status.STALLED)
        self._freeze(norms <= self._tol * (2 * cost).sqrt().clamp_min(1), Status.CONVERGED)
        if self._cost_tol > 0 and len(self._costs) > _WINDOW:
            decrease = self._costs[-1 - _WINDOW] - cost
            self._freeze(decrease <= self._cost_tol * cost, Status.FLAT)
        active = int(self.active.sum())
        self.trace.append(
            TracePoint(self._problem.passes, self.seconds, host_array(cost), host_array(norms), active)
        )
        if self._callback is not None:
            self._callback(self.trace[-1])
        if active == 0:
            raise Stop
        if self._problem.passes >= self._max_passes:
            self.finish(Status.BUDGET)

    def stall(self, mask: Tensor) -> None:
        """Freezes modules in which a line search found no step."""
        self._freeze(mask.cpu(), Status.STALLED)

    def _freeze(self, mask: Tensor, status: Status) -> None:
        for index in torch.nonzero(mask & self.active).squeeze(-1).tolist():
            self.status[index] = status
        self.active = self.active & ~mask

    def finish(self, status: Status) -> None:
        """Gives what is still active this status, and ends the solve."""
        self._freeze(torch.ones_like(self.active), status)
        raise Stop


def _device(vector: Point) -> torch.device:
    return vector.device if isinstance(vector, Tensor) else torch.device("cpu")
