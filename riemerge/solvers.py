"""Solvers of Fréchet means: frozen values with a name, options, tolerances and budgets."""

from riemerge.frechet.solvers.catalogue import LBFGS, SOLVERS, ClosedForm, FixedPoint, SteepestDescent
from riemerge.frechet.solvers.conjugate_gradient import ConjugateGradient
from riemerge.frechet.solvers.guest_optimizer import Guest
from riemerge.frechet.solvers.lbfgs import LBFGSOptimizer
from riemerge.frechet.solvers.solver import Solver, one_of, option
from riemerge.frechet.solvers.trust_regions import TrustRegions
from riemerge.frechet.solvers.watch import Watch

__all__ = [
    "LBFGS",
    "SOLVERS",
    "ClosedForm",
    "ConjugateGradient",
    "FixedPoint",
    "Guest",
    "LBFGSOptimizer",
    "Solver",
    "SteepestDescent",
    "TrustRegions",
    "Watch",
    "one_of",
    "option",
]
