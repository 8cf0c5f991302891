"""Whether arrays are points of Pymanopt's own manifolds, and whether those obey their laws."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pymanopt import manifolds
from pymanopt.manifolds.manifold import Manifold

from riemerge.manifolds.guests.guarded import Guarded, guard, is_finite, parts

Conditions: TypeAlias = Iterator[tuple[bool | np.bool_, str]]
"""Whether each condition of a manifold holds at a point, and what is wrong where it does not."""

# Points may be off by the rounding of single precision.
_OFF = 1e-5
# Length of the step along which laws are measured, inside any radius of injectivity that data are in, and the
# share of it that they may be off: a broken law is off by about one, and round-off by 1e-3 (positive definite
# matrices of condition 1e12).
_STEP, _SHARE = 0.1, 2e-2
# Shorter ones tell nothing: an arccos of nearly one is off by 1e-8.
_LEAST = 1e-4


def refusal(manifold: Manifold, point: Any) -> str | None:
    """Return why something is no point of a Pymanopt manifold, or None where it is one.

    Law: what is refused is not finite, has another layout, shape or field than the manifold's own points, or
    breaks the manifold's condition by more than 1e-5; open conditions hold to round-off of float64.

    Args:
        manifold: Pymanopt's own, or a class of a user's: then only what all manifolds have is measured.
        point: Anything that was given for a point.
    """
    if isinstance(manifold, manifolds.Product):
        if not isinstance(point, list | tuple) or len(point) != len(manifold.manifolds):
            return f"it is {_describe(point)}; expected a list of {len(manifold.manifolds)} points"
        reasons = enumerate(map(refusal, manifold.manifolds, point))
        return next((f"in factor {i}, {reason}" for i, reason in reasons if reason is not None), None)
    return _misfit(manifold, point) or _broken_condition(manifold, point)


def broken_law(manifold: Manifold, points: Sequence[Any]) -> str | None:
    """Return which law of geodesics a manifold breaks next to its own points, or None.

    Law: ‖log‖ = dist, and exp, log and dist agree with each other on a short step from the first point
    towards another one. Where no other point has a logarithm of the right length, all may be beyond the cut
    locus, and nothing is said.

    Args:
        manifold: Pymanopt's, with log and dist.
        points: Some of its points.
    """
    safe: Guarded = guard(manifold)
    start = points[0]
    for other in points[1:]:
        try:
            vector = safe.log(start, other)
        except np.linalg.LinAlgError:
            continue
        length, apart = safe.norm(start, vector), safe.dist(start, other)
        if length > _LEAST and np.isclose(length, apart, rtol=_SHARE):
            return _along(safe, start, min(_STEP / length, 1.0) * vector)
    return None


def _along(safe: Guarded, start: Any, step: Any) -> str | None:
    """Return which law fails along one step."""
    length = safe.norm(start, step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pymanopt's circle casts complex numbers to real ones
        try:
            arrival = safe.manifold.exp(start, step)
        except NotImplementedError:
            return None
        moved, back = safe.dist(start, arrival), safe.log(start, arrival)
    if not abs(moved - length) <= _SHARE * length:
        return f"exp along a tangent vector of length {length:.3g} ends at distance {moved:.3g}"
    miss = safe.norm(start, back - step)
    if not miss <= _SHARE * length:
        return f"log misses a tangent vector of length {length:.3g}, whose exp it is given, by {miss:.3g}"
    return None


def _describe(point: Any) -> str:
    if isinstance(point, list | tuple):
        return f"a {type(point).__name__} of {len(point)}"
    if hasattr(point, "shape"):
        return f"an array of shape {np.shape(point)}"
    return type(point).__name__


def _misfit(manifold: Manifold, point: Any) -> str | None:
    """Return what is wrong with the layout of a point, or that it is not finite."""
    if type(manifold).__module__.startswith("pymanopt."):
        like = _example(manifold)
        if isinstance(like, tuple) != isinstance(point, tuple) or len(parts(like)) != len(parts(point)):
            return f"it is {_describe(point)}; expected {_describe(like)}"
        for array, expected in zip(parts(point), parts(like), strict=True):
            if np.shape(array) != np.shape(expected) or not hasattr(array, "shape"):
                return f"it is {_describe(array)}; expected {_describe(expected)}"
            if np.iscomplexobj(array) and not np.iscomplexobj(expected):
                return "it is complex; expected real numbers"
    if not is_finite(point):
        return "it is not finite"
    return None


def _example(manifold: Manifold) -> Any:
    """Return some point, drawn without a trace in numpy's global generator."""
    state = np.random.get_state()  # noqa: NPY002 - Pymanopt draws from the global generator
    try:
        return manifold.random_point()
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _broken_condition(manifold: Manifold, point: Any) -> str | None:
    """Return which condition of the manifold a finite point of the right shape breaks first."""
    conditions = next((check for kinds, check in _CONDITIONS if isinstance(manifold, kinds)), _embedding)
    return next((reason for holds, reason in conditions(manifold, point) if not holds), None)


