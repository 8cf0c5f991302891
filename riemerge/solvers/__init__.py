"""Fréchet means by Pymanopt's optimizers, configured by name and watched per module."""

from riemerge.solvers.fixed_point import FixedPoint
from riemerge.solvers.lbfgs import LBFGS
from riemerge.solvers.line_search import ModulewiseLineSearcher
from riemerge.solvers.mean import SOLVERS, frechet_mean
from riemerge.solvers.monitor import Monitor, Stop
from riemerge.solvers.solution import Solution, Status, TracePoint

__all__ = [
    "LBFGS",
    "SOLVERS",
    "FixedPoint",
    "ModulewiseLineSearcher",
    "Monitor",
    "Solution",
    "Status",
    "Stop",
    "TracePoint",
    "frechet_mean",
]
