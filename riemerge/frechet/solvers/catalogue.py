"""The solvers of this package, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, final

import numpy as np
from pymanopt import optimizers
from pymanopt.manifolds.manifold import Manifold
from pymanopt.optimizers.optimizer import Optimizer
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.frechet.formulation import Point
from riemerge.frechet.search import Search
from riemerge.frechet.solvers import fixed_point, lbfgs
from riemerge.frechet.solvers.line_search import ModulewiseLineSearcher
from riemerge.frechet.solvers.monitor import ENDLESS, Monitor
from riemerge.frechet.solvers.solver import Solver
from riemerge.registry import Registry

# Inner iterations of the trust-region subproblem; each costs two passes.
_MAX_INNER = 30
# Longest first step of methods that do not know the curvature along their direction.
_LONGEST = 4.0


@final
@dataclass(frozen=True, kw_only=True)
class LBFGS(Solver):
    """Limited-memory BFGS with a step and a Hessian per module: see `lbfgs.LBFGSOptimizer`.

    Attributes:
        memory: How many pairs of steps and changes are kept.
    """

    memory: int = 20
    coarse: ClassVar[bool] = True

    def make_optimizer(self, search: Search, monitor: Monitor) -> Optimizer:
        """Return the optimizer, with steps per module."""
        searcher = ModulewiseLineSearcher(search, monitor)
        return lbfgs.LBFGSOptimizer(memory=self.memory, line_searcher=searcher, rescale=False, **ENDLESS)

    def narrow(self, optimizer: Optimizer, search: Search, monitor: Monitor, modules: Tensor) -> Optimizer:
        """Go on with what is known of the modules that are left."""
        optimizer.narrow(modules, search.form.manifold)
        return optimizer


@final
@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(Solver):
    """Pymanopt's conjugate gradients, preconditioned, with steps per module.

    Attributes:
        beta: Rule for the share of the last direction, one of Pymanopt's.
    """

    beta: Literal["FletcherReeves", "PolakRibiere", "HestenesStiefel", "HagerZhang", "LiuStorey"] = (
        "HestenesStiefel"
    )

    def make_optimizer(self, search: Search, monitor: Monitor) -> Optimizer:
        """Return the optimizer, with steps per module."""
        searcher = ModulewiseLineSearcher(search, monitor, longest=_LONGEST)
        return optimizers.ConjugateGradient(beta_rule=self.beta, line_searcher=searcher, **ENDLESS)


@final
@dataclass(frozen=True, kw_only=True)
class SteepestDescent(Solver):
    """Pymanopt's steepest descent with steps per module."""

    def make_optimizer(self, search: Search, monitor: Monitor) -> Optimizer:
        """Return the optimizer, with steps per module."""
        searcher = ModulewiseLineSearcher(search, monitor, longest=_LONGEST)
        return optimizers.SteepestDescent(line_searcher=searcher, **ENDLESS)


@final
@dataclass(frozen=True, kw_only=True)
class TrustRegions(Solver):
    """Pymanopt's trust regions, preconditioned, by finite differences, with steps per module."""

    def make_optimizer(self, search: Search, monitor: Monitor) -> Optimizer:
        """Return the optimizer."""
        return optimizers.TrustRegions(**ENDLESS)

    def options(self, search: Search, monitor: Monitor) -> dict[str, Any]:
        """Return radii of the stack's size, and let the retraction shorten the step of each module."""
        searcher = ModulewiseLineSearcher(search, monitor, freeze=False)
        monitor.manifold = _Stepped(search.form.manifold, searcher)
        # mininner=0: where one inner step solves the model exactly, a forced second one divides zero by zero.
        radius = float(np.pi * np.sqrt(search.k))
        return {"mininner": 0, "maxinner": _MAX_INNER, "Delta_bar": radius, "Delta0": radius / 8}


@final
@dataclass(frozen=True, kw_only=True)
class FixedPoint(Solver):
    """GeoMerge's iteration: unit steps, no line search."""

    def make_optimizer(self, search: Search, monitor: Monitor) -> Optimizer:
        """Return the optimizer."""
        return fixed_point.FixedPointOptimizer(**ENDLESS)


@final
@dataclass(frozen=True, kw_only=True)
class Guest(Solver):
    """A Pymanopt optimizer as it is, with its own line search and its own rules of stopping beside ours.

    Attributes:
        optimizer: The optimizer.

    Raises:
        RecipeError: An optimizer that asks for no gradient.
    """

    optimizer: Optimizer = field(default_factory=optimizers.SteepestDescent)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.optimizer, optimizers.NelderMead | optimizers.ParticleSwarm):
            raise RecipeError(
                f"solver is {self.optimizer}, which asks for no gradient and starts from a population: use "
                f"one of {', '.join(SOLVERS)}, or another of Pymanopt's optimizers"
            )

    def make_optimizer(self, search: Search, monitor: Monitor) -> Optimizer:
        """Return the optimizer itself."""
        return self.optimizer

    def narrow(self, optimizer: Optimizer, search: Search, monitor: Monitor, modules: Tensor) -> Optimizer:
        """Go on with what is known of the modules that are left, where the optimizer can."""
        if isinstance(optimizer, lbfgs.LBFGSOptimizer):
            optimizer.narrow(modules, search.form.manifold)
        return optimizer


SOLVERS: Registry[Solver] = Registry(
    "solver",
    {
        "lbfgs": LBFGS,
        "conjugate_gradient": ConjugateGradient,
        "steepest_descent": SteepestDescent,
        "trust_regions": TrustRegions,
        "fixed_point": FixedPoint,
    },
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


@final
class _Stepped:
    """A manifold whose retraction shortens the step of each module until its cost decreases.

    Trust regions accept or reject the step of a whole stack; in this way a module in which the model is poor
    does not hold up the others.
    """

    def __init__(self, manifold: Manifold, searcher: ModulewiseLineSearcher) -> None:
        self._manifold = manifold
        self._searcher = searcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manifold, name)

    def retraction(self, point: Point, tangent_vector: Point) -> Point:
        """Move along a tangent vector, in each module as far as its cost allows."""
        return self._searcher.search(None, self._manifold, point, tangent_vector, 0.0, 0.0)[1]
