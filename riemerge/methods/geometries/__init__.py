"""Geometries: how updates become points of a manifold, by name. Importing this loads no numerical library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from riemerge.registry import Registry

if TYPE_CHECKING:
    from riemerge.methods.geometries.geometry import Geometry

_HERE = "riemerge.methods."

GEOMETRIES: Registry[Geometry] = Registry(
    "geometry",
    {
        "flat": _HERE + "sums.vectors:Flat",
        "sphere": _HERE + "sums.vectors:Sphere",
        "polar": _HERE + "geodesic.quotient_mean:Polar",
        "gl_factors": _HERE + "geodesic.quotient_mean:GLFactors",
        "spd": _HERE + "polar.shared_private:Spd",
        "grassmann": _HERE + "polar.subspace:Grassmann",
        "bures_wasserstein": _HERE + "polar.balanced:BuresWasserstein",
        "gaussians": _HERE + "data.gaussian:Gaussians",
    },
)
"""The geometries by name, the default first."""

FORMULA = "formula"
"""The geometry column of a row whose mean is a formula and no Fréchet mean."""
