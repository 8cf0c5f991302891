"""frechet_mean: one call from a problem to a mean with a certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from riemerge.frechet.formulation import Point
from riemerge.frechet.loss import Absolute, as_loss
from riemerge.frechet.problem import Problem
from riemerge.frechet.search import Search
from riemerge.frechet.solution import Solution, TracePoint
from riemerge.frechet.solvers.catalogue import SolverLike, as_solver
from riemerge.frechet.solvers.watch import Watch
from riemerge.frechet.status import Status
from riemerge.linalg import single_threaded
from riemerge.manifolds.base import host_array


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
        >>> solution = frechet_mean(Problem(sphere, [np.eye(3)[0], np.eye(3)[1]]), "steepest_descent")
        >>> solution.point.round(4)
        array([0.7071, 0.7071, 0.    ])
    """
    chosen = as_solver(solver)
    with torch.no_grad(), single_threaded():
        median = None
        if as_loss(problem.loss).relative:
            median = frechet_mean(replace(problem, loss=Absolute()), chosen, start)
        search = Search(problem, start, median)
        watch = Watch(search, chosen, callback)
        chosen.run(watch, search.start())
        return _solution(search, watch, len(problem.points))


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
