"""The laws of manifolds, metrics, symmetries and derivatives, as numbers.

Every check but `check_action`, which is for our quotients, works on any Pymanopt manifold, numpy or torch. It
draws through the manifold's own generator (numpy manifolds: the global one, so seed it), prints and plots
nothing, and returns defects (relative; round-off when the law holds) and slopes (the order of an error in the
step: 2 for a correct gradient, 3 for a correct Hessian). `riemerge.laws.judge` compares defects with the
tolerance of each law, and says who needs it:

    defects = check_manifold(manifold)
    assert all(finding.verdict != "fails" for finding in judge("manifold", defects)), defects
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pymanopt import Problem, manifolds
from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

from riemerge.manifolds.base import GeodesicManifold, TorchManifold, host_array
from riemerge.manifolds.guests.guarded import parts
from riemerge.manifolds.quotient import QuotientManifold

# Steps of Taylor tests: short enough for the leading term, long enough to stay clear of round-off.
_STEPS = np.logspace(-3.5, -1.5, 9)
# Manifolds whose points are representatives: ours, and Pymanopt's.
_QUOTIENTS = QuotientManifold | manifolds.PSDFixedRank | manifolds.PSDFixedRankComplex

Defects: TypeAlias = Iterator[tuple[str, Any]]
"""Laws by their key, each with a relative defect."""


def check_manifold(
    manifold: Manifold, *, scale: float = 0.5, pairs: int = 2, point: Any = None
) -> dict[str, float]:
    """Measure the laws of points and geodesics; verbs that a manifold does not offer are left out.

    The keys are those of `laws.LAWS["manifold"]`, which says each law in words. Each value is the worst
    defect over a few random points and tangent vectors of length `scale`. Vectors are compared by their
    entries, since a metric may be blind to a normal part. Dimensions are counted up to 200.

    Args:
        manifold: Any Pymanopt manifold.
        scale: Length of the geodesics; inside the injectivity radius.
        pairs: How many draws.
        point: The point to check at, instead of random ones: an ill-conditioned one, say.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # Pymanopt's circle casts complex numbers to real ones
        return _gather(_check_manifold(manifold, scale, pairs, point))


def _check_manifold(manifold: Manifold, scale: float, pairs: int, point: Any) -> Defects:
    """Measure what concerns each class of manifolds that this one is of."""
    for _ in range(pairs):
        x, u, v = _draw(manifold, point, scale)
        yield from _check_vectors(manifold, x, u, v, scale)
        if _offers(manifold, "exp", x, u):
            yield from _check_geodesics(manifold, x, u, v, scale)
        if isinstance(manifold, TorchManifold):
            yield from _check_connection(manifold, x, u, scale)
    if manifold.dim <= 200:
        yield "dimension", abs(_rank(manifold) - manifold.dim)
    if isinstance(manifold, GeodesicManifold):
        x, u, v = _draw(manifold, point, scale)
        yield from _check_modules(manifold, x, u)
        if _offers(manifold, "geodesic", x, u) and _offers(manifold, "logarithm", x, x):
            yield from _check_points(manifold, x, u, v, scale)


def _check_vectors(manifold: Manifold, x: Any, u: Any, v: Any, scale: float) -> Defects:
    """Measure the projection, and the metric at one point."""
    yield "projection", _miss(manifold.projection(x, _embed(manifold, x, u)), u)
    yield "symmetry", _relative(_inner(manifold, x, u, v), _inner(manifold, x, v, u), scale**2)
    both = _inner(manifold, x, u, v) + _inner(manifold, x, v, v)
    yield "linearity", _relative(_inner(manifold, x, u + v, v), both, scale**2)
    yield "positivity", max(0.0, -float(_inner(manifold, x, u, u)))
    yield "norm", _relative(manifold.norm(x, u) ** 2, _inner(manifold, x, u, u), scale**2)


