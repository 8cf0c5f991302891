"""Pymanopt's own tests of manifolds and optimizers, restated, on our manifolds and solvers.

Source: the test classes of Pymanopt 2.2.1 (`tests/manifolds/test_*.py`, `tests/optimizers/test_*.py` of its
source distribution, which its wheel leaves out). Each law is asserted of our manifold beside Pymanopt's, at
points that Pymanopt draws, for one module and for several. What differs is seen to, for the reason stated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pymanopt
import pytest
import torch
from numpy.typing import NDArray
from pymanopt import manifolds as theirs
from pymanopt import optimizers
from pymanopt.manifolds.manifold import Manifold
from scipy.linalg import eigvalsh, logm
from torch import Tensor

from riemerge import manifolds as ours
from riemerge.manifolds import GeodesicManifold, torch_function
from riemerge.manifolds.checks import check_gradient
from riemerge.solvers import LBFGSOptimizer

pytestmark = pytest.mark.oracle

Array = NDArray[np.float64]


class Pair(NamedTuple):
    """One of our manifolds and Pymanopt's, whose points are the same entries in another layout."""

    ours: GeodesicManifold
    theirs: Manifold

    def into(self, array: Any) -> Tensor:
        """A point or vector of Pymanopt's as ours."""
        if isinstance(self.ours, ours.Product):
            parts = zip(array, self.ours.factors, strict=True)
            return self.ours.join(*(as_tensor(part, factor) for part, factor in parts))
        return as_tensor(array, self.ours)

    def agree(self, tensor: Tensor, array: Any) -> None:
        torch.testing.assert_close(tensor, self.into(array), rtol=1e-9, atol=1e-9)

    def draw(self) -> tuple[Any, Any, Any, Any]:
        """Two points of Pymanopt's and two tangent vectors at the first."""
        x, y = (self.theirs.random_point() for _ in range(2))
        u, v = (self.theirs.random_tangent_vector(x) for _ in range(2))
        return x, y, u, v


def as_tensor(array: Array, manifold: GeodesicManifold) -> Tensor:
    return torch.from_numpy(np.asarray(array)).reshape(manifold.k, *manifold.point_shape)


def draw_ambient(like: Any) -> Any:
    if isinstance(like, list):
        return [draw_ambient(part) for part in like]
    return np.random.normal(size=like.shape)  # noqa: NPY002


def dim(pair: Pair) -> None:
    assert pair.ours.dim == pair.theirs.dim


def typical_dist(pair: Pair) -> None:
    assert pair.ours.typical_dist == pytest.approx(pair.theirs.typical_dist)


def dist(pair: Pair) -> None:
    x, _, u, v = pair.draw()
    a, b, c = map(pair.into, (x, pair.theirs.retraction(x, u), pair.theirs.retraction(x, v)))
    assert pair.ours.dist(a, a) == pytest.approx(0, abs=1e-9)
    assert pair.ours.dist(a, b) == pytest.approx(pair.ours.dist(b, a))
    assert pair.ours.dist(a, b) <= pair.ours.dist(a, c) + pair.ours.dist(c, b)
    assert pair.ours.dist(a, b) == pytest.approx(pair.ours.norm(a, pair.ours.log(a, b)))


def dist_of_theirs(pair: Pair) -> None:
    x, y = (pair.theirs.random_point() for _ in range(2))
    found = pair.ours.dist(pair.into(x), pair.into(y))
    assert found == pytest.approx(float(pair.theirs.dist(x, y)), rel=1e-9)


def inner_product(pair: Pair) -> None:
    x, _, u, v = pair.draw()
    found = pair.ours.inner_product(*map(pair.into, (x, u, v)))
    assert found == pytest.approx(float(pair.theirs.inner_product(x, u, v)), abs=1e-12)


def norm(pair: Pair) -> None:
    x, _, u, _ = pair.draw()
    assert pair.ours.norm(pair.into(x), pair.into(u)) == pytest.approx(float(pair.theirs.norm(x, u)))


