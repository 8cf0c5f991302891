"""Symmetries beside rotations: their laws, and alignments beside brute force and closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch

from riemerge import Problem, frechet_mean
from riemerge.errors import RecipeError
from riemerge.manifolds import (
    Euclidean,
    GeneralLinear,
    GLFactors,
    GroupAction,
    Permutations,
    QuotientManifold,
    Scaling,
    Sphere,
    SymmetricPositiveDefinite,
    join_heads,
    split_heads,
)
from riemerge.manifolds.checks import check_action
from tests.fake_cuda import fake_cuda


def defects_of(quotient: QuotientManifold, scale: float = 0.2) -> dict[str, float]:
    defects = check_action(quotient, scale=scale)
    assert defects.pop("vertical") < 1e-6
    return defects


QUOTIENTS = {
    "invertible": lambda: QuotientManifold(GLFactors(4, 3, 2, k=2, seed=1), GeneralLinear(2)),
    "scaling": lambda: QuotientManifold(GLFactors(4, 3, 1, k=2, seed=1), Scaling(4)),
    "permutations": lambda: QuotientManifold(Euclidean(6, 3, k=2, seed=1), Permutations(6)),
    "of two layers": lambda: QuotientManifold(Euclidean(10, 3, k=2, seed=1), Permutations(5)),
    "signed": lambda: QuotientManifold(Sphere(6, 3, k=2, seed=1), Permutations(6, signed=True)),
}


@pytest.mark.parametrize("name", QUOTIENTS)
def test_laws(name: str) -> None:
    defects = defects_of(QUOTIENTS[name]())
    assert max(defects.values()) < 1e-9, defects


@pytest.mark.parametrize("name", QUOTIENTS)
def test_alignment_depends_on_orbits_alone_and_batches(name: str) -> None:
    quotient = QUOTIENTS[name]()
    total, action = quotient.total, quotient.action
    x, y, z = (total.random_point() for _ in range(3))
    if name == "invertible":  # far pairs are at each other's cut locus
        y, z = x + 0.05 * y, x + 0.05 * z
    generator = torch.Generator().manual_seed(1)
    g, h = (action.random_element((2,), generator) for _ in range(2))
    aligned = quotient.align(y, to=x)
    turned = quotient.align(action.act(total, y, g), to=action.act(total, x, h))
    torch.testing.assert_close(turned, action.act(total, aligned, h), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(action.realign(total, aligned, x), aligned, rtol=1e-8, atol=1e-8)
    both = quotient.align(torch.stack((y, z)), to=x)
    torch.testing.assert_close(both[0], aligned, rtol=1e-8, atol=1e-8)
    assert quotient.align(y.float(), to=x.float()).dtype is torch.float32
    with fake_cuda():
        there = quotient.align(y.to("cuda"), to=x.to("cuda")).cpu()
    torch.testing.assert_close(there, aligned, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("signed", [False, True])
def test_linear_assignment_is_brute_force_at_six_units(signed: bool) -> None:
    total, action = Euclidean(6, 2, k=1, seed=3), Permutations(6, signed=signed)
    x, y = total.random_point(), total.random_point()
    identity = torch.eye(6, dtype=torch.float64)
    orders = torch.stack([identity[list(order)] for order in itertools.permutations(range(6))])
    if signed:
        signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=6)), dtype=torch.float64)
        orders = (signs[:, None, :, None] * orders).flatten(0, 1)
    best = float(total.dists(x, action.act(total, y, orders)).min())
    assert float(total.dist(x, action.align(total, y, x))) == pytest.approx(best, rel=1e-14)


def test_permuted_networks_have_themselves_as_mean() -> None:
    quotient = QUOTIENTS["of two layers"]()
    x = quotient.random_point()
    generator = torch.Generator().manual_seed(2)
    points = [
        quotient.action.act(quotient.total, x, quotient.action.random_element((2,), generator))
        for _ in range(3)
    ]
    solution = frechet_mean(Problem(quotient, points))
    assert solution.ok
    assert float(quotient.dist(solution.point, x)) < 1e-12


def test_the_closed_projection_of_invertible_matrices_is_the_derived_one() -> None:
    total, action = GLFactors(7, 6, 3, k=2, seed=1), GeneralLinear(3)
    x, v = total.random_point(), torch.stack([total.draw(2, 13, 3) for _ in range(2)])
    derived = GroupAction.vertical_generator(action, total, x, v)
    torch.testing.assert_close(action.vertical_generator(total, x, v), derived, rtol=1e-12, atol=1e-13)


def test_scaling_is_the_general_linear_group_of_size_one() -> None:
    total = GLFactors(4, 3, 1, k=1, seed=2)
    x = total.random_point()
    y = x + 0.2 * total.draw(1, 7, 1)
    one, other = (action.align(total, y, x) for action in (Scaling(4), GeneralLinear(1)))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_heads_are_modules() -> None:
    q, k = (
        torch.randn(n, 12, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (8, 7)
    )
    points = split_heads(q, k, 3)
    assert points.shape == (3, 15, 4)
    torch.testing.assert_close(points[1, :8] @ points[1, 8:].mT, q[:, 4:8] @ k[:, 4:8].mT)
    assert all(map(torch.equal, join_heads(points, 8), (q, k)))


def test_what_they_do_not_act_on_is_refused() -> None:
    with pytest.raises(RecipeError, match="GeneralLinear acts on GLFactors"):
        QuotientManifold(SymmetricPositiveDefinite(3), GeneralLinear(3))
    with pytest.raises(RecipeError, match="points of 2 columns"):
        QuotientManifold(GLFactors(4, 4, 3), GeneralLinear(2))
    with pytest.raises(RecipeError, match="Permutations of 4 units do not divide the rows"):
        QuotientManifold(Euclidean(6, 3), Permutations(4))
