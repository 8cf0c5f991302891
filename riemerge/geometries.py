"""Geometries of updates: what *near* means, and how updates become points."""

from riemerge.methods.data.gaussian import Gaussians
from riemerge.methods.geodesic.quotient_mean import FactoredGeometry, GLFactors, Polar
from riemerge.methods.geometries import GEOMETRIES
from riemerge.methods.geometries.geometry import Geometry, Placed, Solved, Steps
from riemerge.methods.polar.balanced import BuresWasserstein
from riemerge.methods.polar.shared_private import Spd
from riemerge.methods.polar.subspace import Grassmann
from riemerge.methods.sums.vectors import Flat, Sphere

__all__ = [
    "GEOMETRIES",
    "BuresWasserstein",
    "FactoredGeometry",
    "Flat",
    "GLFactors",
    "Gaussians",
    "Geometry",
    "Grassmann",
    "Placed",
    "Polar",
    "Solved",
    "Spd",
    "Sphere",
    "Steps",
]
