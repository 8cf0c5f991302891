"""Solvers of Fréchet means: frozen values with a name, options, tolerances and budgets."""

from riemerge.frechet.solvers.catalogue import LBFGS, SOLVERS, FixedPoint, SteepestDescent
from riemerge.frechet.solvers.conjugate_gradient import ConjugateGradient
from riemerge.frechet.solvers.guest_optimizer import Guest
from riemerge.frechet.solvers.lbfgs import LBFGSOptimizer
from riemerge.frechet.solvers.solver import Solver
from riemerge.frechet.solvers.trust_regions import TrustRegions

__all__ = [
    "LBFGS",
    "SOLVERS",
    "ConjugateGradient",
    "FixedPoint",
    "Guest",
    "LBFGSOptimizer",
    "Solver",
    "SteepestDescent",
    "TrustRegions",
]
