"""Pymanopt's own manifolds, as solvers may rely on them."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from pymanopt.manifolds import Product
from pymanopt.manifolds.manifold import Manifold

from riemerge.manifolds.base import TorchManifold

# Share of a logarithm of real points that may be imaginary, by round-off.
_IMAGINARY = 1e-8


def guard(manifold: Manifold) -> Any:
    """Return a manifold that solvers may rely on: ours as they are, Pymanopt's as `Guarded`.

    Args:
        manifold: Any Pymanopt manifold.
    """
    if not isinstance(manifold, Manifold) or isinstance(manifold, TorchManifold):
        return manifold
    if isinstance(manifold, Product):
        return Guarded(Product([guard(part) for part in manifold.manifolds]))
    return Guarded(manifold)


@final
class Guarded:
    """A Pymanopt manifold whose verbs keep what solvers rely on; it has all its other attributes.

    Law: inner products and norms are real. `exp` ends on the manifold: Pymanopt's exponentials leave it by
    round-off that every further step multiplies (on a sphere by two). It retracts where the manifold has no
    `exp`. `transport` projects where the manifold has none. `log` and `dist` of a point and itself are zero.
    A step out of the set, where linear algebra fails, ends at a point of NaN: its cost is infinite, and a
    line search takes a shorter one.

    Args:
        manifold: The manifold, on numpy arrays or whatever its points are.
    """

    def __init__(self, manifold: Manifold) -> None:
        self.manifold = manifold

    def __getattr__(self, name: str) -> Any:
        if name == "manifold":  # not there yet while an object is copied
            raise AttributeError(name)
        return getattr(self.manifold, name)

    def __str__(self) -> str:
        return str(self.manifold)

    def inner_product(self, point: Any, tangent_vector_a: Any, tangent_vector_b: Any) -> np.float64:
        """Return the metric of two tangent vectors, the real part of what the manifold says."""
        return np.float64(np.real(self.manifold.inner_product(point, tangent_vector_a, tangent_vector_b)))

    def norm(self, point: Any, tangent_vector: Any) -> np.float64:
        """Return the length of a tangent vector."""
        return np.float64(np.real(self.manifold.norm(point, tangent_vector)))

    def to_tangent_space(self, point: Any, vector: Any) -> Any:
        """Remove what round-off added outside the tangent space."""
        try:
            return self.manifold.to_tangent_space(point, vector)
        except NotImplementedError:
            return self.manifold.projection(point, self.manifold.embedding(point, vector))

    def transport(self, point_a: Any, point_b: Any, tangent_vector_a: Any) -> Any:
        """Carry a tangent vector from a to b, by projection where the manifold has no transport."""
        try:
            return self.manifold.transport(point_a, point_b, tangent_vector_a)
        except NotImplementedError:
            embedded = self.manifold.embedding(point_a, tangent_vector_a)
            return self.manifold.projection(point_b, embedded)

    def retraction(self, point: Any, tangent_vector: Any) -> Any:
        """Move along a tangent vector, to a point of NaN where that leaves the set."""
        with np.errstate(all="ignore"):
            try:
                return self.manifold.retraction(point, tangent_vector)
            except np.linalg.LinAlgError:
                return _nan_like(point)

    def exp(self, point: Any, tangent_vector: Any) -> Any:
        """Follow the geodesic and end on the manifold, to a point of NaN where that leaves the set."""
        with np.errstate(all="ignore"):
            try:
                arrival = self.manifold.exp(point, tangent_vector)
            except NotImplementedError:
                return self.retraction(point, tangent_vector)
            except np.linalg.LinAlgError:
                return _nan_like(point)
            return self.settle(arrival)

    def settle(self, point: Any) -> Any:
        """Return the point on the manifold next to one that is off by round-off: the retraction of zero."""
        if isinstance(self.manifold, Product) or not is_finite(point):  # whose parts are settled already
            return point
        try:
            return self.retraction(point, self.manifold.zero_vector(point))
        except NotImplementedError:
            return point

    def log(self, point_a: Any, point_b: Any) -> Any:
        """Return the logarithm; NaN where it is not real though the points are, beyond the cut locus."""
        if isinstance(self.manifold, Product) or not isinstance(point_a, np.ndarray):
            return self.manifold.log(point_a, point_b)
        if np.array_equal(point_a, point_b):
            return self.manifold.zero_vector(point_a)
        with np.errstate(all="ignore"):
            log = np.asarray(self.manifold.log(point_a, point_b))
            if np.iscomplexobj(log) and not (np.iscomplexobj(point_a) or np.iscomplexobj(point_b)):
                real = np.abs(log.imag).max() <= _IMAGINARY * np.abs(log).max()
                log = log.real if real else np.full(log.shape, np.nan)
            unknown = np.isnan(log)
            if unknown.any():
                # arccos(1 + eps) and 0 / 0, where entries of both points agree: the chord is the logarithm
                # there. Elsewhere its length is not the distance.
                log = np.where(unknown, self.manifold.projection(point_a, point_b - point_a), log)
        return log

    def dist(self, point_a: Any, point_b: Any) -> np.float64:
        """Return the distance."""
        alike = isinstance(point_a, np.ndarray) and np.array_equal(point_a, point_b)
        with np.errstate(all="ignore"):
            return np.float64(0.0 if alike else np.real(self.manifold.dist(point_a, point_b)))


def parts(point: Any) -> list[Any]:
    """Return the arrays of a point or tangent vector: several on a product or where points are tuples."""
    if isinstance(point, list | tuple):
        return [array for part in point for array in parts(part)]
    return [point]


def is_finite(point: Any) -> bool:
    """Tell whether all entries of a point or tangent vector are finite."""
    return all(bool(np.isfinite(np.asarray(part)).all()) for part in parts(point))


def random_like(vector: Any, generator: np.random.Generator) -> Any:
    """Return standard normal numbers for every array of a vector, in its layout."""
    if isinstance(vector, list | tuple):
        return [random_like(part, generator) for part in vector]
    return generator.standard_normal(np.shape(vector))


def _nan_like(point: Any) -> Any:
    """Return NaN in the layout of a point."""
    if isinstance(point, list):
        return [_nan_like(part) for part in point]
    if isinstance(point, tuple):
        return type(point)(*[_nan_like(part) for part in point])
    nowhere: NDArray[np.float64] = np.full(np.shape(point), np.nan)
    return nowhere