def projection(pair: Pair) -> None:
    x, _, u, _ = pair.draw()
    ambient = draw_ambient(x)
    projected = pair.ours.projection(pair.into(x), pair.into(ambient))
    pair.agree(projected, pair.theirs.projection(x, ambient))
    torch.testing.assert_close(pair.ours.projection(pair.into(x), projected), projected)
    pair.agree(pair.ours.projection(pair.into(x), pair.into(u)), u)


def euclidean_to_riemannian_gradient(pair: Pair) -> None:
    x, *_ = pair.draw()
    ambient = draw_ambient(x)
    found = pair.ours.euclidean_to_riemannian_gradient(pair.into(x), pair.into(ambient))
    pair.agree(found, pair.theirs.euclidean_to_riemannian_gradient(x, ambient))


def euclidean_to_riemannian_hessian(pair: Pair) -> None:
    x, _, u, _ = pair.draw()
    gradient, hessian = (draw_ambient(x) for _ in range(2))
    found = pair.ours.euclidean_to_riemannian_hessian(*map(pair.into, (x, gradient, hessian, u)))
    pair.agree(found, pair.theirs.euclidean_to_riemannian_hessian(x, gradient, hessian, u))


def first_order_approximation(pair: Pair) -> None:
    """Their check of a gradient, by a cost that has one: the squared distance of entries."""
    other = pair.into(pair.theirs.random_point())

    @torch_function(pair.ours)
    def cost(point: Tensor) -> Tensor:
        return (point - other).square().sum()

    assert check_gradient(pymanopt.Problem(pair.ours, cost)) == pytest.approx(2, abs=5e-2)


def retraction(pair: Pair) -> None:
    x, _, u, _ = pair.draw()
    a, v = pair.into(x), pair.into(u)
    assert bool(pair.ours.feasible(pair.ours.retraction(a, v)).all())
    torch.testing.assert_close(pair.ours.retraction(a, 1e-6 * v), a + 1e-6 * v, rtol=0, atol=1e-10)


def exp(pair: Pair) -> None:
    x, _, u, _ = pair.draw()
    a, v = pair.into(x), pair.into(u)
    arrival = pair.ours.exp(a, v)
    assert bool(pair.ours.feasible(arrival).all())
    torch.testing.assert_close(pair.ours.exp(a, 1e-6 * v), a + 1e-6 * v, rtol=0, atol=1e-10)
    pair.agree(arrival, pair.theirs.exp(x, u))


def exp_log_inverse(pair: Pair) -> None:
    x, y, *_ = pair.draw()
    a, b = pair.into(x), pair.into(y)
    reached = pair.ours.exp(a, pair.ours.log(a, b))
    assert pair.ours.dist(reached, b) == pytest.approx(0, abs=1e-9)


def log_exp_inverse(pair: Pair) -> None:
    x, _, u, _ = pair.draw()
    a, v = pair.into(x), pair.into(u)
    torch.testing.assert_close(pair.ours.log(a, pair.ours.exp(a, v)), v, rtol=1e-9, atol=1e-9)


def pair_mean(pair: Pair) -> None:
    a, b = (pair.into(pair.theirs.random_point()) for _ in range(2))
    middle = pair.ours.pair_mean(a, b)
    assert pair.ours.dist(a, middle) == pytest.approx(pair.ours.dist(middle, b))


def random_point(pair: Pair) -> None:
    a, b = (pair.ours.random_point() for _ in range(2))
    assert a.shape == pair.into(pair.theirs.random_point()).shape
    assert bool(pair.ours.feasible(a).all())
    assert float((a - b).norm()) > 1e-3


def random_tangent_vector(pair: Pair) -> None:
    a = pair.ours.random_point()
    u, v = (pair.ours.random_tangent_vector(a) for _ in range(2))
    torch.testing.assert_close(pair.ours.projection(a, u), u)
    assert pair.ours.norm(a, u) == pytest.approx(1)
    assert float((u - v).norm()) > 1e-3


