"""The weighted Fréchet mean: the problem, how it is solved, and how well it was."""

import riemerge.manifolds  # noqa: F401 (first: it refuses python -OO, under which Pymanopt fails)
from riemerge.frechet.formulation import Evaluation, Formulation, Point
from riemerge.frechet.mean import frechet_mean
from riemerge.frechet.problem import Problem
from riemerge.frechet.search import Search, normalize_weights
from riemerge.frechet.solution import Solution, TracePoint
from riemerge.frechet.solvers.catalogue import SOLVERS
from riemerge.frechet.status import Status

__all__ = [
    "SOLVERS",
    "Evaluation",
    "Formulation",
    "Point",
    "Problem",
    "Search",
    "Solution",
    "Status",
    "TracePoint",
    "frechet_mean",
    "normalize_weights",
]
