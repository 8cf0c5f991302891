"""Solvers of Fréchet means: frozen values with a name, options, tolerances and budgets."""

from riemerge.frechet.solvers.catalogue import (
    LBFGS,
    SOLVERS,
    ConjugateGradient,
    FixedPoint,
    Guest,
    SteepestDescent,
    TrustRegions,
)
from riemerge.frechet.solvers.fixed_point import FixedPointOptimizer
from riemerge.frechet.solvers.lbfgs import LBFGSOptimizer
from riemerge.frechet.solvers.solver import Solver

__all__ = [
    "LBFGS",
    "SOLVERS",
    "ConjugateGradient",
    "FixedPoint",
    "FixedPointOptimizer",
    "Guest",
    "LBFGSOptimizer",
    "Solver",
    "SteepestDescent",
    "TrustRegions",
]
