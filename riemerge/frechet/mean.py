"""frechet_mean: one call from a problem to a mean with a certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch

from riemerge.errors import RecipeError
from riemerge.frechet.formulation import Point
from riemerge.frechet.loss import Absolute, Loss, as_loss
from riemerge.frechet.problem import Problem
from riemerge.frechet.search import Search
from riemerge.frechet.solution import Solution, TracePoint
from riemerge.frechet.solvers.catalogue import LBFGS, ClosedForm, SolverLike, as_solver
from riemerge.frechet.solvers.solver import Solver
from riemerge.frechet.solvers.watch import Watch
from riemerge.frechet.status import Status
from riemerge.linalg import single_threaded
from riemerge.manifolds.base import host_array

# Tolerance of the median that gives a loss its scale: the costs of solvers agree to 1e-9.
_MEDIAN_TOL = 1e-10


def frechet_mean(
    problem: Problem,
    solver: SolverLike = "lbfgs",
    start: Point | None = None,
    *,
    callback: Callable[[TracePoint], None] | None = None,
) -> Solution:
    """Find the weighted Fréchet mean of points on a manifold, module by module.

    Law: on a quotient the result does not depend on the representatives given. Deterministic: same input,
    same bits.

    Args:
        problem: The points, their manifold, the loss and the distance.
        solver: An object of `riemerge.solvers` or its name (`lbfgs`, `conjugate_gradient:beta=LiuStorey`), or
            any gradient-based Pymanopt optimizer or its class (which then also stops by its own rules).
        start: Point of the manifold to start at; by default a cheap average of the points.
        callback: Called with each accepted iterate, those of the median that gives a loss its scale included.

    Returns:
        The mean and its certificate. Modules that did not converge say so in `status`; nothing is raised for
        them.

    Raises:
        RecipeError: Unknown solver, bad weights, bad tolerances, no points, what is no point of the manifold,
            a manifold that lacks what a mean needs.

    Example:
        >>> import numpy as np, pymanopt
        >>> sphere = pymanopt.manifolds.Sphere(3)
        >>> solution = frechet_mean(Problem(sphere, [np.eye(3)[0], np.eye(3)[1]]), "steepest_descent")
        >>> solution.point.round(4)
        array([0.7071, 0.7071, 0.    ])
    """
    began, chosen, loss = perf_counter(), as_solver(solver), as_loss(problem.loss)
    with torch.no_grad(), single_threaded():
        median = _find_median(problem, loss, chosen, start, callback) if loss.relative else None
        search = Search(problem, start, median)
        watch = Watch(search, chosen, callback, began)  # the median's seconds count, in the budget too
        begun = search.start()
        chosen.run(watch, begun)
        if not watch.trace:
            watch.accept(begun)
        watch.finish(Status.STOPPED)
        return _solution(search, watch, len(problem.points))


def _find_median(
    problem: Problem,
    loss: Loss,
    asked: Solver,
    start: Point | None,
    callback: Callable[[TracePoint], None] | None,
) -> Solution:
    """Find the geometric median, always by one solver: the scale of a loss must not depend on the one asked.

    No module is finished by it, and so the callback is told.
    """
    if isinstance(asked, ClosedForm):
        raise RecipeError(
            f"solver closed_form: {problem.manifold} under {loss} has no closed mean: use another solver"
        )

    def report(step: TracePoint) -> None:
        if callback is not None:
            callback(replace(step, active=len(step.cost)))

    budget = {name: getattr(asked, name) for name in ("cost_tol", "max_passes", "max_seconds")}
    solver = LBFGS(tol=_MEDIAN_TOL, **budget)
    return frechet_mean(replace(problem, loss=Absolute()), solver, start, callback=report)


def _solution(search: Search, watch: Watch, count: int) -> Solution:
    evaluation, errors = search.certify(watch.point)
    defined, counts = torch.isfinite(evaluation.cost), search.counted.to(evaluation.cost.device)
    distances = np.full((count, evaluation.cost.numel()), np.nan)
    lengths = torch.where(counts & defined, evaluation.squared.clamp_min(0).sqrt(), torch.nan)
    distances[list(search.support)] = host_array(lengths)
    status = [ended for ended in watch.status if ended is not None]
    assert len(status) == evaluation.cost.numel()
    # The certificate is computed anew, and may find what the solve did not.
    for index in torch.nonzero(~defined).squeeze(-1).tolist():
        if status[index].ok:
            status[index] = Status.STALLED
    return Solution(
        point=search.solution(watch.point),
        status=tuple(status),
        cost=host_array(evaluation.cost),
        gradient_norm=host_array(evaluation.norms),
        horizontality=host_array(evaluation.vertical.amax(dim=0)),
        forward_error=host_array(torch.where(counts, errors, 0.0).amax(dim=0)),
        distances=distances,
        passes=search.passes,
        counts=dict(search.counts),
        caveat=search.form.objective.loss.caveat,
        seconds=watch.seconds,
        trace=tuple(watch.trace),
    )
