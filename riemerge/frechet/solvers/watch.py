"""The watch of a solve: it says what a solver asks, counts passes, and ends the solve module by module."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from riemerge.frechet.formulation import Evaluation, Formulation, Point
from riemerge.frechet.search import Search
from riemerge.frechet.solution import TracePoint
from riemerge.frechet.status import Status
from riemerge.manifolds.base import host_array

if TYPE_CHECKING:
    from riemerge.frechet.solvers.solver import Solver

WINDOW = 5
"""A cost is flat when this many accepted iterates together lowered it by less than cost_tol."""

# Single precision is enough while the squared gradient is above this share of F, and the gradient above this:
# the decrease of F that a step promises is then thirty times its noise (3e-8 F, measured).
_COARSE, _COARSE_NORM = 1e-6, 1e-3

# Finished modules leave the batch when no more than this share of it goes on.
_GOING_ON = 0.85


@final
class Watch:
    """What a solver asks of a problem, and what ends it.

    A solver moves a stack of modules, each a problem by itself: steps and inner products are one number for
    each module, (K,). Every iterate goes through `accept`, which freezes the modules that it finishes, and
    says when none is left. Frozen modules have gradients and steps of zero.

    Args:
        search: The problem that is solved.
        solver: The solver, whose tolerances and budgets say when a module is converged, is flat, or runs out.
        callback: Called with each accepted iterate.
        began: When the solve began, by `time.perf_counter` [default: now].
    """

    def __init__(
        self,
        search: Search,
        solver: Solver,
        callback: Callable[[TracePoint], None] | None = None,
        began: float | None = None,
    ) -> None:
        self._search = search
        self._solver = solver
        self._callback = callback
        self._began = began or time.perf_counter()
        self._costs: list[Tensor] = []
        self._norms = torch.zeros(search.k, dtype=torch.float64, device="cpu")
        self._last: Evaluation | None = None
        self._batch = torch.arange(search.k, device="cpu")
        self._whole: Point = None
        self._point: Point = None
        self._unfinished = torch.ones(search.k, dtype=torch.bool, device="cpu")
        self._waiting = torch.zeros_like(self._unfinished)
        self.trace: list[TracePoint] = []
        self.status: list[Status | None] = [None] * search.k
        if solver.coarse and search.form.coarse is not None:
            search.form.coarse.fill_(True)

    @property
    def passes(self) -> int:
        """Number of passes so far, those of the start included."""
        return self._search.passes

    @property
    def seconds(self) -> float:
        """Wall time since the solve began, in seconds."""
        return time.perf_counter() - self._began

    @property
    def spent(self) -> bool:
        """Whether the budget is spent: then no further trial point is to be evaluated."""
        limit = self._solver.max_seconds or float("inf")
        return self.passes >= self._solver.max_passes or self.seconds >= limit

    @property
    def form(self) -> Formulation:
        """What is known of the cost and the manifold, for the modules of the batch."""
        return self._search.form

    @property
    def active(self) -> Tensor:
        """Whether each module of the batch is still being solved, on the host."""
        return self._unfinished[self._batch]

    @property
    def point(self) -> Point:
        """The last iterate, of all modules."""
        if self._batch.numel() < len(self.status):
            self._whole[self._batch.to(self._whole.device)] = self._point
            return self._whole
        return self._point

    def remembers(self, point: Point) -> bool:
        """Tell whether evaluating a point is free."""
        return self._search.remembers(point)

    def evaluate(self, point: Point) -> Evaluation:
        """Return cost and gradient at any point: a pass, unless it is one of the last two."""
        return self._search.evaluate(point)

    def gradient(self, point: Point) -> Point:
        """Return the gradient, zero in frozen modules."""
        return self.mask_frozen(point, self.evaluate(point).gradient)

    def precondition(self, point: Point, vector: Point) -> Point:
        """Apply the formulation's preconditioner, the inverse of a model of the Hessian."""
        return self.form.precondition(point, vector, self.evaluate(point))

    def hessian(self, point: Point, vector: Point) -> Point:
        """Return the Hessian along a tangent vector, zero in frozen modules: two passes."""
        return self.mask_frozen(point, self._search.hessian(point, vector))

    def inner_products(self, point: Point, a: Point, b: Point) -> Tensor:
        """Return the metric of two tangent vectors, (K,)."""
        return self.form.inner_products(point, a, b)

    def transport(self, point: Point, arrival: Point, vector: Point) -> Point:
        """Carry a tangent vector from a point to another one."""
        return self.form.manifold.transport(point, arrival, vector)

    def move(self, point: Point, step: Tensor | float, vector: Point) -> Point:
        """Return the point that a step, a number or (K,), along a tangent vector leads to; frozen modules
        stay.
        """
        vector = self.mask_frozen(point, vector)
        active = self.active.to(getattr(vector, "device", "cpu"))
        return self.form.move(point, step * active.double(), vector)

    def choose(self, mask: Tensor, a: Point, b: Point) -> Point:
        """Return the point that is a in some modules (K,) and b in the others: no pass, as both are known."""
        if bool(mask.all()):
            return a
        if not bool(mask.any()):
            return b
        evaluation, modules = self.evaluate(b), torch.nonzero(mask).squeeze(-1)
        modules = modules.to(evaluation.cost.device)
        evaluation = evaluation.replace(modules, self.evaluate(a).narrow(modules))
        point = self.form.choose(mask.to(evaluation.cost.device), a, b)
        self._search.remember(point, evaluation)
        return point

    def mask_frozen(self, point: Point, vector: Point) -> Point:
        """Set a tangent vector to zero in frozen modules."""
        active = self.active
        if bool(active.all()):
            return vector
        zero = self.form.manifold.zero_vector(point)
        return self.form.choose(active.to(getattr(vector, "device", "cpu")), vector, zero)

    def accept(self, point: Point, *, exact: bool = False) -> bool:
        """Record an iterate, freeze the modules that it finishes, and tell whether any is left.

        An iterate that is the last one itself ends the solve: nothing else would.

        Args:
            point: The iterate.
            exact: Whether it is a closed form of the mean, with which every module is finished.
        """
        evaluation = self._search.evaluate(point)
        if evaluation is self._last:
            self.finish(Status.STALLED)
            return False
        evaluation, (cost, norms) = self._refine(point, evaluation)
        self._last = evaluation
        self.form.accept(evaluation)
        defined = torch.isfinite(cost)
        if self._point is not None and not bool(defined.all()):
            # Otherwise the tensor itself: the search remembers it.
            point = self.form.choose(defined.to(evaluation.cost.device), point, self._point)
        self._point = point
        if not self._costs:
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
        self._freeze(torch.full_like(self._unfinished, exact), Status.EXACT)
        tol = self._solver.tol
        self._freeze(norms <= tol * (2 * cost).clamp_min(0).sqrt().clamp_min(1), Status.CONVERGED)
        self._freeze(self._find_flat(cost) & ~self._waiting, Status.FLAT)
        self._waiting = torch.zeros_like(self._waiting)
        active = int(self._unfinished.sum())
        self.trace.append(TracePoint(self.passes, self.seconds, host_array(cost), host_array(norms), active))
        if self._callback is not None:
            self._callback(self.trace[-1])
        if self.spent:
            self.finish(Status.BUDGET)
        return bool(self._unfinished.any())

    def _find_flat(self, cost: Tensor) -> Tensor:
        """Return where the newest cost is flat, (K,)."""
        if not (self._solver.cost_tol > 0 and len(self._costs) > WINDOW):
            return torch.zeros_like(cost, dtype=torch.bool)
        return self._costs[-1 - WINDOW] - cost <= self._solver.cost_tol * cost.abs()

    def _refine(self, point: Point, evaluation: Evaluation) -> tuple[Evaluation, Tensor]:
        """End single precision in modules for which it is not enough, and evaluate those again.

        A step is judged by costs of one precision. Those of single precision are 1e-5 too high, so that a
        cost looks flat the later for it, never the earlier.

        Returns:
            The evaluation, and cost and gradient norm of every module of the batch, on the host.
        """
        numbers = _fetch_numbers(evaluation)
        coarse = self.form.coarse
        if coarse is None or evaluation.coarse is None:
            return evaluation, numbers
        cost, norms = numbers
        enough = (norms.square() >= _COARSE * cost) & (norms >= _COARSE_NORM)
        refined = coarse & self.active & ~enough & torch.isfinite(cost)
        if not bool(refined.any()):
            return evaluation, numbers
        self.form.coarse = coarse & ~refined
        modules = torch.nonzero(refined).squeeze(-1).to(evaluation.cost.device)
        evaluation = self._search.evaluate_again(point, modules)
        return evaluation, _fetch_numbers(evaluation)

    def narrow(self, point: Point, *kept: Any) -> tuple[Any, ...]:
        """Let finished modules leave the batch, once they are many enough to pay for it.

        Args:
            point: The last iterate.
            kept: What else the solver keeps of each module: tensors (K, ...), None, or objects with a method
                `narrow` that takes the indices of the modules that go on and the manifold that is theirs.

        Returns:
            The point and what is kept, of the modules that go on: all of them, or only those that are active.
        """
        active = self.active
        if not self._search.divisible or int(active.sum()) > _GOING_ON * active.numel():
            return point, *kept
        modules = torch.nonzero(active).squeeze(-1)
        self._whole = self.point.clone()
        self._batch = self._batch[modules]
        modules = modules.to(self._point.device)
        self._search.narrow(modules)
        self._point = self._point[modules]
        assert self._last is not None
        self._last = self._last.narrow(modules)
        self._search.remember(self._point, self._last)
        return self._point, *(_take(modules, self.form.manifold, value) for value in kept)

    def stall(self, mask: Tensor) -> None:
        """Freeze modules of the batch, (K,), in which a solver finds no step."""
        self._freeze(self._spread(mask), Status.STALLED)

    def wait(self, mask: Tensor) -> None:
        """Say which modules of the batch, (K,), stay where they are until a solver has a better step: their
        cost does not fall, and is not flat.
        """
        self._waiting = self._spread(mask)

    def _spread(self, mask: Tensor) -> Tensor:
        """Return what is said of the batch for all modules."""
        whole = torch.zeros_like(self._unfinished)
        whole[self._batch] = mask.cpu()
        return whole

    def _freeze(self, mask: Tensor, status: Status) -> None:
        for index in torch.nonzero(mask & self._unfinished).squeeze(-1).tolist():
            self.status[index] = status
        self._unfinished = self._unfinished & ~mask

    def finish(self, status: Status) -> None:
        """Give the modules that are still active this status, or that of a budget that is spent."""
        if self.spent:
            status = Status.BUDGET
        self._freeze(torch.ones_like(self._unfinished), status)


def _take(modules: Tensor, manifold: Any, value: Any) -> Any:
    """Return what is kept of some of the modules."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value[modules.to(value.device)]
    return value.narrow(modules, manifold)


def _fetch_numbers(evaluation: Evaluation) -> Tensor:
    """Return cost and gradient norm of every module on the host (2, K): one wait for the device."""
    return torch.stack((evaluation.cost, evaluation.norms)).cpu()
