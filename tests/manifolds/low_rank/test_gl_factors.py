"""Pairs of factors up to GL(r): geodesics beside the closed forms that exist, means beside the toy's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from riemerge import Problem, frechet_mean
from riemerge.manifolds import GeneralLinear, GLFactors, QuotientManifold
from riemerge.manifolds.checks import check_metric
from riemerge.manifolds.low_rank import gl_factors
from tests.helpers import random_gauge, seeded


def near(total: GLFactors, size: float) -> tuple[Tensor, Tensor]:
    """A point, and another one that shares most of its directions."""
    point = total.random_point()
    return point, point + size * total.random_point()


def test_metric() -> None:
    assert max(check_metric(GLFactors(6, 5, 2, k=2, seed=1)).values()) < 1e-12


def test_geodesics_conserve_what_they_must() -> None:
    """Length of the velocity, and the momentum of GL(r) (Noether); there and back; halves are halves."""
    total, action = GLFactors(7, 6, 2, k=2, seed=1), GeneralLinear(2)
    x = total.random_point()
    v = 2.0 * total.random_tangent_vector(x)
    y, w = total.geodesic(x, v)
    torch.testing.assert_close(total.norms(y, w), total.norms(x, v), rtol=1e-11, atol=0)
    momenta = (action.momentum(total, a, b) for a, b in ((x, v), (y, w)))
    torch.testing.assert_close(*momenta, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(total.exp(y, -w), x, rtol=0, atol=1e-10)
    half, middle = total.geodesic(x, v / 2)
    torch.testing.assert_close(total.exp(half, middle), y, rtol=0, atol=1e-10)
    found = total.logarithm(x, y)
    assert bool(found.valid.all())
    torch.testing.assert_close(found.tangent, v, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.squared, total.norms(x, v).square())


def test_updates_of_full_rank_are_flat() -> None:
    """Horizontal geodesics are straight lines of updates, and distances those of Frobenius over √2."""
    total = GLFactors(3, 3, 3, k=2)
    quotient = QuotientManifold(total, GeneralLinear(3))
    noise = 0.1 * torch.randn(4, 2, 3, 3, generator=seeded(1), dtype=torch.float64)
    g, h, i, j = torch.eye(3, dtype=torch.float64) + noise
    x, y = total.join(g, h), total.join(i, j)
    aligned = quotient.align(y, to=x)
    middle = total.exp(x, total.log(x, aligned) / 2)
    torch.testing.assert_close(total.matrix(middle), (total.matrix(x) + total.matrix(y)) / 2)
    apart = torch.linalg.matrix_norm(total.matrix(x) - total.matrix(y)) / math.sqrt(2)
    torch.testing.assert_close(quotient.dists(x, y), apart, rtol=1e-11, atol=0)


def test_updates_of_rank_one_are_a_cone() -> None:
    total = GLFactors(6, 5, 1, k=3)
    u, v = (torch.randn(2, 3, n, 1, generator=seeded(n), dtype=torch.float64) for n in (6, 5))
    u, v = (normalize(torch.stack((x[0], x[0] + 0.4 * x[1])), dim=-2) for x in (u, v))
    x, y = total.join(2.0 * u[0], v[0]), total.join(1.5 * u[1], -v[1] / -0.5)
    angles = [(a[0] * a[1]).sum(dim=(-2, -1)).arccos() for a in (u, v)]
    turn = (2 * (angles[0].square() + angles[1].square())).sqrt()
    squared = (2.0**2 + 3.0**2 - 2 * 2.0 * 3.0 * turn.cos()) / 2
    found = QuotientManifold(total, GeneralLinear(1)).dists(x, y)
    torch.testing.assert_close(found.square(), squared, rtol=1e-11, atol=0)


def test_alignment_meets_the_orbit_horizontally() -> None:
    total, action = GLFactors(5, 4, 2, seed=3), GeneralLinear(2)
    x, y = near(total, 0.2)
    aligned = action.align(total, y, x)
    torch.testing.assert_close(total.matrix(aligned), total.matrix(y), rtol=1e-12, atol=1e-12)
    log = total.logarithm(x, aligned)
    assert bool(log.valid.all())
    assert float(action.vertical_generator(total, x, log.tangent).abs().max()) < 1e-11
    # No other representative around is nearer.
    turn = 0.05 * action.random_algebra((3, 1), seeded(1))
    around = total.logarithm(x, action.act(total, aligned, action.exponential(turn)))
    assert bool((around.squared > log.squared).all())


def test_an_ill_conditioned_gauge_is_undone() -> None:
    total, action = GLFactors(9, 8, 3, seed=1), GeneralLinear(3)
    x = total.random_point()
    gauge = random_gauge(3, 1e4, seeded(2))[None]
    turned = action.act(total, x, gauge)
    torch.testing.assert_close(action.align(total, turned, x), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(action.align(total, x, turned), turned, rtol=1e-8, atol=1e-8)


def test_means_of_the_toy_problem_are_means_of_predictors() -> None:
    """GeoMerge, eq. 16-18: one factor above the other, in any gauge."""
    quotient = QuotientManifold(GLFactors(1, 1, 1, k=2), GeneralLinear(1))
    products = torch.tensor([[1.0, 2.0], [3.0, 0.5], [2.0, 4.0]], dtype=torch.float64)
    scales = torch.tensor([[1.0, -3.0], [0.1, 5.0], [-2.0, 1.0]], dtype=torch.float64)
    points = torch.stack((scales, products / scales), dim=-1).unsqueeze(-1)
    solution = frechet_mean(Problem(quotient, list(points), [0.5, 0.3, 0.2]))
    assert solution.ok
    expected = 0.5 * products[0] + 0.3 * products[1] + 0.2 * products[2]
    torch.testing.assert_close(quotient.total.matrix(solution.point).flatten(), expected, rtol=1e-7, atol=0)


def test_means_converge_with_certificates_in_the_joint_span() -> None:
    total = GLFactors(7, 3, 1, k=2, seed=4)
    quotient, action = QuotientManifold(total, GeneralLinear(1)), GeneralLinear(1)
    base = total.random_point()
    points = [base + 0.1 * total.random_point() for _ in range(2)]
    assert quotient.reduce(torch.stack(points)).manifold.point_shape == (4, 1)
    turned = action.act(total, points[1], action.random_element((2,), seeded(1)))
    solution = frechet_mean(Problem(quotient, [points[0], turned]))
    assert solution.ok
    assert max(solution.gradient_norm.max(), solution.horizontality.max()) < 1e-7
    assert solution.forward_error.max() < 1e-9
    middle = total.exp(points[0], total.log(points[0], quotient.align(points[1], to=points[0])) / 2)
    torch.testing.assert_close(total.matrix(solution.point), total.matrix(middle), rtol=0, atol=1e-6)


def test_independent_updates_and_singular_pairs_are_refused() -> None:
    """Orthogonal updates are at each other's cut locus, the tip of the cone."""
    total = GLFactors(4, 4, 1)
    e = torch.eye(4, dtype=torch.float64)[:, :, None]
    x, y = (total.join(e[i], e[i])[None] for i in (0, 1))
    quotient = QuotientManifold(total, GeneralLinear(1))
    assert not bool(quotient.logarithm(x, y).valid)
    assert not bool(total.feasible(total.join(e[0], 0 * e[0])[None]))
    assert not bool(total.feasible(torch.full_like(x, torch.nan)))
    assert bool(total.feasible(1e-6 * x))
    with pytest.raises(ValueError, match="1 <= r <= min"):
        GLFactors(3, 2, 3)


def test_a_wrong_acceleration_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: geodesics without the drag of the other factor keep neither length nor momentum."""
    right = gl_factors._divide
    monkeypatch.setattr(gl_factors, "_divide", lambda matrix, gram: right(matrix, 1.1 * gram))
    with pytest.raises(AssertionError):
        test_geodesics_conserve_what_they_must()
    with pytest.raises(AssertionError):
        test_updates_of_full_rank_are_flat()
