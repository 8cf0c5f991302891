"""Whether arrays are points of Pymanopt's own manifolds, and whether those obey their laws."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymanopt import manifolds
from pymanopt.manifolds.manifold import Manifold

from riemerge.manifolds.guests.guarded import Guarded, guarded, is_finite, parts

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
        point: What was given for a point.
    """
    if isinstance(manifold, manifolds.Product):
        if not isinstance(point, list | tuple) or len(point) != len(manifold.manifolds):
            return f"it is {_described(point)}; expected a list of {len(manifold.manifolds)} points"
        found = enumerate(map(refusal, manifold.manifolds, point))
        return next((f"in factor {i}, {reason}" for i, reason in found if reason is not None), None)
    return _misfit(manifold, point) or _broken(manifold, point)


def broken_law(manifold: Manifold, points: Sequence[Any]) -> str | None:
    """Return which law of geodesics a manifold breaks next to its own points, or None.

    Laws: ‖log‖ = dist, and exp, log and dist agree with each other on a short step from the first point
    towards another one. Where no other point has a logarithm of the right length, all may be beyond the cut
    locus, and nothing is said.

    Args:
        manifold: Pymanopt's, with log and dist.
        points: Some of its points.
    """
    safe: Guarded = guarded(manifold)
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


def _described(point: Any) -> str:
    if isinstance(point, list | tuple):
        return f"a {type(point).__name__} of {len(point)}"
    return f"an array of shape {np.shape(point)}" if hasattr(point, "shape") else f"{type(point).__name__}"


def _misfit(manifold: Manifold, point: Any) -> str | None:
    """Return what is wrong with the layout of a point, or that it is not finite."""
    if type(manifold).__module__.startswith("pymanopt."):
        like = _example(manifold)
        if isinstance(like, tuple) != isinstance(point, tuple) or len(parts(like)) != len(parts(point)):
            return f"it is {_described(point)}; expected {_described(like)}"
        for array, expected in zip(parts(point), parts(like), strict=True):
            if np.shape(array) != np.shape(expected) or not hasattr(array, "shape"):
                return f"it is {_described(array)}; expected {_described(expected)}"
            if np.iscomplexobj(array) and not np.iscomplexobj(expected):
                return "it is complex; expected real numbers"
    return None if is_finite(point) else "it is not finite"


def _example(manifold: Manifold) -> Any:
    """Return some point, drawn without a trace in numpy's global generator."""
    state = np.random.get_state()  # noqa: NPY002 - Pymanopt draws from the global generator
    try:
        return manifold.random_point()
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _broken(manifold: Manifold, point: Any) -> str | None:
    """Return which condition of the manifold a finite point of the right shape breaks."""
    for kinds, condition in _CONDITIONS:
        if isinstance(manifold, kinds):
            return condition(manifold, point)
    return _off(manifold, point)


def _not_symmetric(manifold: Manifold, point: NDArray[Any]) -> str | None:
    kind = "symmetric" if isinstance(manifold, manifolds.Symmetric) else "skew-symmetric"
    return None if _near(manifold.projection(point, point), point) else f"it is not {kind}"


def _not_positive(_: Manifold, point: NDArray[Any]) -> str | None:
    return None if (point > 0).all() else f"its smallest entry is {point.min():.3g}, not positive"


def _out_of_ball(_: Manifold, point: NDArray[Any]) -> str | None:
    norm = np.linalg.norm(point, axis=-1).max()
    return None if norm < 1 else f"its norm is {norm:.6g}, not below 1"


def _rank_deficient(_: Manifold, point: NDArray[Any]) -> str | None:
    rank, expected = np.linalg.matrix_rank(point), point.shape[-1]
    return None if rank == expected else f"it is singular: its rank is {rank}, expected {expected}"


def _no_rotation(manifold: Manifold, point: NDArray[Any]) -> str | None:
    if (np.linalg.det(point) < 0).any():
        return "it is no rotation: its determinant is negative, as that of a reflection"
    return _off(manifold, point)


def _off(manifold: Manifold, point: Any) -> str | None:
    """Return by how much a point is off an embedded manifold: a retraction of zero leaves points there."""
    try:
        with np.errstate(all="ignore"):
            back = manifold.retraction(point, manifold.zero_vector(point))
    except NotImplementedError:
        return None
    except np.linalg.LinAlgError as error:
        return f"it is singular ({error})"
    if isinstance(point, np.ndarray) and not _near(back, point):
        return f"it is off the manifold by {np.abs(back - point).max():.3g}"
    projector = getattr(manifold, "_subspace_projector", None)  # of a sphere in a subspace
    if projector is not None and not _near(projector @ point, point):
        return f"it is out of the subspace by {np.abs(projector @ point - point).max():.3g}"
    return None


def _not_of_rank(_: Manifold, point: tuple[NDArray[Any], ...]) -> str | None:
    """Return what is wrong with the factors of a matrix of fixed rank."""
    left, values, right = point
    identity = np.eye(values.size)
    if not (_near(left.T @ left, identity) and _near(right @ right.T, identity)):
        return "the columns of u or the rows of vt are not orthonormal"
    return None if (values > 0).all() else f"its smallest singular value is {values.min():.3g}, not positive"


def _not_positive_definite(manifold: Manifold, point: NDArray[Any]) -> str | None:
    adjoint = np.conjugate(np.swapaxes(point, -1, -2))
    if not _near(adjoint, point):
        return "it is not symmetric" if np.isrealobj(point) else "it is not Hermitian"
    values = np.linalg.eigvalsh((point + adjoint) / 2)
    least, largest = values.min(axis=-1), np.abs(values).max(axis=-1)
    if (least <= point.shape[-1] * np.finfo(float).eps * largest).any():
        least = least.min()
        kind = "not positive definite" if least < -_OFF * largest.max() else "singular"
        return f"it is {kind}: its smallest eigenvalue is {least:.3g}, its largest {largest.max():.3g}"
    if isinstance(manifold, manifolds.SpecialHermitianPositiveDefinite):
        determinant = values.prod(axis=-1)
        if not _near(determinant, np.ones_like(determinant)):
            return f"its determinant is {determinant.ravel()[0]:.6g}, not 1"
    return None


def _near(a: Any, b: Any) -> bool:
    return bool(np.abs(a - b).max(initial=0) <= _OFF * np.abs(b).max(initial=0))


_CONDITIONS: tuple[tuple[tuple[type[Manifold], ...], Callable[[Manifold, Any], str | None]], ...] = (
    (
        (
            manifolds.SymmetricPositiveDefinite,
            manifolds.HermitianPositiveDefinite,
            manifolds.SpecialHermitianPositiveDefinite,
        ),
        _not_positive_definite,
    ),
    ((manifolds.Symmetric, manifolds.SkewSymmetric), _not_symmetric),
    ((manifolds.Positive,), _not_positive),
    ((manifolds.PoincareBall,), _out_of_ball),
    ((manifolds.PSDFixedRank, manifolds.PSDFixedRankComplex), _rank_deficient),
    ((manifolds.FixedRankEmbedded,), _not_of_rank),
    ((manifolds.SpecialOrthogonalGroup,), _no_rotation),
)