def zero_vector(pair: Pair) -> None:
    a = pair.ours.random_point()
    assert pair.ours.norm(a, pair.ours.zero_vector(a)) == 0


def transport(pair: Pair) -> None:
    x, y, u, _ = pair.draw()
    found = pair.ours.transport(pair.into(x), pair.into(y), pair.into(u))
    torch.testing.assert_close(pair.ours.projection(pair.into(y), found), found)
    pair.agree(found, pair.theirs.transport(x, y, u))


LAWS: tuple[Callable[[Pair], None], ...] = (
    *(dim, typical_dist, dist, dist_of_theirs, inner_product, norm, projection, transport),
    *(euclidean_to_riemannian_gradient, euclidean_to_riemannian_hessian, first_order_approximation),
    *(retraction, exp, exp_log_inverse, log_exp_inverse, pair_mean),
    *(random_point, random_tangent_vector, zero_vector),
)
PAIRS: dict[str, Callable[[], Pair]] = {
    "Stiefel": lambda: Pair(ours.Stiefel(8, 3, beta=1.0), theirs.Stiefel(8, 3)),
    "Stiefel, three": lambda: Pair(ours.Stiefel(8, 3, beta=1.0, k=3), theirs.Stiefel(8, 3, k=3)),
    "Stiefel, canonical": lambda: Pair(ours.Stiefel(8, 3), theirs.Stiefel(8, 3)),
    "positive definite": lambda: Pair(ours.SymmetricPositiveDefinite(5), theirs.SymmetricPositiveDefinite(5)),
    "positive definite, three": lambda: Pair(
        ours.SymmetricPositiveDefinite(4, k=3), theirs.SymmetricPositiveDefinite(4, k=3)
    ),
    "sphere": lambda: Pair(ours.Sphere(6, 4), theirs.Sphere(6, 4)),
    "Grassmann": lambda: Pair(ours.Grassmann(7, 2), theirs.Grassmann(7, 2)),
    "Grassmann, three": lambda: Pair(ours.Grassmann(7, 2, k=3), theirs.Grassmann(7, 2, k=3)),
    "Euclidean": lambda: Pair(ours.Euclidean(5, 4), theirs.Euclidean(5, 4)),
    "product": lambda: Pair(
        ours.Product(ours.Euclidean(5, 4), ours.Sphere(6, 1)),
        theirs.Product([theirs.Euclidean(5, 4), theirs.Sphere(6)]),
    ),
}
FRAMES = ("Stiefel", "Stiefel, three", "Stiefel, canonical")
DEFINITE = ("positive definite", "positive definite, three")
CURVED = (*FRAMES, "sphere", "Grassmann", "Grassmann, three", "product")
# Laws that some of ours break, and why that is right.
DIFFERS: dict[str, dict[str, tuple[str, ...]]] = {
    "typical_dist": {"ours is √dim everywhere: a scale for radii, not a diameter": CURVED},
    "dist_of_theirs": {"Pymanopt has no distance of frames": FRAMES},
    "transport": {"ours keeps lengths, theirs projects or copies": (*CURVED, *DEFINITE)},
    **{
        law: {"the canonical metric is another": ("Stiefel, canonical",)}
        for law in (
            *("inner_product", "norm", "exp"),
            *("euclidean_to_riemannian_gradient", "euclidean_to_riemannian_hessian"),
        )
    },
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: str(law.__name__))
@pytest.mark.parametrize("name", PAIRS)
def test_a_law_of_pymanopts_tests(name: str, law: Callable[[Pair], None]) -> None:
    np.random.seed(0)  # noqa: NPY002 - Pymanopt draws from the global generator
    pair = PAIRS[name]()
    reasons = DIFFERS.get(law.__name__, {})
    if any(name in names for names in reasons.values()):
        with pytest.raises((AssertionError, NotImplementedError)):
            law(pair)
    else:
        law(pair)