def _check_geodesics(manifold: Manifold, x: Any, u: Any, v: Any, scale: float) -> Defects:
    """Measure what exp, log, dist, pair_mean, transport and the retraction have to do with each other."""
    y = manifold.exp(x, u)
    yield "retraction", max(0.0, 2 - check_retraction(manifold, point=x, tangent_vector=u))
    if _offers(manifold, "log", x, y):
        back = manifold.log(x, y)
        yield "log_exp", _miss(back, u)
        yield "exp_log", manifold.norm(y, manifold.log(y, manifold.exp(x, back))) / scale
    if _offers(manifold, "dist", x, y):
        yield "length", _relative(manifold.dist(x, y), scale, scale)
        yield "dist_symmetry", _relative(manifold.dist(x, y), manifold.dist(y, x), scale)
        if _offers(manifold, "log", y, x):
            # The first variation of d(x, .)² / 2 at y is that of the radius alone: -⟨log_y x, w⟩.
            w = manifold.random_tangent_vector(y)
            slope = _differ(lambda t: manifold.dist(x, manifold.exp(y, t * w)) ** 2 / 2, 1e-4 * scale)
            yield "gauss", _relative(slope, -_inner(manifold, y, manifold.log(y, x), w), scale)
        if _offers(manifold, "pair_mean", x, y):
            middle = manifold.pair_mean(x, y)
            yield "pair_mean", _relative(manifold.dist(x, middle), manifold.dist(middle, y), scale)
    if _offers(manifold, "transport", x, y, v):
        moved = manifold.transport(x, y, v)
        yield "transport", _miss(manifold.projection(y, _embed(manifold, y, moved)), moved)
        yield "isometry", _relative(manifold.norm(y, moved), scale, scale)


