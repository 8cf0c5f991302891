"""What a solver is: a value with a name, its options, and when it stops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pymanopt.optimizers.optimizer import Optimizer
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.frechet.solvers.monitor import Narrow
from riemerge.frechet.status import Status

if TYPE_CHECKING:
    from riemerge.frechet.formulation import Point
    from riemerge.frechet.search import Search
    from riemerge.frechet.solvers.monitor import Monitor


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """How a Fréchet mean is found, and when the search for it ends. Abstract; solvers are frozen values.

    Attributes:
        tol: Converged where ‖gradient‖ <= tol * max(1, √(2 F)).
        cost_tol: Flat where a few iterates lower F by at most this share; 0 to switch off.
        max_passes: Budget of passes over all logarithms; those at the start may exceed it.
        max_seconds: Budget of wall time in seconds; none by default. Results that ran out of it are not
            reproducible.

    Raises:
        RecipeError: A tolerance or a budget that is none.
    """

    tol: float = 1e-8
    cost_tol: float = 0.0
    max_passes: int = 1000
    max_seconds: float | None = None

    coarse: ClassVar[bool] = False
    """Whether passes may be of single precision. Most solvers need more of a cost than that it falls: its
    minimum along a direction, for whose noise conjugate gradients take half as many passes more, or the ratio
    to what a model promised."""

    def __post_init__(self) -> None:
        for name, value in (("tol", self.tol), ("cost_tol", self.cost_tol)):
            if not (np.isfinite(value) and value >= 0):
                raise RecipeError(f"{name} is {value}; expected a finite number >= 0")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise RecipeError(f"max_seconds is {self.max_seconds}; expected a positive number")
        if self.max_passes < 1:
            raise RecipeError(f"max_passes is {self.max_passes}; at least 1 is needed")

    @abstractmethod
    def make_optimizer(self, search: Search, monitor: Monitor) -> Optimizer:
        """Return a Pymanopt optimizer for a search, whose only rules of stopping are the monitor's."""

    def options(self, search: Search, monitor: Monitor) -> dict[str, Any]:
        """Return what the optimizer's `run` is told beside the problem and the start."""
        return {}

    def narrow(self, optimizer: Optimizer, search: Search, monitor: Monitor, modules: Tensor) -> Optimizer:
        """Return the optimizer that goes on when only some modules of the batch are left."""
        return self.make_optimizer(search, monitor)

    def prepare(self, search: Search) -> None:
        """Let passes be of single precision where the solver bears their noise."""
        if self.coarse and search.form.coarse is not None:
            search.form.coarse.fill_(True)

    def run(self, search: Search, monitor: Monitor, start: Point) -> None:
        """Run an unmodified optimizer until the monitor, or a rule of its own, ends it; anew on those modules
        that are left whenever enough have left.
        """
        optimizer = self.make_optimizer(search, monitor)
        while True:
            monitor.manifold = search.form.manifold
            options = self.options(search, monitor)
            try:
                # Pymanopt's conjugate gradients divide zero by zero after a step of zero, and restart.
                with np.errstate(divide="ignore", invalid="ignore"):
                    result = optimizer.run(monitor, initial_point=start, **options)
                monitor.accept(result.point, search.evaluate(result.point))
                monitor.finish(Status.STOPPED)
            except Narrow as narrow:
                start = monitor.resume(narrow.modules)
                optimizer = self.narrow(optimizer, search, monitor, narrow.modules)
