"""Geometries of updates: what *near* means, and how updates become points."""

from riemerge.methods.geometries import GEOMETRIES
from riemerge.methods.geometries.geometry import Geometry, Placed, Solved, Steps

__all__ = ["GEOMETRIES", "Geometry", "Placed", "Solved", "Steps"]
