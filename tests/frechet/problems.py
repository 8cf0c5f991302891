"""Helpers of the tests of the problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import pymanopt
import torch

from riemerge import Problem
from riemerge.frechet import Search, Solution, frechet_mean
from riemerge.frechet.solvers.catalogue import SOLVERS, SolverLike, as_solver

Form: TypeAlias = Literal["joint", "nested"]
FORMS: list[Form] = ["joint", "nested"]


ITERATIVE = [name for name in SOLVERS if name != "closed_form"]
"""Solvers of any problem."""

_OF_PROBLEM = ("loss", "distance", "form", "gradient", "reduce")


def search_of(
    manifold: Any, points: Sequence[Any], weights: Any = None, *, initial_point: Any = None, **options: Any
) -> Search:
    """The search for a mean, from the options of a problem."""
    return Search(Problem(manifold, points, weights, **options), initial_point)


def mean_of(
    manifold: Any,
    points: Sequence[Any],
    weights: Any = None,
    *,
    solver: SolverLike = "lbfgs",
    initial_point: Any = None,
    callback: Any = None,
    **options: Any,
) -> Solution:
    """The mean, from the options of a problem and of a solver side by side."""
    of_problem = {name: options.pop(name) for name in _OF_PROBLEM if name in options}
    problem = Problem(manifold, points, weights, **of_problem)
    return frechet_mean(problem, as_solver(solver, **options), initial_point, callback=callback)


def as_pymanopt(problem: Search) -> pymanopt.Problem:
    """The same problem for Pymanopt's and our own checks."""
    search = problem.form.manifold
    function = pymanopt.function.numpy(search)
    return pymanopt.Problem(
        search,
        function(lambda x: float(problem.evaluate(x).cost.sum())),
        riemannian_gradient=function(lambda x: problem.evaluate(x).gradient),
        riemannian_hessian=function(problem.hessian),
    )


def away(problem: Search, length: float = 0.3) -> torch.Tensor:
    """A point of the search manifold that is no minimum."""
    search, start = problem.form.manifold, problem.start()
    point: torch.Tensor = search.retraction(start, length * search.random_tangent_vector(start))
    return point
