"""What is derived from a metric alone is what the closed forms say."""

from __future__ import annotations

from typing import Any

import pymanopt
import pytest
import torch
from torch import Tensor

from riemerge import Problem, frechet_mean
from riemerge.errors import RecipeError
from riemerge.manifolds import (
    Euclidean,
    FixedRank,
    GeodesicManifold,
    Grassmann,
    HalfPlane,
    MetricManifold,
    Sphere,
    Stiefel,
    SymmetricPositiveDefinite,
    torch_function,
)
from riemerge.manifolds.base import MissingVerbError

BASES: dict[str, GeodesicManifold] = {
    "sphere": Sphere(3, 4, k=2, seed=1),
    "grassmann": Grassmann(7, 3, k=2, seed=1),
    "half-planes": HalfPlane(3, k=2, seed=1),
    "spd": SymmetricPositiveDefinite(4, k=2, seed=1),
    "stiefel": Stiefel(6, 3, k=2, seed=1),
    "rotations": Stiefel(4, 4, k=2, seed=1),
    "fixed rank": FixedRank(5, 6, 2, k=2, seed=1),
}


class Alone:
    """A metric that states nothing but itself."""

    def __init__(self, base: GeodesicManifold, factor: float = 1.0) -> None:
        self.base, self.factor = base, factor

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return self.factor * self.base.inner_products(point, a, b)


class WithLogarithm(Alone):
    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Any:
        return self.base.logarithm(point_a, point_b)


@pytest.mark.parametrize("name", BASES)
def test_derived_verbs_are_the_closed_forms(name: str) -> None:
    base = BASES[name]
    derived = MetricManifold(base, Alone(base))
    x = base.random_point()
    v, entries, more = base.random_tangent_vector(x), base.random_ambient(x), base.random_ambient(x)
    field, derivative = torch.func.jvp(lambda y: base.projection(y, more), (x,), (v,))  # type: ignore[misc]
    for verb, arguments in (
        ("euclidean_to_riemannian_gradient", (x, entries)),
        ("covariant_derivative", (x, v, field, derivative)),
    ):
        ours, closed = (getattr(manifold, verb)(*arguments) for manifold in (derived, base))
        torch.testing.assert_close(ours, closed, rtol=1e-12, atol=1e-13)
    hessians = []
    for manifold in (derived, base):

        @torch_function(manifold)
        def cost(point: Tensor) -> Tensor:
            return (entries * point).sum() + (entries * point).sin().square().sum()

        hessians.append(pymanopt.Problem(manifold, cost).riemannian_hessian(x, v))
    torch.testing.assert_close(*hessians, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("u", "s"), [(1e5, 1e-7), (0.0, 1e6)])
def test_a_metric_of_any_size_is_inverted(u: float, s: float) -> None:
    base = HalfPlane()
    point = torch.tensor([[[u], [s]]], dtype=torch.float64)
    entries = base.random_ambient(point)
    derived = MetricManifold(base, Alone(base)).euclidean_to_riemannian_gradient(point, entries)
    torch.testing.assert_close(
        derived, base.euclidean_to_riemannian_gradient(point, entries), rtol=1e-14, atol=0
    )


def test_a_linear_solve_of_any_size_is_not_derived() -> None:
    base = Euclidean(70, 30)
    x = base.random_point()
    with pytest.raises(MissingVerbError, match=r"70 x 30 unknowns is too large \(at most 2048\): state"):
        MetricManifold(base, Alone(base)).euclidean_to_riemannian_gradient(x, x)


def test_a_metric_takes_nothing_from_the_base_that_depends_on_it() -> None:
    base = Sphere(3, 1, seed=1)
    manifold = MetricManifold(base, Alone(base, factor=4))
    x, y = base.random_point(), base.random_point()
    v = base.random_tangent_vector(x)
    assert float(manifold.norm(x, v)) == pytest.approx(2)
    torch.testing.assert_close(manifold.euclidean_to_riemannian_gradient(x, v), v / 4)
    torch.testing.assert_close(manifold.retraction(x, v), base.retraction(x, v))
    message = (
        "Sphere of 3x1 matrices with Alone has no logarithm; needed by a geodesic Fréchet mean .*: state it"
    )
    with pytest.raises(MissingVerbError, match=message):
        manifold.dist(x, y)
    with pytest.raises(RecipeError, match="has no geodesic; needed by exp"):
        manifold.exp(x, v)


def test_the_derived_connection_of_half_planes_has_their_christoffel_symbols() -> None:
    base = HalfPlane(2, k=2, seed=1)
    x = base.random_point()
    (a, b), (c, d), more = (base.random_ambient(x).split(1, dim=-2) for _ in range(3))
    symbols = torch.cat((-(a * d + b * c), a * c - b * d), dim=-2) / x[..., 1:, :]
    turned = base.covariant_derivative(x, torch.cat((a, b), -2), torch.cat((c, d), -2), torch.cat(more, -2))
    torch.testing.assert_close(turned, torch.cat(more, -2) + symbols, rtol=1e-12, atol=1e-13)


def test_what_a_metric_states_is_its_own() -> None:
    base = Sphere(3, 1, k=2, seed=1)
    manifold = MetricManifold(base, WithLogarithm(base)).with_modules(1)
    x, y = (base.random_point()[:1] for _ in range(2))
    assert float(manifold.dist(x, y)) == pytest.approx(float(base.with_modules(1).dist(x, y)))


def test_a_metric_alone_has_a_mean_by_a_distance_that_needs_no_logarithm() -> None:
    base = Euclidean(3, 2, k=2, seed=1)
    points = [base.random_point() for _ in range(3)]
    manifold = MetricManifold(base, Alone(base, factor=4))
    solution = frechet_mean(Problem(manifold, points, distance="first_order"))
    assert solution.ok
    torch.testing.assert_close(solution.point, torch.stack(points).mean(dim=0), rtol=0, atol=1e-7)


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"has no inner_products\(point, a, b\)"):
        MetricManifold(Euclidean(2, 2), 3)  # type: ignore[arg-type]
