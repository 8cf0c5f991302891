"""frechet_mean: one call from points to a mean with a certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import numpy as np
import torch
from pymanopt.manifolds.manifold import Manifold
from pymanopt.optimizers import ConjugateGradient, NelderMead, ParticleSwarm, SteepestDescent, TrustRegions
from pymanopt.optimizers.optimizer import Optimizer

from riemerge.errors import RecipeError
from riemerge.frechet.formulation import Point
from riemerge.frechet.problem import FrechetProblem
from riemerge.frechet.solution import Solution, TracePoint
from riemerge.frechet.solvers.fixed_point import FixedPoint
from riemerge.frechet.solvers.lbfgs import LBFGS
from riemerge.frechet.solvers.line_search import ModulewiseLineSearcher
from riemerge.frechet.solvers.monitor import ENDLESS, Monitor, Narrow, Stop
from riemerge.frechet.status import Status
from riemerge.linalg import single_threaded
from riemerge.manifolds.base import host_array

# Inner iterations of the trust-region subproblem; each costs two passes.
_MAX_INNER = 30

# Longest first step of methods that do not know the curvature along their direction.
_LONGEST = 4.0

SOLVERS: dict[str, str] = {
    "lbfgs": "limited-memory BFGS with a step and a Hessian per module",
    "conjugate_gradient": "Pymanopt's conjugate gradients, preconditioned, with steps per module",
    "steepest_descent": "Pymanopt's steepest descent with steps per module",
    "trust_regions": "Pymanopt's trust regions, preconditioned, by finite differences, with steps per module",
    "fixed_point": "GeoMerge's iteration: unit steps, no line search",
}
"""The solvers by name, the default first."""


# Solvers that may make passes of single precision. The others need more of a cost than that it falls:
# its minimum along a direction, for whose noise conjugate gradients take half as many passes more, or the
# ratio to what a model promised.
_SINGLE = ("lbfgs",)


def frechet_mean(
    manifold: Manifold,
    points: Sequence[Point],
    weights: Sequence[float] | np.ndarray | torch.Tensor | None = None,
    *,
    solver: str | Optimizer = "lbfgs",
    form: Literal["joint", "nested"] = "joint",
    gradient: Literal["analytic", "autograd"] = "analytic",
    reduce: bool = True,
    squared_dist: Callable[[Any, Any], Any] | None = None,
    initial_point: Point | None = None,
    tol: float = 1e-8,
    cost_tol: float = 0.0,
    max_passes: int = 1000,
    max_seconds: float | None = None,
    callback: Callable[[TracePoint], None] | None = None,
) -> Solution:
    """Find the weighted Fréchet mean of points on a manifold, module by module.

    Law: on a quotient the result does not depend on the representatives given. Deterministic: same input,
    same bits.

    Args:
        manifold: One of ours, or one of Pymanopt's with `log` and `dist` that obey their laws (without them,
            pass `squared_dist`).
        points: T points; on our manifolds tensors (K, ...).
        weights: T numbers or (T, K); equal by default; divided by their sum.
        solver: A name in `SOLVERS`, or any gradient-based Pymanopt optimizer (which then also stops by its
            own rules).
        form: `joint` or `nested`: see `FrechetProblem`.
        gradient: `analytic` or `autograd`: see `FrechetProblem`.
        reduce: Solve in the joint span of the data: see `FrechetProblem`.
        squared_dist: A user's own squared distance: see `FrechetProblem`.
        initial_point: Point of the manifold to start at; by default a cheap average of the points.
        tol: Converged where ‖gradient‖ <= tol * max(1, √(2 F)).
        cost_tol: Flat where a few iterates lower F by at most this share; 0 to switch off.
        max_passes: Budget of passes over all logarithms; those at the start may exceed it.
        max_seconds: Budget of wall time in seconds; none by default. Results that ran out of it are not
            reproducible.
        callback: Called with each accepted iterate.

    Returns:
        The mean and its certificate. Modules that did not converge say so in `status`; nothing is raised for
        them.

    Raises:
        RecipeError: Unknown solver, bad weights, bad tolerances, no points, what is no point of the manifold,
            a manifold that lacks what a mean needs.

    Example:
        >>> import numpy as np, pymanopt
        >>> sphere = pymanopt.manifolds.Sphere(3)
        >>> solution = frechet_mean(sphere, [np.eye(3)[0], np.eye(3)[1]], solver="steepest_descent")
        >>> solution.point.round(4)
        array([0.7071, 0.7071, 0.    ])
    """
    for name, value in (("tol", tol), ("cost_tol", cost_tol)):
        if not (np.isfinite(value) and value >= 0):
            raise RecipeError(f"{name} is {value}; expected a finite number >= 0")
    if max_seconds is None:
        max_seconds = np.inf
    if not max_seconds > 0:
        raise RecipeError(f"max_seconds is {max_seconds}; expected a positive number")
    if max_passes < 1:
        raise RecipeError(f"max_passes is {max_passes}; at least 1 is needed")
    if not isinstance(solver, Optimizer) and solver not in SOLVERS:
        raise RecipeError(f"solver is {solver!r}; known are {', '.join(SOLVERS)}, or a Pymanopt optimizer")
    if isinstance(solver, NelderMead | ParticleSwarm):
        raise RecipeError(
            f"solver is {solver}, which asks for no gradient and starts from a population: use one of "
            f"{', '.join(SOLVERS)}, or another of Pymanopt's optimizers"
        )
    with torch.no_grad(), single_threaded():
        problem = FrechetProblem(
            manifold,
            points,
            weights,
            form=form,
            gradient=gradient,
            reduce=reduce,
            squared_dist=squared_dist,
            initial_point=initial_point,
        )
        if solver in _SINGLE and problem.form.coarse is not None:
            problem.form.coarse.fill_(True)
        monitor = Monitor(
            problem,
            tol=tol,
            cost_tol=cost_tol,
            max_passes=max_passes,
            max_seconds=max_seconds,
            callback=callback,
        )
        start = problem.start()
        try:
            # Before the optimizer: started at a minimum, Pymanopt's divide zero by zero.
            monitor.accept(start, problem.evaluate(start))
            _run(solver, problem, monitor, start)
        except Stop:
            pass
        return _solution(problem, monitor, len(points))


def _run(solver: str | Optimizer, problem: FrechetProblem, monitor: Monitor, start: Point) -> None:
    """Run an unmodified optimizer until the monitor, or a rule of its own, ends it; anew on those modules
    that are left whenever enough have left.
    """
    optimizer = _make_optimizer(solver, problem, monitor)
    while True:
        monitor.manifold, options = problem.form.manifold, {}
        if solver == "trust_regions":
            searcher = ModulewiseLineSearcher(problem, monitor, freeze=False)
            monitor.manifold = _Stepped(problem.form.manifold, searcher)
            # mininner=0: where one inner step solves the model exactly, a forced second one divides zero by
            # zero.
            radius = float(np.pi * np.sqrt(problem.k))
            options = {"mininner": 0, "maxinner": _MAX_INNER, "Delta_bar": radius, "Delta0": radius / 8}
        try:
            # Pymanopt's conjugate gradients divide zero by zero after a step of zero, and restart.
            with np.errstate(divide="ignore", invalid="ignore"):
                result = optimizer.run(monitor, initial_point=start, **options)
            monitor.accept(result.point, problem.evaluate(result.point))
            monitor.finish(Status.STOPPED)
        except Narrow as narrow:
            start = monitor.resume(narrow.modules)
            if isinstance(optimizer, LBFGS):
                optimizer.narrow(narrow.modules, problem.form.manifold)
            else:
                optimizer = _make_optimizer(solver, problem, monitor)


def _make_optimizer(solver: str | Optimizer, problem: FrechetProblem, monitor: Monitor) -> Optimizer:
    if isinstance(solver, Optimizer):
        return solver
    if solver == "lbfgs":
        searcher = ModulewiseLineSearcher(problem, monitor)
        return LBFGS(line_searcher=searcher, rescale=False, **ENDLESS)
    if solver in ("trust_regions", "fixed_point"):
        return {"trust_regions": TrustRegions, "fixed_point": FixedPoint}[solver](**ENDLESS)
    searcher = ModulewiseLineSearcher(problem, monitor, longest=_LONGEST)
    descent = {"steepest_descent": SteepestDescent, "conjugate_gradient": ConjugateGradient}[solver]
    return descent(line_searcher=searcher, **ENDLESS)


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


def _solution(problem: FrechetProblem, monitor: Monitor, count: int) -> Solution:
    evaluation, errors = problem.certify(monitor.point)
    defined, counts = torch.isfinite(evaluation.cost), problem.counts.to(evaluation.cost.device)
    distances = np.full((count, evaluation.cost.numel()), np.nan)
    lengths = torch.where(counts & defined, evaluation.squared.clamp_min(0).sqrt(), torch.nan)
    distances[list(problem.support)] = host_array(lengths)
    status = [ended for ended in monitor.status if ended is not None]
    assert len(status) == evaluation.cost.numel()
    # The certificate is computed anew, and may find what the solve did not.
    for index in torch.nonzero(~defined).squeeze(-1).tolist():
        if status[index].ok:
            status[index] = Status.STALLED
    return Solution(
        point=problem.solution(monitor.point),
        status=tuple(status),
        cost=host_array(evaluation.cost),
        gradient_norm=host_array(evaluation.norms),
        horizontality=host_array(evaluation.vertical.amax(dim=0)),
        forward_error=host_array(torch.where(counts, errors, 0.0).amax(dim=0)),
        distances=distances,
        passes=problem.passes,
        seconds=monitor.seconds,
        trace=tuple(monitor.trace),
    )
