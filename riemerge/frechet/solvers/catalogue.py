"""The solvers of this package, by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, final

from pymanopt.optimizers.optimizer import Optimizer

from riemerge.errors import RecipeError
from riemerge.frechet.batched import Geodesic
from riemerge.frechet.formulation import Point
from riemerge.frechet.loss import Square
from riemerge.frechet.solvers.conjugate_gradient import ConjugateGradient
from riemerge.frechet.solvers.guest_optimizer import ENDLESS, Guest
from riemerge.frechet.solvers.lbfgs import InverseHessian
from riemerge.frechet.solvers.line_search import LineSearch
from riemerge.frechet.solvers.solver import Solver, is_count, option
from riemerge.frechet.solvers.trust_regions import TrustRegions
from riemerge.frechet.solvers.watch import Watch
from riemerge.registry import Registry


@final
@dataclass(frozen=True, kw_only=True)
class LBFGS(Solver):
    """Limited-memory BFGS with a step and a Hessian per module: see `lbfgs.InverseHessian`.

    Attributes:
        memory: How many pairs of steps and changes are kept.

    Raises:
        RecipeError: A memory below one.
    """

    memory: int = option(20, is_count, "a whole number, at least 1")
    coarse: ClassVar[bool] = True

    def run(self, watch: Watch, start: Point) -> None:
        """Move along minus H grad."""
        x, search = start, LineSearch(watch)
        if not watch.accept(x):
            return
        manifold, gradient = watch.form.manifold, watch.gradient(x)
        inverse = InverseHessian(manifold, watch.precondition, x, gradient, memory=self.memory, rescale=False)
        while True:
            x, search, inverse = watch.narrow(x, search, inverse)
            arrival, step, direction = search.step(x, -inverse.apply(x))
            if not watch.accept(arrival):
                return
            inverse.advance(x, watch.form.scale(step, direction), arrival, watch.gradient(arrival))
            x = arrival


@final
@dataclass(frozen=True, kw_only=True)
class SteepestDescent(Solver):
    """Descent along the preconditioned gradient, with steps per module."""

    def run(self, watch: Watch, start: Point) -> None:
        """Move along minus the preconditioned gradient."""
        x, search = start, LineSearch(watch, flat=math.inf)
        while watch.accept(x):
            x, search = watch.narrow(x, search)
            x, _, _ = search.step(x, -watch.precondition(x, watch.gradient(x)))


@final
@dataclass(frozen=True, kw_only=True)
class FixedPoint(Solver):
    """GeoMerge's iteration, unit steps along the negative gradient without a line search: on the square loss
    x <- Exp_x(Σ wᵢ log_x yᵢ).

    Converges near the mean of nearby data, and may cycle on data far apart. Source: GeoMerge (2026), eq. 9
    with step one; Karcher 1977.
    """

    def run(self, watch: Watch, start: Point) -> None:
        """Move by minus the whole gradient."""
        x = start
        while watch.accept(x):
            (x,) = watch.narrow(x)
            x = watch.move(x, -1.0, watch.precondition(x, watch.gradient(x)))


@final
@dataclass(frozen=True, kw_only=True)
class ClosedForm(Solver):
    """The closed form of the mean, where the manifold states one (`closed_mean`), under the square loss and
    the manifold's own distance.

    Raises:
        RecipeError: A manifold, a loss or a distance without one, by `run`.
    """

    def run(self, watch: Watch, start: Point) -> None:
        """Take the closed form."""
        form = watch.form
        if not isinstance(form, Geodesic) or not isinstance(form.objective.loss, Square):
            raise RecipeError(
                f"solver closed_form: {form.manifold} under {form.objective.loss} has no closed mean, which "
                "takes one of our manifolds, the square loss and no other distance: use another solver"
            )
        mean = form.space.closed_mean(form.points, form.objective.weights)
        watch.accept(form.embed(mean), exact=True)


def _adapt(entry: Any) -> Callable[..., Solver]:
    """Return what builds a plug-in's solver: its class or function, or a builder of a guest."""
    if isinstance(entry, Optimizer) or (isinstance(entry, type) and issubclass(entry, Optimizer)):
        # Optimizers have a state.
        return lambda **options: as_solver(copy.deepcopy(entry), **options)
    if not callable(entry) or (isinstance(entry, type) and not issubclass(entry, Solver)):
        raise RecipeError(
            f"{entry!r} builds no solver; expected a subclass of riemerge.solvers.Solver, a function that "
            "returns one, or a Pymanopt optimizer or its class"
        )
    build: Callable[..., Solver] = entry
    return build


SOLVERS: Registry[Solver] = Registry(
    "solver",
    {
        "lbfgs": LBFGS,
        "conjugate_gradient": ConjugateGradient,
        "steepest_descent": SteepestDescent,
        "trust_regions": TrustRegions,
        "fixed_point": FixedPoint,
        "closed_form": ClosedForm,
    },
    _adapt,
)
"""The solvers by name, the default first."""

SolverLike: TypeAlias = Solver | str | Optimizer | type[Optimizer]


def as_solver(solver: SolverLike, **options: Any) -> Solver:
    """Return a solver given as itself, by name, or as one of Pymanopt's optimizers or its class.

    Args:
        solver: What is given.
        options: Options of a solver that is not given as itself, such as `tol`.
    """
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, str):
        return SOLVERS.make(solver, **options)
    if isinstance(solver, type) and issubclass(solver, Optimizer):
        solver = solver(**ENDLESS)
    if not isinstance(solver, Optimizer):
        raise RecipeError(f"solver is {solver!r}; known are {', '.join(SOLVERS)}, or a Pymanopt optimizer")
    return Guest(optimizer=solver, **options)