def test_what_is_known_of_distances_of_positive_definite_matrices() -> None:
    """Bhatia 2007, ch. 6: eq. 6.14, 6.8 and 6.12, and invariance under congruences and inversion."""
    manifold = ours.SymmetricPositiveDefinite(6, seed=3)
    x, y = (manifold.random_point() for _ in range(2))
    apart = float(manifold.dist(x, y))
    a, b = x[0].numpy(), y[0].numpy()
    assert apart == pytest.approx(np.linalg.norm(np.log(eigvalsh(a, b))))
    assert apart >= np.linalg.norm(logm(a) - logm(b))
    assert manifold.dist(y.inverse(), x.inverse()) == pytest.approx(apart)
    congruence = manifold.random_ambient(x)
    moved = [congruence @ point @ congruence.mT for point in (x, y)]
    assert manifold.dist(*moved) == pytest.approx(apart)
    along = manifold.exp(x, 0.3 * manifold.log(x, y))
    assert manifold.dist(x, along) == pytest.approx(0.3 * apart)


def rayleigh(size: int = 32) -> tuple[pymanopt.Problem, Tensor]:
    """Minus the Rayleigh quotient of a symmetric matrix on our sphere, and its dominant eigenvector."""
    sphere = ours.Sphere(size, 1, seed=5)
    entries = sphere.random_ambient(torch.zeros(size, size, dtype=torch.float64))
    matrix = (entries + entries.mT) / 2

    @torch_function(sphere)
    def cost(point: Tensor) -> Tensor:
        return -(point.mT @ matrix @ point).sum()

    return pymanopt.Problem(sphere, cost), torch.linalg.eigh(matrix).eigenvectors[:, -1]


BETAS = ("FletcherReeves", "HagerZhang", "HestenesStiefel", "PolakRibiere", "LiuStorey")
ARRIVE: dict[str, Callable[..., Any]] = {
    **{beta: partial(optimizers.ConjugateGradient, beta_rule=beta) for beta in BETAS},
    "trust regions": optimizers.TrustRegions,
    "steepest descent": partial(optimizers.SteepestDescent, max_iterations=2000),
    "our L-BFGS": LBFGSOptimizer,
}


@pytest.mark.parametrize("name", ARRIVE)
def test_an_optimizer_finds_the_dominant_eigenvector(name: str) -> None:
    problem, expected = rayleigh()
    found = (
        ARRIVE[name](verbosity=0).run(problem, initial_point=problem.manifold.random_point()).point.squeeze()
    )
    found = found * torch.sign(found[0] * expected[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", optimizers.__all__)
def test_every_optimizer_of_pymanopt_runs_on_our_sphere(name: str) -> None:
    np.random.seed(0)  # noqa: NPY002
    problem, expected = rayleigh(3)
    result = getattr(optimizers, name)(max_iterations=30, verbosity=0).run(problem)
    assert bool(problem.manifold.feasible(result.point).all())
    # Those without gradients come near.
    assert abs(float((result.point.squeeze() * expected).sum())) == pytest.approx(1, abs=1e-2)


def test_the_dominant_subspace_is_found_on_our_grassmann() -> None:
    grassmann = ours.Grassmann(32, 3, seed=6)
    entries = grassmann.random_ambient(torch.zeros(32, 32, dtype=torch.float64))
    matrix = (entries + entries.mT) / 2

    @torch_function(grassmann)
    def cost(point: Tensor) -> Tensor:
        return -(point.mT @ matrix @ point).diagonal(dim1=-2, dim2=-1).sum()

    found = optimizers.ConjugateGradient(verbosity=0).run(pymanopt.Problem(grassmann, cost)).point[0]
    basis = torch.linalg.eigh(matrix).eigenvectors[:, -3:]
    torch.testing.assert_close(found @ found.mT, basis @ basis.mT, rtol=0, atol=1e-5)
