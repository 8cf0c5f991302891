"""Solvers of our own, and what watches any solver module by module."""

from riemerge.frechet.solvers.fixed_point import FixedPoint
from riemerge.frechet.solvers.lbfgs import LBFGS
from riemerge.frechet.solvers.line_search import ModulewiseLineSearcher
from riemerge.frechet.solvers.monitor import Monitor, Stop

__all__ = ["LBFGS", "FixedPoint", "ModulewiseLineSearcher", "Monitor", "Stop"]