def _symmetry(manifold: Manifold, point: NDArray[Any]) -> Conditions:
    yield _near(manifold.projection(point, point), point), "it is not symmetric"


def _skew_symmetry(manifold: Manifold, point: NDArray[Any]) -> Conditions:
    yield _near(manifold.projection(point, point), point), "it is not skew-symmetric"


def _positivity(_: Manifold, point: NDArray[Any]) -> Conditions:
    yield (point > 0).all(), f"its smallest entry is {point.min():.3g}, not positive"


def _unit_ball(_: Manifold, point: NDArray[Any]) -> Conditions:
    norm = np.linalg.norm(point, axis=-1).max()
    yield norm < 1, f"its norm is {norm:.6g}, not below 1"


def _full_rank(_: Manifold, point: NDArray[Any]) -> Conditions:
    rank, expected = np.linalg.matrix_rank(point), point.shape[-1]
    yield rank == expected, f"it is singular: its rank is {rank}, expected {expected}"


def _rotation(manifold: Manifold, point: NDArray[Any]) -> Conditions:
    proper = not (np.linalg.det(point) < 0).any()
    yield proper, "it is no rotation: its determinant is negative, as that of a reflection"
    yield from _embedding(manifold, point)


def _embedding(manifold: Manifold, point: Any) -> Conditions:
    """Yield whether a point is on an embedded manifold: a retraction of zero leaves points there."""
    try:
        with np.errstate(all="ignore"):
            back = manifold.retraction(point, manifold.zero_vector(point))
    except NotImplementedError:
        return
    except np.linalg.LinAlgError as error:
        yield False, f"it is singular ({error})"
        return
    if isinstance(point, np.ndarray):
        yield _near(back, point), f"it is off the manifold by {np.abs(back - point).max():.3g}"
    projector = getattr(manifold, "_subspace_projector", None)  # of a sphere in a subspace
    if projector is not None:
        off = projector @ point - point
        yield _near(projector @ point, point), f"it is out of the subspace by {np.abs(off).max():.3g}"


def _factors(_: Manifold, point: tuple[NDArray[Any], ...]) -> Conditions:
    """Yield whether the factors of a matrix of fixed rank are those of its SVD."""
    left, values, right = point
    identity = np.eye(values.size)
    orthonormal = _near(left.T @ left, identity) and _near(right @ right.T, identity)
    yield orthonormal, "the columns of u or the rows of vt are not orthonormal"
    yield (values > 0).all(), f"its smallest singular value is {values.min():.3g}, not positive"


def _positive_definiteness(manifold: Manifold, point: NDArray[Any]) -> Conditions:
    adjoint = np.conjugate(np.swapaxes(point, -1, -2))
    alike = _near(adjoint, point)
    yield alike or np.iscomplexobj(point), "it is not symmetric"
    yield alike, "it is not Hermitian"
    values = np.linalg.eigvalsh((point + adjoint) / 2)
    least, largest = values.min(axis=-1), np.abs(values).max(axis=-1)
    sizes = f"its smallest eigenvalue is {least.min():.3g}, its largest {largest.max():.3g}"
    clear = not (least <= point.shape[-1] * np.finfo(float).eps * largest).any()
    yield clear or least.min() >= -_OFF * largest.max(), f"it is not positive definite: {sizes}"
    yield clear, f"it is singular: {sizes}"
    if isinstance(manifold, manifolds.SpecialHermitianPositiveDefinite):
        determinant = values.prod(axis=-1)
        unit = _near(determinant, np.ones_like(determinant))
        yield unit, f"its determinant is {determinant.ravel()[0]:.6g}, not 1"


def _near(a: Any, b: Any) -> bool:
    return bool(np.abs(a - b).max(initial=0) <= _OFF * np.abs(b).max(initial=0))


_CONDITIONS: tuple[tuple[Any, Callable[[Manifold, Any], Conditions]], ...] = (
    (
        manifolds.SymmetricPositiveDefinite
        | manifolds.HermitianPositiveDefinite
        | manifolds.SpecialHermitianPositiveDefinite,
        _positive_definiteness,
    ),
    (manifolds.Symmetric, _symmetry),
    (manifolds.SkewSymmetric, _skew_symmetry),
    (manifolds.Positive, _positivity),
    (manifolds.PoincareBall, _unit_ball),
    (manifolds.PSDFixedRank | manifolds.PSDFixedRankComplex, _full_rank),
    (manifolds.FixedRankEmbedded, _factors),
    (manifolds.SpecialOrthogonalGroup, _rotation),
)
