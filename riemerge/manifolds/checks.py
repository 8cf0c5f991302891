"""The laws of manifolds, metrics, symmetries and derivatives, as numbers.

Every check but `check_action`, which is for our quotients, works on any Pymanopt manifold, numpy or torch. It
draws through the manifold's own generator (numpy manifolds: the global one, so seed it), prints and plots
nothing, and returns defects (relative; round-off when the law holds) and slopes (the order of an error in the
step: 2 for a correct gradient, 3 for a correct Hessian). What is below tolerance is for the caller to say:

    defects = check_manifold(manifold)
    assert max(defects.values()) < 1e-10, defects
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pymanopt import Problem
from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

from riemerge.manifolds.base import TorchManifold
from riemerge.manifolds.quotient import QuotientManifold

# Steps of Taylor tests: short enough for the leading term, long enough to stay clear of round-off.
_STEPS = np.logspace(-3.5, -1.5, 9)


def check_manifold(
    manifold: Manifold, *, scale: float = 0.5, pairs: int = 2, point: Any = None
) -> dict[str, float]:
    """Measure the laws of points and geodesics; verbs that a manifold does not offer are left out.

    Keys, each the worst defect over a few random points and tangent vectors of length `scale`: `projection`
    (idempotent), `linearity` and `symmetry` of the metric, `positivity` (negative part of ⟨v, v⟩), `norm`
    (‖v‖² = ⟨v, v⟩), `retraction` (2 minus the order of its error, at least 0), `exp_log` and `log_exp`
    (round trips), `length` (‖log‖ = dist), `dist_symmetry`, `gauss` (the gradient of d(x, .)² / 2 at y is
    -log_y x, by central differences: 1e-8 is exact), `transport` (lands in the tangent space),
    `isometry` of the transport, `pair_mean` (equidistant), `dimension` (against the rank of drawn tangent
    vectors, for dimensions up to 200).

    Args:
        manifold: Any Pymanopt manifold.
        scale: Length of the geodesics; inside the injectivity radius.
        pairs: How many draws.
        point: The point to check at, instead of random ones: an ill-conditioned one, say.
    """
    defects: dict[str, float] = {}

    def record(key: str, value: Any) -> None:
        defects[key] = _worse(defects.get(key, 0.0), value)

    for _ in range(pairs):
        x = _choose_point(manifold, point)
        u, v = (manifold.random_tangent_vector(x) for _ in range(2))
        u, v = (scale / manifold.norm(x, w) * w for w in (u, v))
        record("projection", manifold.norm(x, manifold.projection(x, _embed(manifold, x, u)) - u) / scale)
        record("symmetry", _relative(_inner(manifold, x, u, v), _inner(manifold, x, v, u), scale**2))
        both = _inner(manifold, x, u, v) + _inner(manifold, x, v, v)
        record("linearity", _relative(_inner(manifold, x, u + v, v), both, scale**2))
        record("positivity", max(0.0, -float(_inner(manifold, x, u, u))))
        record("norm", _relative(manifold.norm(x, u) ** 2, _inner(manifold, x, u, u), scale**2))
        if _offers(manifold, "exp", x, u):
            _check_geodesics(manifold, x, u, v, scale, record)
            record("retraction", max(0.0, 2 - check_retraction(manifold, point=x, tangent_vector=u)))
    if manifold.dim <= 200:
        record("dimension", abs(_rank(manifold) - manifold.dim))
    return defects


def _check_geodesics(
    manifold: Manifold, x: Any, u: Any, v: Any, scale: float, record: Callable[[str, Any], None]
) -> None:
    y = manifold.exp(x, u)
    if _offers(manifold, "log", x, y):
        back = manifold.log(x, y)
        record("log_exp", manifold.norm(x, back - u) / scale)
        record("exp_log", manifold.norm(y, manifold.log(y, manifold.exp(x, back))) / scale)
    if _offers(manifold, "dist", x, y):
        record("length", _relative(manifold.dist(x, y), scale, scale))
        record("dist_symmetry", _relative(manifold.dist(x, y), manifold.dist(y, x), scale))
        if _offers(manifold, "log", y, x):
            # The first variation of d(x, .)² / 2 at y is that of the radius alone: -⟨log_y x, w⟩.
            w = manifold.random_tangent_vector(y)
            ahead, behind = (
                manifold.dist(x, manifold.exp(y, t * w)) ** 2 for t in (1e-4 * scale, -1e-4 * scale)
            )
            slope = (ahead - behind) / (4e-4 * scale)
            record("gauss", _relative(slope, -_inner(manifold, y, manifold.log(y, x), w), scale))
        if _offers(manifold, "pair_mean", x, y):
            middle = manifold.pair_mean(x, y)
            record("pair_mean", _relative(manifold.dist(x, middle), manifold.dist(middle, y), scale))
    if _offers(manifold, "transport", x, y, v):
        moved = manifold.transport(x, y, v)
        tangent = manifold.projection(y, _embed(manifold, y, moved))
        record("transport", manifold.norm(y, tangent - moved) / scale)
        record("isometry", _relative(manifold.norm(y, moved), scale, scale))


def check_metric(manifold: Manifold, *, draws: int = 4, point: Any = None) -> dict[str, float]:
    """Measure Riesz: <gradient(E), v> = sum(E * v) for random E and tangent v, and that the gradient is
    tangent.

    Keys: `riesz` (left out where points are the factors of a matrix, as on Pymanopt's `FixedRankEmbedded`),
    `tangency`; on our manifolds also `riesz_inverse`.
    """
    defects = {"tangency": 0.0}
    for _ in range(draws):
        x = _choose_point(manifold, point)
        v = manifold.random_tangent_vector(x)
        ambient = _embed(manifold, x, v)
        euclidean = _ambient_like(manifold, x)
        # Where a point is the factors of a matrix, only the manifold knows the velocity of its entries.
        alike = [np.shape(a) for a in _parts(ambient)] == [np.shape(a) for a in _parts(x)]
        gradient = manifold.euclidean_to_riemannian_gradient(x, euclidean)
        if isinstance(manifold, QuotientManifold):
            # On a quotient Riesz holds for functions of orbits; the horizontal part is what such a function
            # has.
            gradient = manifold.horizontal(x, gradient)
        size = max(float(manifold.norm(x, gradient)), 1e-300)
        if alike:
            slope = sum(_pairing(e, a) for e, a in zip(_parts(euclidean), _parts(ambient), strict=True))
            riesz = abs(float(_inner(manifold, x, gradient, v)) - slope) / size
            defects["riesz"] = _worse(defects.get("riesz", 0.0), riesz)
        tangent = manifold.projection(x, _embed(manifold, x, gradient))
        defects["tangency"] = _worse(defects["tangency"], manifold.norm(x, tangent - gradient) / size)
        if hasattr(manifold, "riemannian_to_euclidean_gradient"):
            again = manifold.euclidean_to_riemannian_gradient(
                x, manifold.riemannian_to_euclidean_gradient(x, v)
            )
            defects["riesz_inverse"] = _worse(defects.get("riesz_inverse", 0.0), manifold.norm(x, again - v))
    return defects


def check_action(quotient: QuotientManifold, *, seed: int = 0, scale: float = 0.5) -> dict[str, float]:
    """Measure the laws of a symmetry.

    Keys: `composition` (act twice = act by the product), `isometry` (of distances in the total space),
    `vertical` (is the derivative of the action), `momentum` (is its adjoint), `horizontal` (is orthogonal to
    orbits), `idempotence`, `invariance` (of the quotient distance under both gauges), `alignment` (the log
    of an aligned point is horizontal).
    """
    total, action = quotient.total, quotient.action
    generator = torch.Generator().manual_seed(seed)
    x = total.random_point()
    leading = tuple(x.shape[:-2])
    g, h = (action.random_element(leading, generator).to(x) for _ in range(2))
    algebra = action.random_algebra(leading, generator).to(x)
    v = quotient.random_tangent_vector(x)
    v = scale / quotient.norm(x, v) * v
    y = total.exp(x, v)
    vector = total.random_tangent_vector(x)

    def act(point: Tensor, element: Tensor) -> Tensor:
        return action.act(total, point, element)

    def size(tensor: Tensor) -> float:
        return float(torch.linalg.vector_norm(tensor))

    twice = act(act(x, g), h)
    vertical = action.vertical(total, x, algebra)
    step = 1e-5
    difference = (
        act(x, action.exponential(step * algebra)) - act(x, action.exponential(-step * algebra))
    ) / (2 * step)
    pairing = total.inner_products(x, vector, vertical)
    adjoint = (action.momentum(total, x, vector) * algebra).sum(dim=(-2, -1))
    horizontal = quotient.horizontal(x, vector)
    aligned = quotient.align(act(y, g), to=x)
    log = total.logarithm(x, aligned).tangent
    along = total.norm(x, log - quotient.horizontal(x, log))
    apart = total.dist(x, y)
    defects = {
        "composition": size(twice - act(x, action.compose(g, h))) / size(twice),
        "isometry": _relative(total.dist(act(x, g), act(y, g)), apart, apart),
        "vertical": _ratio(size(difference - vertical), size(vertical)),
        "momentum": _ratio(size(pairing - adjoint), size(pairing)),
        "horizontal": _ratio(total.inner_product(x, horizontal, vertical), total.norm(x, vertical)),
        "idempotence": float(total.norm(x, quotient.horizontal(x, horizontal) - horizontal)),
        "invariance": _relative(quotient.dist(act(x, h), act(y, g)), quotient.dist(x, y), apart),
        "alignment": float(along) / float(apart),
    }
    return {key: _worse(0.0, value) for key, value in defects.items()}


def check_gradient(problem: Problem, *, point: Any = None, tangent_vector: Any = None) -> float:
    """Return the order of the error of a problem's gradient: 2 where it is correct, 1 where it is not.

    The error is that of f(exp(t v)) - f - t ⟨grad, v⟩ (or along the retraction). Source: Boumal 2023, sec.
    4.8.
    """
    manifold = problem.manifold
    x, v = _draw(manifold, point, tangent_vector)
    value, slope = float(problem.cost(x)), float(_inner(manifold, x, problem.riemannian_gradient(x), v))
    errors = [float(problem.cost(_move(manifold, x, t * v))) - value - t * slope for t in _STEPS]
    return _slope(errors, abs(value))


def check_hessian(problem: Problem, *, point: Any = None, tangent_vector: Any = None) -> dict[str, float]:
    """Measure a problem's Hessian.

    Keys: `slope` (order of the error of the quadratic model along geodesics: 3 where it is correct; along a
    retraction of first order only at critical points), `symmetry` and `tangency` and `linearity` (relative
    defects). Source: Boumal 2023, sec. 6.8.
    """
    manifold = problem.manifold
    x, v = _draw(manifold, point, tangent_vector)
    w = manifold.random_tangent_vector(x)
    value, gradient = float(problem.cost(x)), problem.riemannian_gradient(x)
    slope = float(_inner(manifold, x, gradient, v))
    along_v, along_w = problem.riemannian_hessian(x, v), problem.riemannian_hessian(x, w)
    bend = float(_inner(manifold, x, along_v, v))
    errors = [
        float(problem.cost(_move(manifold, x, t * v))) - value - t * slope - t**2 * bend / 2 for t in _STEPS
    ]
    size = float(manifold.norm(x, along_v)) + float(manifold.norm(x, along_w))
    both = problem.riemannian_hessian(x, 2 * v + w)
    tangent = manifold.projection(x, _embed(manifold, x, along_v))
    defects = {
        "symmetry": _relative(_inner(manifold, x, along_v, w), _inner(manifold, x, v, along_w), size),
        "linearity": float(manifold.norm(x, both - 2 * along_v - along_w)) / size,
        "tangency": float(manifold.norm(x, tangent - along_v)) / size,
    }
    return {"slope": _slope(errors, abs(value))} | {
        key: _worse(0.0, defect) for key, defect in defects.items()
    }


def check_retraction(manifold: Manifold, *, point: Any = None, tangent_vector: Any = None) -> float:
    """Return the order of the distance between retraction and geodesic: 2 for first order, 3 for second, inf
    for exp.

    Needs `exp` and, where points are not compared entry by entry, nothing else. Source: Boumal 2023, sec.
    5.10.
    """
    x, v = _draw(manifold, point, tangent_vector)
    errors = []
    for t in _STEPS:
        ends = manifold.retraction(x, t * v), manifold.exp(x, t * v)
        apart = [float((abs(a - b) ** 2).sum()) for a, b in zip(*map(_parts, ends), strict=True)]
        errors.append(float(np.sqrt(sum(apart))))
    return _slope(errors, 1.0)


def _choose_point(manifold: Manifold, point: Any) -> Any:
    """Return the point that was given, or a random one."""
    if point is None:
        return manifold.random_point()
    return point


def _draw(manifold: Manifold, point: Any, tangent_vector: Any) -> tuple[Any, Any]:
    x = _choose_point(manifold, point)
    if tangent_vector is None:
        return x, manifold.random_tangent_vector(x)
    return x, tangent_vector


def _move(manifold: Manifold, point: Any, vector: Any) -> Any:
    try:
        return manifold.exp(point, vector)
    except (NotImplementedError, AttributeError):
        return manifold.retraction(point, vector)


def _offers(manifold: Manifold, verb: str, *arguments: Any) -> bool:
    try:
        getattr(manifold, verb)(*arguments)
    except (NotImplementedError, AttributeError):
        return False
    return True


def _embed(manifold: Manifold, point: Any, vector: Any) -> Any:
    """Return the ambient vector of a tangent one: on Pymanopt's groups tangent vectors are elements of the
    algebra, but projection and Riesz want ambient ones.
    """
    if isinstance(manifold, TorchManifold):
        return vector
    try:
        return manifold.embedding(point, vector)
    except NotImplementedError:
        return vector


def _ambient_like(manifold: Manifold, like: Any) -> Any:
    if isinstance(manifold, TorchManifold):
        return manifold.random_ambient(like)
    return _draw_like(like, np.random.default_rng(0))


def _draw_like(like: Any, generator: np.random.Generator) -> Any:
    if isinstance(like, list | tuple):
        return [_draw_like(part, generator) for part in like]
    draw = generator.standard_normal(np.shape(like))
    if np.iscomplexobj(like):
        return draw + 1j * generator.standard_normal(np.shape(like))
    return draw


def _parts(point: Any) -> list[Any]:
    """Return the arrays of a point or vector: several on a product manifold."""
    return list(point) if isinstance(point, list | tuple) else [point]


def _rank(manifold: Manifold) -> int:
    x = manifold.random_point()
    rows = []
    for _ in range(manifold.dim + 5):
        parts = _parts(manifold.random_tangent_vector(x))
        flat = [
            v.flatten().double().cpu() if isinstance(v, Tensor) else torch.from_numpy(_reals(v))
            for v in parts
        ]
        rows.append(torch.cat(flat))
    return int(torch.linalg.matrix_rank(torch.stack(rows), rtol=1e-9))


def _reals(array: Any) -> NDArray[np.float64]:
    """Return the entries of an array as real numbers: real and imaginary parts, where there are."""
    flat = np.ravel(array)
    return np.concatenate((flat.real, flat.imag)) if np.iscomplexobj(flat) else flat


def _inner(manifold: Manifold, point: Any, a: Any, b: Any) -> Any:
    """Return the metric; Pymanopt's group of unitary matrices says it as a complex number."""
    return np.real(manifold.inner_product(point, a, b))


def _pairing(euclidean: Any, vector: Any) -> float:
    """Return the sum of the products of entries, of complex ones as pairs of real ones."""
    if isinstance(vector, Tensor):
        return float((euclidean * vector).sum())
    return float(np.real((np.conj(euclidean) * vector).sum()))


def _worse(defect: float, other: Any) -> float:
    """Return the larger of two defects; NaN is the worst, and `max` would pass over it."""
    return float("inf") if np.isnan(other) else max(defect, float(other))


def _relative(a: Any, b: Any, size: float) -> float:
    return abs(float(a) - float(b)) / float(size)


def _ratio(a: Any, b: Any) -> float:
    """Return |a| / |b|; a discrete group has no directions, and 0 / 0 is no defect."""
    return abs(float(a)) / abs(float(b)) if float(a) else 0.0


def _slope(errors: list[float], size: float) -> float:
    """Fit the order of an error in the step where it stands clear of round-off: inf where it never does, 0
    where it is not a number.
    """
    sizes = np.abs(np.asarray(errors))
    if np.isnan(sizes).any():
        return 0.0
    clear = sizes > 1e4 * np.finfo(float).eps * max(size, 1e-12)
    if clear.sum() < 3:
        return float("inf")
    return float(np.polyfit(np.log(_STEPS[clear]), np.log(sizes[clear]), 1)[0])
