"""Watches a solve from outside the optimizer: counts, freezes finished modules, and ends it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from riemerge.frechet.formulation import Evaluation, Point
from riemerge.frechet.problem import FrechetProblem
from riemerge.frechet.solution import TracePoint
from riemerge.frechet.status import Status
from riemerge.manifolds.base import host, host_array

ENDLESS: dict[str, Any] = {
    "max_iterations": sys.maxsize,
    "max_time": float("inf"),
    "min_gradient_norm": 0.0,
    "min_step_size": -1.0,
    "verbosity": 0,
}
"""Options of an optimizer without a stopping rule of its own: who watches it stops it. (Not infinitely many
iterations: Pymanopt takes their log10.)"""

WINDOW = 5
"""A cost is flat when this many accepted iterates together lowered it by less than cost_tol."""

MAX_REJECTIONS = 40
"""Rejected trials in a row after which an optimizer without a line search of ours is taken to be stuck."""

# Single precision is enough while the squared gradient is above this share of F, and the gradient above this:
# the decrease of F that a step promises is then thirty times its noise (3e-8 F, measured).
_COARSE, _COARSE_NORM = 1e-6, 1e-3

# Finished modules leave the batch when no more than this share of it goes on.
_GOING_ON = 0.75


class Stop(Exception):  # noqa: N818 - not an error: the way out of an unmodified optimizer
    """Raised inside an optimizer's callback to end it; the monitor holds the point."""


class Narrow(Exception):  # noqa: N818 - not an error
    """Raised inside an optimizer's callback when finished modules should leave the batch.

    Attributes:
        modules: Which of the batch go on, indices.
    """

    def __init__(self, modules: Tensor) -> None:
        super().__init__()
        self.modules = modules