def _check_connection(manifold: TorchManifold, x: Tensor, u: Tensor, scale: float) -> Defects:
    """Measure whether the covariant derivative is that of the metric: without torsion and compatible.

    Only one connection is both (Levi-Civita). The fields are projections of entries that vary with the point.
    """

    def field(entries: Tensor) -> Callable[[Tensor], Tensor]:
        entries = scale / manifold.norm(x, manifold.projection(x, entries)) * entries
        return lambda point: manifold.projection(point, entries * (1 + point - x))

    def differ(function: Callable[[Tensor], Any], direction: Tensor) -> Any:
        return _differ(lambda t: function(manifold.retraction(x, t * direction)), 1e-5)

    def differentiate(direction: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return manifold.covariant_derivative(x, direction, function(x), differ(function, direction))

    first, second = (field(manifold.random_ambient(x)) for _ in range(2))
    y, z = first(x), second(x)
    torsion = differentiate(y, second) - differentiate(z, first) - differ(second, y) + differ(first, z)
    # On a quotient the bracket of horizontal fields has a vertical part, which no connection there knows.
    yield "torsion", manifold.norm(x, manifold.projection(x, torsion)) / scale**2
    slope = differ(lambda point: manifold.inner_product(point, first(point), second(point)), u)
    one, two = (differentiate(u, function) for function in (first, second))
    expected = manifold.inner_product(x, one, z) + manifold.inner_product(x, y, two)
    yield "compatibility", _relative(slope, expected, scale**3)
    yield "derivative", manifold.norm(x, manifold.projection(x, one) - one) / scale**2


def _check_points(manifold: GeodesicManifold, x: Tensor, u: Tensor, v: Tensor, scale: float) -> Defects:
    """Measure the geodesic's velocity, flagged logarithms, membership, the start and the reduction."""
    y, z = manifold.exp(x, u), manifold.exp(x, v)
    middle, velocity = manifold.geodesic(x, u / 2)
    yield "velocity", _apart(manifold.exp(middle, velocity), y) / _apart(x, y)
    if not bool(manifold.logarithm(x, y).valid.all()):
        yield "valid", np.inf
    for other in (y, manifold.random_point().to(x), -x):
        if bool(manifold.feasible(other).all()):
            yield "valid", _lie(manifold, x, other)
    noise = 10 * manifold.random_ambient(x)
    for outside in (x * torch.nan, x + torch.inf, -x, 3 * x, x + noise):
        yield "feasible", _acceptance(manifold, torch.cat((outside[:1], x[1:])))
    points, copies = torch.stack((x, y, z)), torch.stack((x, x, x))
    weights = points.new_tensor((0.5, 0.3, 0.2), dtype=torch.float64)[:, None].expand(3, manifold.k)
    start = manifold.extrinsic_mean(points, weights)
    yield "start", _acceptance(manifold, start, needed=True)
    yield "start", manifold.dist(x, manifold.extrinsic_mean(copies, weights)) / scale
    if isinstance(manifold, QuotientManifold):
        elements = manifold.action.random_element(points.shape[:-2], torch.Generator().manual_seed(0))
        turned = manifold.action.act(manifold.total, points, elements.to(x))
        yield "start", manifold.dist(start, manifold.extrinsic_mean(turned, weights)) / scale
    small = manifold.reduce(points[:2])
    yield "reduction", _apart(torch.stack([small.lift(point) for point in small.points]), points[:2])
    yield "reduction", _relative(small.manifold.dist(*small.points), manifold.dist(x, y), scale)
    half = small.lift(small.manifold.pair_mean(*small.points))
    yield "reduction", manifold.dist(half, manifold.pair_mean(x, y)) / scale


def _check_modules(manifold: GeodesicManifold, x: Tensor, u: Tensor) -> Defects:
    """Measure whether `with_modules` keeps the set and the metric of one module."""
    k = manifold.k + 1
    other = manifold.with_modules(k)
    drawn, expected = other.random_point(), (k, manifold.dim * k, manifold.point_shape, x.dtype, x.device)
    if (other.k, other.dim * manifold.k, other.point_shape, drawn.dtype, drawn.device) != expected:
        yield "modules", np.inf
        return
    more, vector = torch.cat((x, x[:1])), torch.cat((u, u[:1]))
    squared = other.inner_products(more, vector, vector)
    yield "modules", _miss(squared[:-1], manifold.inner_products(x, u, u))
    yield "modules", _miss(other.retraction(more, vector)[:-1], manifold.retraction(x, u))


def _lie(manifold: GeodesicManifold, a: Tensor, b: Tensor) -> float:
    """Return by how much exp(log_a b) misses b where the logarithm says that it does not."""
    if isinstance(manifold, QuotientManifold):  # whose logarithms are those of the total space
        manifold = manifold.total
    log = manifold.logarithm(a, b)
    reached = manifold.exp(a, log.tangent)
    miss = torch.linalg.matrix_norm(reached - b) / (1 + torch.linalg.matrix_norm(b))
    # Where a point has several arrays of entries, as a subspace has frames, only the manifold knows.
    miss = torch.fmin(miss, manifold.dists(reached, b))
    return reduce(_worse, miss[log.valid].tolist(), 0.0)


def _acceptance(manifold: GeodesicManifold, point: Tensor, *, needed: bool = False) -> float:
    """Return how far a point that is accepted is from one: there, log(exp(v)) is v.

    Args:
        manifold: The manifold whose `feasible` is asked.
        point: Entries, which may be out of the set.
        needed: Whether the point must be in the set: to refuse it is the worst defect.
    """
    accepted = manifold.feasible(point)
    if not bool(accepted.all()):
        return np.inf if needed or not bool(accepted[1:].all()) else 0.0
    try:
        vector = 0.1 * manifold.random_tangent_vector(point)
        log = manifold.logarithm(point, manifold.exp(point, vector))
    except (RuntimeError, ArithmeticError):  # of an eigensolver, on what is not finite
        return np.inf
    return _miss(log.tangent, vector) if bool(log.valid.all()) else np.inf


def check_metric(manifold: Manifold, *, draws: int = 4, point: Any = None) -> dict[str, float]:
    """Measure Riesz: <gradient(E), v> = sum(E * v) for random E and tangent v, and that the gradient is
    tangent.

    Keys: `riesz` (left out where points are the factors of a matrix, as on Pymanopt's `FixedRankEmbedded`),
    `tangency`, in entries, since a metric may be blind to a normal part; on our manifolds also
    `riesz_inverse`.
    """
    return _gather(law for _ in range(draws) for law in _check_metric(manifold, point))


def _check_metric(manifold: Manifold, point: Any) -> Defects:
    x, v = _choose(manifold, point, None)
    ambient, euclidean = _embed(manifold, x, v), _ambient_like(manifold, x)
    gradient = manifold.euclidean_to_riemannian_gradient(x, euclidean)
    if isinstance(manifold, _QUOTIENTS):
        # On a quotient Riesz holds for functions of orbits; the horizontal part is what such a function has.
        gradient = manifold.projection(x, gradient)
    size = max(float(manifold.norm(x, gradient)), 1e-300)
    # Where a point is the factors of a matrix, only the manifold knows the velocity of its entries.
    if [np.shape(a) for a in parts(ambient)] == [np.shape(a) for a in parts(x)]:
        slope = _entries(euclidean) @ _entries(ambient)
        yield "riesz", _relative(_inner(manifold, x, gradient, v), slope, size)
    yield "tangency", _miss(manifold.projection(x, _embed(manifold, x, gradient)), gradient)
    if isinstance(manifold, TorchManifold):
        lowered = manifold.riemannian_to_euclidean_gradient(x, v)
        yield "riesz_inverse", manifold.norm(x, manifold.euclidean_to_riemannian_gradient(x, lowered) - v)


def check_action(quotient: QuotientManifold, *, seed: int = 0, scale: float = 0.5) -> dict[str, float]:
    """Measure the laws of a symmetry.

    The keys are those of `laws.LAWS["symmetry"]`, which says each law in words.
    """
    total, action = quotient.total, quotient.action
    generator = torch.Generator().manual_seed(seed)
    x, v, _ = _draw(quotient, None, scale)
    g, h = (action.random_element(x.shape[:-2], generator).to(x) for _ in range(2))
    algebra = action.random_algebra(x.shape[:-2], generator).to(x)
    y, vector = total.exp(x, v), total.random_tangent_vector(x)

    def act(point: Tensor, element: Tensor) -> Tensor:
        return action.act(total, point, element)

    def size(tensor: Tensor) -> float:
        return float(torch.linalg.vector_norm(tensor))

    def flow(time: float) -> Tensor:
        return action.exponential(time * algebra)

    twice, along = act(act(x, g), h), act(act(x, flow(0.5)), flow(1.0))
    vertical = action.vertical(total, x, algebra)
    difference = _differ(lambda time: act(x, flow(time)), 1e-5)
    pairing = total.inner_products(x, vector, vertical)
    adjoint = (action.momentum(total, x, vector) * algebra).sum(dim=(-2, -1))
    horizontal = quotient.horizontal(x, vector)
    aligned = quotient.align(act(y, g), to=x)
    log = total.logarithm(x, aligned).tangent
    leaning = total.norm(x, log - quotient.horizontal(x, log))
    apart = total.dist(x, y)
    laws = {
        "composition": _miss(act(x, action.compose(g, h)), twice),
        "subgroup": _miss(along, act(x, flow(1.5))),
        "isometry": _relative(total.dist(act(x, g), act(y, g)), apart, apart),
        "vertical": _ratio(size(difference - vertical), size(vertical)),
        "momentum": _ratio(size(pairing - adjoint), size(pairing)),
        "horizontal": _ratio(total.inner_product(x, horizontal, vertical), total.norm(x, vertical)),
        "idempotence": float(total.norm(x, quotient.horizontal(x, horizontal) - horizontal)),
        "invariance": _relative(quotient.dist(act(x, h), act(y, g)), quotient.dist(x, y), apart),
        "alignment": float(leaning) / float(apart),
    }
    return _gather(laws.items())


def check_gradient(problem: Problem, *, point: Any = None, tangent_vector: Any = None) -> float:
    """Return the order of the error of a problem's gradient: 2 where it is correct, 1 where it is not.

    The error is that of f(exp(t v)) - f - t ⟨grad, v⟩ (or along the retraction). Source: Boumal 2023, sec.
    4.8.
    """
    manifold = problem.manifold
    x, v = _choose(manifold, point, tangent_vector)
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
    x, v = _choose(manifold, point, tangent_vector)
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
    laws = {
        "slope": _slope(errors, abs(value)),
        "symmetry": _relative(_inner(manifold, x, along_v, w), _inner(manifold, x, v, along_w), size),
        "linearity": float(manifold.norm(x, both - 2 * along_v - along_w)) / size,
        "tangency": float(manifold.norm(x, tangent - along_v)) / size,
    }
    return _gather(laws.items())


def check_retraction(manifold: Manifold, *, point: Any = None, tangent_vector: Any = None) -> float:
    """Return the order of the distance between retraction and geodesic: 2 for first order, 3 for second, inf
    for exp.

    Needs `exp` and, where points are not compared entry by entry, nothing else. Source: Boumal 2023, sec.
    5.10.
    """
    x, v = _choose(manifold, point, tangent_vector)
    errors = [_apart(manifold.retraction(x, t * v), manifold.exp(x, t * v)) for t in _STEPS]
    return _slope(errors, 1.0)


def _choose(manifold: Manifold, point: Any, tangent_vector: Any) -> tuple[Any, Any]:
    """Return the point and the tangent vector that were given, or random ones."""
    x = manifold.random_point() if point is None else point
    return x, manifold.random_tangent_vector(x) if tangent_vector is None else tangent_vector


def _draw(manifold: Manifold, point: Any, scale: float) -> tuple[Any, Any, Any]:
    """Return a point and two tangent vectors of a length there."""
    x, u = _choose(manifold, point, None)
    v = manifold.random_tangent_vector(x)
    return x, scale / manifold.norm(x, u) * u, scale / manifold.norm(x, v) * v


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
    if isinstance(manifold, manifolds.Product):
        return [_embed(*factor) for factor in zip(manifold.manifolds, point, vector, strict=True)]
    try:
        return manifold.embedding(point, vector)
    except NotImplementedError:
        return vector


def _ambient_like(manifold: Manifold, like: Any) -> Any:
    """Draw entries in the layout of a point."""
    if isinstance(manifold, TorchManifold):
        return manifold.random_ambient(like)
    if isinstance(like, list | tuple):
        return [_ambient_like(manifold, part) for part in like]
    real, imaginary = np.random.standard_normal((2, *np.shape(like)))  # noqa: NPY002 - as Pymanopt draws
    return real + 1j * imaginary if np.iscomplexobj(like) else real


def _rank(manifold: Manifold) -> int:
    x = manifold.random_point()
    rows = [_entries(manifold.random_tangent_vector(x)) for _ in range(manifold.dim + 5)]
    return int(np.linalg.matrix_rank(np.stack(rows), rtol=1e-9))


def _entries(point: Any) -> NDArray[np.float64]:
    """Return the entries of a point or vector as real numbers: real and imaginary parts, where there are."""
    if isinstance(point, Tensor):
        return host_array(point.flatten())
    flat = np.concatenate([np.ravel(part) for part in parts(point)])
    return np.concatenate((flat.real, flat.imag)) if np.iscomplexobj(flat) else flat


def _inner(manifold: Manifold, point: Any, a: Any, b: Any) -> Any:
    """Return the metric; Pymanopt's group of unitary matrices says it as a complex number."""
    return np.real(manifold.inner_product(point, a, b))


def _differ(function: Callable[[float], Any], step: float) -> Any:
    """Return the derivative at 0 by a central difference."""
    return (function(step) - function(-step)) / (2 * step)


def _apart(a: Any, b: Any) -> float:
    """Return the distance of two points or vectors by their entries."""
    gaps = [_entries(x - y) for x, y in zip(parts(a), parts(b), strict=True)]
    return float(np.linalg.norm(np.concatenate(gaps)))


def _miss(a: Any, b: Any) -> float:
    """Return the distance of two vectors by their entries, relative to the second."""
    return _apart(a, b) / max(float(np.linalg.norm(_entries(b))), 1e-300)


def _gather(laws: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """Return the worst defect of each law."""
    defects: dict[str, float] = {}
    for key, defect in laws:
        defects[key] = _worse(defects.get(key, 0.0), defect)
    return defects


def _worse(defect: float, other: Any) -> float:
    """Return the larger of two defects; NaN is the worst, and `max` would pass over it."""
    return float("inf") if np.isnan(other) else max(defect, float(other))


def _relative(a: Any, b: Any, size: float) -> float:
    return abs(float(a) - float(b)) / float(size)


def _ratio(a: Any, b: Any) -> float:
    """Return |a| / |b|; a discrete group has no directions, and 0 / 0 is no defect."""
    if not float(a):
        return 0.0
    return float(np.divide(abs(float(a)), abs(float(b))))


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
