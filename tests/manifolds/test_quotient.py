"""What a quotient refuses, and what a symmetry derives from `act`, `align` and `vertical`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riemerge import Problem, frechet_mean
from riemerge.errors import RecipeError
from riemerge.linalg import polar, skew
from riemerge.manifolds import (
    Euclidean,
    FixedRank,
    GeodesicManifold,
    GroupAction,
    Orthogonal,
    QuotientManifold,
    Sphere,
    Stiefel,
    SymmetricPositiveDefinite,
)
from riemerge.manifolds.checks import check_action
from tests.manifolds.subjects import QUOTIENTS
from tests.manifolds.two_layers import TwoLayers


class Little(GroupAction):
    """O(3) on updates, with nothing stated that can be derived."""

    dimension, shape, columns = 3, (3, 3), 3

    def __init__(self) -> None:
        self.closed = Orthogonal(3)

    def act(self, total: GeodesicManifold, point: Tensor, element: Tensor) -> Tensor:
        return self.closed.act(total, point, element)

    def align(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        return self.closed.align(total, point, to)

    def vertical(self, total: GeodesicManifold, point: Tensor, algebra: Tensor) -> Tensor:
        return self.closed.vertical(total, point, algebra)

    def project(self, matrix: Tensor) -> Tensor:
        return skew(matrix)


class Turns(GroupAction):
    """O(3) on plain matrices, x . O = x O, from its three verbs."""

    dimension, shape = 3, (3, 3)

    def act(self, total: GeodesicManifold, point: Tensor, element: Tensor) -> Tensor:
        return point @ element

    def align(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        return point @ polar(point.mT @ to)

    def vertical(self, total: GeodesicManifold, point: Tensor, algebra: Tensor) -> Tensor:
        return point @ algebra

    def project(self, matrix: Tensor) -> Tensor:
        return skew(matrix)


def test_three_verbs_keep_the_laws_and_have_a_mean() -> None:
    quotient = QuotientManifold(Euclidean(5, 3, k=2, seed=1), Turns())
    defects = check_action(quotient, scale=0.4)
    assert defects.pop("vertical") < 1e-6
    assert max(defects.values()) < 1e-12, defects
    x = quotient.random_point()
    momentum = quotient.action.momentum(quotient.total, x, quotient.random_ambient(x))
    torch.testing.assert_close(momentum, skew(momentum))
    points = [x + 0.3 * quotient.random_ambient(x) for _ in range(3)]
    solution = frechet_mean(Problem(quotient, points))
    assert solution.ok
    # Generalised Procrustes analysis: the mean is the average of the data aligned to it.
    mean = solution.point
    aligned = torch.stack([quotient.align(y, to=mean) for y in points])
    torch.testing.assert_close(aligned.mean(dim=0), mean, rtol=0, atol=1e-7)


def test_derived_verbs_of_a_symmetry_are_the_closed_forms() -> None:
    total, little, closed = FixedRank(8, 7, 3, k=2, seed=1), Little(), Orthogonal(3)
    x = total.random_point()
    vectors = torch.stack([total.random_tangent_vector(x) for _ in range(4)])
    for verb in ("momentum", "vertical_generator"):
        derived, stated = (getattr(action, verb)(total, x, vectors) for action in (little, closed))
        torch.testing.assert_close(derived, stated, rtol=1e-12, atol=1e-13)
    algebra = little.random_algebra((2,), torch.Generator().manual_seed(1))
    torch.testing.assert_close(algebra, -algebra.mT)
    torch.testing.assert_close(little.exponential(algebra), closed.exponential(algebra))
    defects = check_action(QuotientManifold(total, little), scale=0.4)
    assert defects.pop("vertical") < 1e-6
    assert max(defects.values()) < 1e-8, defects


def test_the_derived_average_of_orbits_depends_on_neither_gauges_nor_order() -> None:
    total, action = Euclidean(5, 3, k=2, seed=1), Turns()
    quotient = QuotientManifold(total, action)
    x = total.random_point()
    points = x + 0.7 * torch.stack([total.random_ambient(x) for _ in range(3)])
    weights = torch.tensor([[0.2, 0.5], [0.5, 0.2], [0.3, 0.3]], dtype=torch.float64)
    turns = action.random_element((3, 2), torch.Generator().manual_seed(1))
    mean = quotient.extrinsic_mean(points, weights)
    for others, shares in (
        (action.act(total, points, turns), weights),
        (points.flip(0), weights.flip(0)),
    ):
        other = quotient.extrinsic_mean(others, shares)
        torch.testing.assert_close(other @ other.mT, mean @ mean.mT)
    # An order of magnitude nearer to the mean than the data are to each other.
    best = frechet_mean(Problem(quotient, list(points), weights)).point
    assert float(quotient.dist(mean, best)) < 0.1 * float(quotient.dist(points[0], points[1]))


def test_a_symmetry_says_in_its_own_words_what_it_needs() -> None:
    class Picky(Little):
        def require(self, total: GeodesicManifold) -> None:
            raise RecipeError(f"{total} has no wheels")

    with pytest.raises(RecipeError, match="has no wheels"):
        QuotientManifold(FixedRank(8, 7, 3), Picky())


def test_only_what_commutes_with_a_reduction_is_reduced() -> None:
    points = torch.stack([FixedRank(20, 20, 3, seed=i).random_point() for i in range(2)])
    assert QuotientManifold(FixedRank(20, 20, 3), Little()).reduce(points).manifold.point_shape == (43, 3)
    assert QuotientManifold(FixedRank(20, 20, 3), Orthogonal(3)).reduce(points).manifold.point_shape == (
        15,
        3,
    )


def test_the_action_names_its_formulation() -> None:
    total = FixedRank(8, 7, 3)
    assert Little().formulation(total) is None
    assert Orthogonal(3).formulation(total) == "joint"


def test_a_quotient_has_the_modules_that_are_asked_for() -> None:
    for make in QUOTIENTS.values():
        other = make().with_modules(5)
        assert other.k == other.total.k == 5
        assert other.random_point().shape[0] == 5
    sphere = Sphere(3, 2, k=2, seed=7)
    assert sphere.with_modules(1).random_point().shape == (1, 3, 2)
    assert sphere.with_modules(1).dim == sphere.dim // 2 == 5
    assert str(sphere.with_modules(1)) == "Sphere of 3x2 matrices"


@pytest.mark.parametrize("total", [Stiefel(6, 3), SymmetricPositiveDefinite(3), TwoLayers()], ids=str)
def test_a_group_that_does_not_act_is_refused(total: GeodesicManifold) -> None:
    with pytest.raises(RecipeError, match=f"Orthogonal acts on FixedRank, and .* {type(total).__name__}"):
        QuotientManifold(total, Orthogonal(3))


def test_a_group_of_another_size_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"points of 2 columns; those of .* have 3"):
        QuotientManifold(FixedRank(9, 8, 3), Orthogonal(2))
