"""Helpers of the tests of the problem."""

from __future__ import annotations

from typing import Literal, TypeAlias

import pymanopt
import torch

from riemerge import FrechetProblem

Form: TypeAlias = Literal["joint", "nested"]
FORMS: list[Form] = ["joint", "nested"]


def as_pymanopt(problem: FrechetProblem) -> pymanopt.Problem:
    """The same problem for Pymanopt's and our own checks."""
    search = problem.form.manifold
    function = pymanopt.function.numpy(search)
    return pymanopt.Problem(
        search,
        function(lambda x: float(problem.evaluate(x).cost.sum())),
        riemannian_gradient=function(lambda x: problem.evaluate(x).gradient),
        riemannian_hessian=function(problem.hessian),
    )


def away(problem: FrechetProblem, length: float = 0.3) -> torch.Tensor:
    """A point of the search manifold that is no minimum."""
    search, start = problem.form.manifold, problem.start()
    point: torch.Tensor = search.retraction(start, length * search.random_tangent_vector(start))
    return point
