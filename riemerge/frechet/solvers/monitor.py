"""The watch of a solve from outside the optimizer: it counts, freezes finished modules, and ends it."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, final

import numpy as np
import torch
from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

from riemerge.frechet.formulation import Evaluation, Point
from riemerge.frechet.search import Search
from riemerge.frechet.solution import TracePoint
from riemerge.frechet.status import Status
from riemerge.manifolds.base import host, host_array

if TYPE_CHECKING:
    from riemerge.frechet.solvers.solver import Solver

ENDLESS: dict[str, Any] = {
    "max_iterations": sys.maxsize,
    "max_time": float("inf"),
    "min_gradient_norm": 0.0,
    "min_step_size": -1.0,
    "verbosity": 0,
}
"""Options of an optimizer without a stopping rule of its own: its watch stops it. (Not infinitely many
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
        modules: Indices of the modules of the batch that go on.
    """

    def __init__(self, modules: Tensor) -> None:
        super().__init__()
        self.modules = modules


class Watch(ABC):
    """What Pymanopt's optimizers ask of a problem, and what ends them from outside: `Stop`. Abstract; a watch
    adds `cost`, `riemannian_gradient`, `riemannian_hessian` and `preconditioner`, as they name them.

    Optimizers ask for the gradient at every iterate that they accept, and there alone: so a watch sees those
    without a change of the optimizer.

    Not a `pymanopt.Problem`, which takes tuple points apart and hands gradients back as plain lists (Pymanopt
    issue 254), so that no optimizer runs on a product manifold with a Riemannian gradient.

    Args:
        manifold: The manifold on which the optimizer moves.
        cost_tol: Flat is where a few iterates lower F by at most this share; 0 for never.
        max_passes: Budget of passes.
        max_seconds: Budget of wall time; none by default.
    """

    def __init__(
        self, manifold: Manifold, cost_tol: float, max_passes: int, max_seconds: float = float("inf")
    ) -> None:
        self.manifold = manifold
        self._cost_tol = cost_tol
        self._max_passes = max_passes
        self._max_seconds = max_seconds
        self._began = time.perf_counter()
        self._costs: list[Tensor] = []
        self._rejections = 0

    @property
    @abstractmethod
    def passes(self) -> int:
        """Number of passes so far."""

    @abstractmethod
    def finish(self, status: Status) -> NoReturn:
        """Give what is still being solved this status, and end the solve."""

    @property
    def seconds(self) -> float:
        """Wall time since the solve began, in seconds."""
        return time.perf_counter() - self._began

    @final
    def _spend(self) -> None:
        """End the solve when the budget is spent."""
        if self.passes >= self._max_passes or self.seconds >= self._max_seconds:
            self.finish(Status.BUDGET)

    @final
    def _count_trial(self) -> None:
        """End the solve when trial after trial was rejected."""
        self._rejections += 1
        if self._rejections > MAX_REJECTIONS:
            self.finish(Status.STALLED)

    @final
    def _find_flat(self, cost: Tensor) -> Tensor:
        """Return where the newest cost is flat, boolean in its shape."""
        if not (self._cost_tol > 0 and len(self._costs) > WINDOW):
            return torch.zeros_like(cost, dtype=torch.bool)
        return self._costs[-1 - WINDOW] - cost <= self._cost_tol * cost.abs()


@final
class Monitor(Watch):
    """Watches every accepted iterate of an unmodified optimizer, module by module.

    Pymanopt's optimizers stop on the norm of the whole stack, do not count evaluations, and report success on
    NaN. So they are given no stopping rule: this decides per module, and raises `Stop` when none is left.
    Everything public is of all K modules; the problem and the optimizer see the batch, those that are left.

    Args:
        problem: The problem that is solved.
        solver: The solver, whose tolerances and budgets say when a module is converged, is flat, or runs out.
        callback: Called with each accepted iterate.
    """

    def __init__(
        self, problem: Search, solver: Solver, callback: Callable[[TracePoint], None] | None = None
    ) -> None:
        seconds = solver.max_seconds or float("inf")
        super().__init__(problem.form.manifold, solver.cost_tol, solver.max_passes, seconds)
        self._problem = problem
        self._tol = solver.tol
        self._callback = callback
        self._norms = torch.zeros(problem.k, dtype=torch.float64, device="cpu")
        self._last: Evaluation | None = None
        self._defined: Tensor = torch.ones(problem.k, dtype=torch.bool, device="cpu")
        self._batch = torch.arange(problem.k, device="cpu")
        self._whole: Point = None
        self._point: Point = None
        self._unfinished: Tensor = torch.ones(problem.k, dtype=torch.bool, device="cpu")
        self.trace: list[TracePoint] = []
        self.status: list[Status | None] = [None] * problem.k

    @property
    def passes(self) -> int:
        """Number of passes so far, those of the start included."""
        return self._problem.passes

    @property
    def active(self) -> Tensor:
        """Whether each module of the batch is still being solved."""
        return self._unfinished[self._batch]

    @property
    def point(self) -> Point:
        """The last iterate, of all modules."""
        if self._batch.numel() < len(self.status):
            self._whole[self._batch.to(self._whole.device)] = self._point
            return self._whole
        return self._point

    def evaluate(self, point: Point) -> Evaluation:
        """Compute a pass at a trial point. End the solve when the budget is spent, or when trial after trial
        is rejected.
        """
        if not self._problem.remembers(point):
            self._spend()
            self._count_trial()
        return self._problem.evaluate(point)

    def cost(self, point: Point) -> np.float64:
        """Return the cost of all modules that had one at the start."""
        cost = self.evaluate(point).cost
        return host(torch.where(self._defined[self._batch].to(cost.device), cost, 0.0).sum())

    def riemannian_gradient(self, point: Point) -> Point:
        """Return the gradient, zero in frozen modules."""
        self.accept(point, self._problem.evaluate(point))
        # `accept` may have evaluated this point again, in double precision.
        return self.mask_frozen(point, self._problem.evaluate(point).gradient)

    def riemannian_hessian(self, point: Point, vector: Point) -> Point:
        """Return the Hessian-vector product, zero in frozen modules."""
        self.narrow()
        self._spend()
        return self.mask_frozen(point, self._problem.hessian(point, vector))

    def preconditioner(self, point: Point, vector: Point) -> Point:
        """Apply the formulation's preconditioner."""
        evaluation = self._problem.evaluate(point)
        return self._problem.form.precondition(point, vector, evaluation)

    def mask_frozen(self, point: Point, vector: Point) -> Point:
        """Set a tangent vector to zero in frozen modules."""
        active = self.active
        if bool(active.all()):
            return vector
        zero = self._problem.form.manifold.zero_vector(point)
        return self._problem.form.choose(active.to(getattr(vector, "device", "cpu")), vector, zero)

    def accept(self, point: Point, evaluation: Evaluation) -> None:
        """Record an iterate, freeze the modules that it finishes, and end the solve when none is left."""
        if evaluation is self._last:
            return
        self._rejections = 0
        evaluation, (cost, norms) = self._refine(point, evaluation)
        self._last = evaluation
        self._problem.form.accept(evaluation)
        defined = torch.isfinite(cost)
        if self._point is not None and not bool(defined.all()):
            # Otherwise the tensor itself: the problem remembers it.
            point = self._problem.form.choose(defined.to(evaluation.cost.device), point, self._point)
        self._point = point
        if not self._costs:
            self._defined = defined
            self._costs.append(cost)
            self._freeze(~defined, Status.UNDEFINED)
        else:
            # A finished module stays as it was, though the batch has it in another precision.
            before, indices = self._costs[-1], self._batch[self.active]
            cost = before.index_copy(0, indices, cost[self.active])
            norms = self._norms.index_copy(0, indices, norms[self.active])
            self._costs.append(cost)
            self._freeze(~torch.isfinite(cost), Status.STALLED)
        self._norms = norms
        self._freeze(norms <= self._tol * (2 * cost).clamp_min(0).sqrt().clamp_min(1), Status.CONVERGED)
        # A module that waits for a better direction has not moved, and is not flat.
        self._freeze(self._find_flat(cost) & (self._costs[-2:][0] != cost), Status.FLAT)
        active = int(self._unfinished.sum())
        self.trace.append(TracePoint(self.passes, self.seconds, host_array(cost), host_array(norms), active))
        if self._callback is not None:
            self._callback(self.trace[-1])
        if active == 0:
            raise Stop
        self._spend()

    def _refine(self, point: Point, evaluation: Evaluation) -> tuple[Evaluation, Tensor]:
        """End single precision in modules for which it is not enough, and evaluate those again.

        A step is judged by costs of one precision. Those of single precision are 1e-5 too high, so that a
        cost looks flat the later for it, never the earlier.

        Returns:
            The evaluation, and cost and gradient norm of every module of the batch, on the host.
        """
        numbers = _fetch_numbers(evaluation)
        coarse = self._problem.form.coarse
        if coarse is None or evaluation.coarse is None:
            return evaluation, numbers
        cost, norms = numbers
        enough = (norms.square() >= _COARSE * cost) & (norms >= _COARSE_NORM)
        refined = coarse & self.active & ~enough & torch.isfinite(cost)
        if not bool(refined.any()):
            return evaluation, numbers
        self._problem.form.coarse = coarse & ~refined
        modules = torch.nonzero(refined).squeeze(-1).to(evaluation.cost.device)
        evaluation = self._problem.evaluate_again(point, modules)
        return evaluation, _fetch_numbers(evaluation)

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
        assert self._last is not None
        self._last = self._last.narrow(modules)
        self._problem.remember(self._point, self._last)
        return self._point

    def stall(self, mask: Tensor) -> None:
        """Freeze modules of the batch in which a line search found no step."""
        whole = torch.zeros_like(self._unfinished)
        whole[self._batch] = mask.cpu()
        self._freeze(whole, Status.STALLED)

    def _freeze(self, mask: Tensor, status: Status) -> None:
        for index in torch.nonzero(mask & self._unfinished).squeeze(-1).tolist():
            self.status[index] = status
        self._unfinished = self._unfinished & ~mask

    def finish(self, status: Status) -> NoReturn:
        """Give the modules that are still active this status, and end the solve."""
        self._freeze(torch.ones_like(self._unfinished), status)
        raise Stop


def _fetch_numbers(evaluation: Evaluation) -> Tensor:
    """Return cost and gradient norm of every module on the host (2, K): one wait for the device."""
    return torch.stack((evaluation.cost, evaluation.norms)).cpu()
