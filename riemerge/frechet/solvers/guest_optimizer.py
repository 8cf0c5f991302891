"""Pymanopt's optimizers, unmodified, as solvers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from pymanopt import optimizers
from pymanopt.optimizers.optimizer import Optimizer

from riemerge.frechet.formulation import Point
from riemerge.frechet.solvers.solver import Solver, option
from riemerge.frechet.solvers.watch import Watch
from riemerge.frechet.status import Status
from riemerge.manifolds.base import host

ENDLESS: dict[str, Any] = {
    "max_iterations": sys.maxsize,
    "max_time": float("inf"),
    "min_gradient_norm": 0.0,
    "min_step_size": -1.0,
    "verbosity": 0,
}
"""Options of an optimizer without a stopping rule of its own: the watch stops it. (Not infinitely many
iterations: Pymanopt takes their log10.)"""

MAX_REJECTIONS = 40
"""Rejected trials in a row after which an optimizer is taken to be stuck."""


@final
@dataclass(frozen=True, kw_only=True)
class Guest(Solver):
    """A Pymanopt optimizer as it is, with its own line search and its own rules of stopping beside ours.

    Attributes:
        optimizer: The optimizer.

    Raises:
        RecipeError: An optimizer that asks for no gradient.
    """

    optimizer: Optimizer = option(  # noqa: RUF009
        optimizers.SteepestDescent(**ENDLESS),
        lambda value: not isinstance(value, optimizers.NelderMead | optimizers.ParticleSwarm),
        "another one: it starts from a population and asks for no gradient",
    )

    def run(self, watch: Watch, start: Point) -> None:
        """Run the optimizer until the watch, or a rule of its own, ends it."""
        # Before the optimizer: started at a minimum, Pymanopt's divide zero by zero.
        if not watch.accept(start):
            return
        view = _View(watch, start)
        try:
            # Pymanopt's conjugate gradients divide zero by zero after a step of zero, and restart.
            with np.errstate(divide="ignore", invalid="ignore"):
                result = self.optimizer.run(view, initial_point=start)
            view.riemannian_gradient(result.point)
            watch.finish(Status.STOPPED)
        except Stop:
            pass


class Stop(Exception):  # noqa: N818 - not an error: the way out of an unmodified optimizer
    """Raised inside an optimizer's callback to end it; the watch holds the point."""


@final
class _View:
    """A problem as Pymanopt's optimizers ask of one, which ends them from outside.

    They ask for the gradient at every iterate that they accept, and there alone: so a watch sees those
    without a change of the optimizer. Pymanopt's optimizers stop on the norm of the whole stack, do not count
    evaluations, and report success on NaN.

    Not a `pymanopt.Problem`, which takes tuple points apart and hands gradients back as plain lists (Pymanopt
    issue 254), so that no optimizer runs on a product manifold with a Riemannian gradient.
    """

    def __init__(self, watch: Watch, start: Point) -> None:
        self.manifold = watch.form.manifold
        self.preconditioner = watch.precondition
        self._watch = watch
        self._last = start
        self._defined = watch.active
        self._rejections = 0

    def cost(self, point: Point) -> np.float64:
        """Return the cost of all modules that had one at the start."""
        if not self._watch.remembers(point):
            self._rejections += 1
            if self._watch.spent or self._rejections > MAX_REJECTIONS:
                self._watch.finish(Status.STALLED)
                raise Stop
        cost = self._watch.evaluate(point).cost
        return host(cost.where(self._defined.to(cost.device), 0.0).sum())

    def riemannian_gradient(self, point: Point) -> Point:
        """Return the gradient, zero in frozen modules."""
        if point is not self._last:
            self._rejections, self._last = 0, point
            if not self._watch.accept(point):
                raise Stop
        return self._watch.gradient(point)

    def riemannian_hessian(self, point: Point, vector: Point) -> Point:
        """Return the Hessian-vector product, zero in frozen modules."""
        if self._watch.spent:
            self._watch.finish(Status.BUDGET)
            raise Stop
        return self._watch.hessian(point, vector)
