"""The weighted Fréchet mean as a problem for optimizers."""

from riemerge.frechet.formulation import Evaluation, Formulation, Point
from riemerge.frechet.problem import FrechetProblem, normalised_weights

__all__ = ["Evaluation", "Formulation", "FrechetProblem", "Point", "normalised_weights"]
