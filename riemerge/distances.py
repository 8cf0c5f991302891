"""Distances of Fréchet means other than the geodesic one."""

from riemerge.frechet.distance import DISTANCES, Chordal, Distance, FirstOrder, SquaredDistance

__all__ = ["DISTANCES", "Chordal", "Distance", "FirstOrder", "SquaredDistance"]
