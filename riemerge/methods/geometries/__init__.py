"""Geometries: how updates become points of a manifold, by name. Importing this loads no numerical library."""

from __future__ import annotations

from riemerge.registry import Registry

_HERE = "riemerge.methods.geometries."

GEOMETRIES: Registry[object] = Registry(
    "geometry",
    {
        "flat": _HERE + "vectors:Flat",
        "sphere": _HERE + "directions:Sphere",
        "polar": _HERE + "quotients:Polar",
        "spd": _HERE + "cores:Spd",
        "grassmann": _HERE + "subspaces:Grassmann",
        "bures_wasserstein": _HERE + "balanced_factors:BuresWasserstein",
        "gaussians": _HERE + "gaussians:Gaussians",
    },
)
"""The geometries by name, the default first."""

FORMULA = "formula"
"""The geometry column of a row whose mean is a formula and no Fréchet mean."""