@final
class Monitor:
    """Sees every accepted iterate of an unmodified optimizer, because optimizers ask for the gradient there.

    Pymanopt's optimizers stop on the norm of the whole stack, do not count evaluations, and report success on
    NaN. So they are given no stopping rule: this decides per module, and raises `Stop` when none is left.
    Everything public is of all K modules; the problem and the optimizer see the batch, those that are left.

    Args:
        problem: What is solved.
        tol: A module is converged where ‖gradient‖ <= tol * max(1, sqrt(2 F)).
        cost_tol: A module is flat where the relative decrease of F over a few iterates is at most this; 0 for
            never.
        max_passes: Budget of passes.
        max_seconds: Budget of wall time.
        callback: Called with each accepted iterate.
    """

    def __init__(
        self,
        problem: FrechetProblem,
        *,
        tol: float,
        cost_tol: float,
        max_passes: int,
        max_seconds: float,
        callback: Callable[[TracePoint], None] | None,
    ) -> None:
        self._problem = problem
        self._tol = tol
        self._cost_tol = cost_tol
        self._max_passes = max_passes
        self._max_seconds = max_seconds
        self._callback = callback
        self._began = time.perf_counter()
        self._costs: list[Tensor] = []
        self._norms = torch.zeros(problem.k, dtype=torch.float64, device="cpu")
        self._rejections = 0
        self._seen: Evaluation | None = None
        self._defined: Tensor = torch.ones(problem.k, dtype=torch.bool, device="cpu")
        self._batch = torch.arange(problem.k, device="cpu")
        self._whole: Point = None
        self._point: Point = None
        self._going_on: Tensor = torch.ones(problem.k, dtype=torch.bool, device="cpu")
        self.trace: list[TracePoint] = []
        self.status: list[Status | None] = [None] * problem.k

    @property
    def seconds(self) -> float:
        """Wall time since the solve began."""
        return time.perf_counter() - self._began

    @property
    def active(self) -> Tensor:
        """Which modules of the batch are still being solved."""
        return self._going_on[self._batch]

    @property
    def point(self) -> Point:
        """The last iterate, of all modules."""
        if self._batch.numel() < len(self.status):
            self._whole[self._batch.to(self._whole.device)] = self._point
            return self._whole
        return self._point

    def evaluate(self, point: Point) -> Evaluation:
        """A pass at a trial point. Ends the solve when the budget is spent, or when trial after trial is
        rejected.
        """
        if not self._problem.remembers(point):
            self._spend()
            if self._rejections >= MAX_REJECTIONS:
                self.finish(Status.STALLED)
            self._rejections += 1
        return self._problem.evaluate(point)

    def cost(self, point: Point) -> np.float64:
        """The cost an optimizer sees: of all modules that had one at the start."""
        cost = self.evaluate(point).cost
        return host(torch.where(self._defined[self._batch].to(cost.device), cost, 0.0).sum())

    def gradient(self, point: Point) -> Point:
        """The gradient an optimizer sees: zero in frozen modules. Each new point here is an accepted
        iterate.
        """
        self.accept(point, self._problem.evaluate(point))
        # Which may have been computed again.
        return self.masked(point, self._problem.evaluate(point).gradient)

    def hessian(self, point: Point, vector: Point) -> Point:
        """The Hessian-vector product an optimizer sees: zero in frozen modules."""
        self.narrow()
        self._spend()
        return self.masked(point, self._problem.hessian(point, vector))

    def preconditioned(self, point: Point, vector: Point) -> Point:
        """The inverse of a model of the Hessian that an optimizer sees."""
        evaluation = self._problem.evaluate(point)
        return self._problem.form.precondition(point, vector, evaluation)

    def masked(self, point: Point, vector: Point) -> Point:
        """Set a tangent vector to zero in frozen modules."""
        active = self.active
        if bool(active.all()):
            return vector
        zero = self._problem.form.manifold.zero_vector(point)
        return self._problem.form.choose(active.to(_device(vector)), vector, zero)

    def accept(self, point: Point, evaluation: Evaluation) -> None:
        """Record an iterate, freezes the modules that it finishes, and ends the solve when none is left."""
        if evaluation is self._seen:
            return
        self._seen = evaluation
        self._rejections = 0
        numbers = self._numbers(evaluation)
        refined = self._refined(evaluation, *numbers)
        if refined is not None:
            evaluation = self._seen = self._problem.evaluate_again(point, refined)
            numbers = self._numbers(evaluation)
        self._problem.form.accept(evaluation)
        defined = torch.isfinite(numbers[0])
        # The tensor itself where it is whole: the problem remembers it.
        whole = self._point is None or bool(defined.all())
        self._point = (
            point
            if whole
            else self._problem.form.choose(defined.to(evaluation.cost.device), point, self._point)
        )
        first = not self._costs
        if first:
            cost, norms = numbers
        else:
            # What is finished stays as it was found, though the batch has it in another precision.
            places = self._batch[self.active]
            cost, norms = (
                old.index_copy(0, places, new[self.active])
                for old, new in zip((self._costs[-1], self._norms), numbers, strict=True)
            )
        self._norms = norms
        if first:
            self._defined = defined
        self._costs.append(cost)
        self._freeze(~torch.isfinite(cost), Status.UNDEFINED if first else Status.STALLED)
        self._freeze(norms <= self._tol * (2 * cost).clamp_min(0).sqrt().clamp_min(1), Status.CONVERGED)
        if self._cost_tol > 0 and len(self._costs) > WINDOW:
            decrease = self._costs[-1 - WINDOW] - cost
            # A module that waits for a better direction has not moved, and is not flat.
            moved = self._costs[-2] != cost
            self._freeze(moved & (decrease <= self._cost_tol * cost.abs()), Status.FLAT)
        active = int(self._going_on.sum())
        self.trace.append(
            TracePoint(self._problem.passes, self.seconds, host_array(cost), host_array(norms), active)
        )
        if self._callback is not None:
            self._callback(self.trace[-1])
        if active == 0:
            raise Stop
        self._spend()

    @staticmethod
    def _numbers(evaluation: Evaluation) -> Tensor:
        """Cost and gradient norm of every module of the batch, on the host: one wait for the device."""
        return torch.stack((evaluation.cost, evaluation.norms)).cpu()

    def _refined(self, evaluation: Evaluation, cost: Tensor, norms: Tensor) -> Tensor | None:
        """End single precision in modules for which it is not enough; return those, on the device, if any.

        A step is judged by costs of one precision. Those of single precision are 1e-5 too high, so that a
        cost looks flat the later for it, never the earlier.
        """
        coarse = self._problem.form.coarse
        if coarse is None or evaluation.coarse is None:
            return None
        enough = (norms.square() >= _COARSE * cost) & (norms >= _COARSE_NORM)
        refined = coarse & self.active & ~enough & torch.isfinite(cost)
        self._problem.form.coarse = coarse & ~refined
        return torch.nonzero(refined).squeeze(-1).to(evaluation.cost.device) if refined.any() else None

    def narrow(self) -> None:
        """Let finished modules leave the batch, once they are many enough to pay for it.

        Raises:
            Narrow: With those that go on; the optimizer is to be started anew at `resume`.
        """
        active = self.active
        if self._problem.divisible and int(active.sum()) <= _GOING_ON * active.numel():
            raise Narrow(torch.nonzero(active).squeeze(-1))

    def resume(self, modules: Tensor) -> Point:
        """Narrow the batch and the problem to these modules of it; return the iterate to go on from."""
        self._whole = self.point.clone()
        self._batch = self._batch[modules]
        modules = modules.to(self._point.device)
        self._problem.narrow(modules)
        self._point = self._point[modules]
        assert self._seen is not None
        self._problem.memorise(self._point, self._seen.narrowed(modules))
        self._seen = self._problem.evaluate(self._point)
        return self._point

    def _spend(self) -> None:
        """End the solve when the budget is spent."""
        if self._problem.passes >= self._max_passes or self.seconds >= self._max_seconds:
            self.finish(Status.BUDGET)

    def stall(self, mask: Tensor) -> None:
        """Freeze modules of the batch in which a line search found no step."""
        whole = torch.zeros_like(self._going_on)
        whole[self._batch] = mask.cpu()
        self._freeze(whole, Status.STALLED)

    def _freeze(self, mask: Tensor, status: Status) -> None:
        for index in torch.nonzero(mask & self._going_on).squeeze(-1).tolist():
            self.status[index] = status
        self._going_on = self._going_on & ~mask

    def finish(self, status: Status) -> None:
        """Give what is still active this status, and ends the solve."""
        self._freeze(torch.ones_like(self._going_on), status)
        raise Stop


def _device(vector: Point) -> torch.device:
    return vector.device if isinstance(vector, Tensor) else torch.device("cpu")
