"""The mean by a user's own squared distance on torch manifolds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from riemerge.errors import RecipeError
from riemerge.manifolds import FixedRank, Stiefel
from tests.frechet.problems import FORMS, Form, mean_of, search_of
from tests.manifolds.subjects import family, updates


def test_own_squared_distance_by_torch() -> None:
    """The chordal mean of frames is the polar factor of their average: a closed form."""
    manifold = Stiefel(12, 3, k=2)
    points = [manifold.random_point() for _ in range(4)]
    weights = [0.4, 0.3, 0.2, 0.1]
    solution = mean_of(
        manifold,
        points,
        weights,
        distance=lambda x, y: (x - y).square().sum(dim=(-2, -1)),
        initial_point=points[0],
    )
    assert solution.ok
    closed = manifold.extrinsic_mean(
        torch.stack(points), torch.tensor(weights).double()[:, None].expand(4, 2)
    )
    torch.testing.assert_close(solution.point, closed, rtol=0, atol=1e-7)


def quartic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A squared distance that no rotation of both points leaves as it is."""
    return ((x - y) ** 4).sum(dim=(-2, -1)) + 0.1 * ((x - y) ** 2).sum(dim=(-2, -1))


@pytest.mark.parametrize("solver", ["lbfgs", "trust_regions", "fixed_point"])
def test_own_distance_is_minimised_where_the_data_are(solver: str) -> None:
    """Reduced to the span of the data, which is turned, the cost would be another function."""
    manifold = Stiefel(20, 2)
    points = [manifold.random_point() for _ in range(3)]
    points[1:] = [manifold.exp(points[0], 0.5 * manifold.log(points[0], y)) for y in points[1:]]
    solution = mean_of(manifold, points, distance=quartic, solver=solver)
    assert solution.ok

    def cost(x: np.ndarray) -> float:
        left, _, right = torch.linalg.svd(torch.from_numpy(x).reshape(20, 2), full_matrices=False)
        return float(sum(quartic((left @ right)[None], y) for y in points) / 6)

    here = float(sum(quartic(solution.point, y) for y in points) / 6)
    assert float(solution.cost[0]) == pytest.approx(here, rel=1e-12)
    # An independent minimisation, from another start, without gradients of ours.
    best = scipy.optimize.minimize(cost, points[0].flatten().numpy(), method="BFGS", options={"gtol": 1e-7})
    assert here == pytest.approx(best.fun, rel=1e-6)
    # The manifold's own distances, whatever was minimised.
    apart = [manifold.dist(solution.point, y) for y in points]
    np.testing.assert_allclose(solution.distances[:, 0], apart, rtol=1e-10)


def test_own_distance_needs_no_logarithm() -> None:
    """The joint manifold of a mean and its alignments has none; and data may be at each other's cut locus."""
    joint = search_of(updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)).form.manifold
    points = [joint.random_point() for _ in range(3)]
    solution = mean_of(joint, points, distance=lambda x, y: (x - y).square().sum(dim=(-2, -1)))
    assert solution.ok
    costs = torch.stack([(solution.point - y).square().sum(dim=(-2, -1)) for y in points]).sum(dim=0) / 6
    np.testing.assert_allclose(solution.cost, costs, rtol=1e-12)
    assert np.isnan(solution.distances).all()
    assert np.isnan(solution.forward_error).all()
    pole = Stiefel(6, 2).random_point()
    antipodes = mean_of(
        Stiefel(6, 2),
        [pole, -pole],
        distance=lambda x, y: (x - y).square().sum(dim=(-2, -1)),
        initial_point=pole,
    )
    assert antipodes.ok
    assert float(antipodes.cost[0]) == pytest.approx(2, rel=1e-12)  # of every frame: (0 + 8) / 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", ["lbfgs", "trust_regions"])
def test_own_distance_on_a_quotient_is_of_orbits(form: Form, solver: str) -> None:
    """Of the updates' entries: its minimum among rank r is the truncated SVD of their average. One that moves
    with the gauge has no gradient on orbits, and is refused.
    """
    quotient, points = updates(12, 11, 3, k=2), family("close", 3, 12, 11, 3, seed=5)
    assert isinstance(quotient.total, FixedRank)
    matrix = quotient.total.matrix

    def apart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        gap: torch.Tensor = matrix(x) - matrix(y)
        return gap.square().sum(dim=(-2, -1))

    solution = mean_of(
        quotient,
        points,
        form=form,
        solver=solver,
        distance=apart,
        tol=1e-6,
        max_passes=3000,
    )
    assert solution.ok
    left, values, right = torch.linalg.svd(sum(matrix(y) for y in points) / 3)
    best = left[..., :3] * values[..., None, :3] @ right[..., :3, :]
    costs = [(best - matrix(y)).square().sum(dim=(-2, -1)) for y in points]
    np.testing.assert_allclose(solution.cost, torch.stack(costs).sum(dim=0) / 6, rtol=1e-8)
    # Copies in other gauges, whose distances are nothing but round-off, are their own mean.
    turn = quotient.action.random_element((2,), torch.Generator().manual_seed(1))
    copies = [points[0], quotient.action.act(quotient.total, points[0], turn)]
    same = mean_of(quotient, copies, distance=apart)
    assert same.ok
    assert float(same.cost.max()) < 1e-24
    with pytest.raises(RecipeError, match="changes with the representative"):
        search_of(quotient, points, form=form, distance=quartic)


def test_own_distance_must_be_a_number_for_each_module_that_torch_follows() -> None:
    manifold = Stiefel(6, 2, k=2)
    points = [manifold.random_point() for _ in range(2)]
    for wrong, words in (
        (lambda x, y: (x - y).square().sum(), r"returned \(\) .* expected one number for each module"),
        (lambda x, y: (x - y).square().sum(dim=-1), r"returned \(2, 6\)"),
        (lambda x, y: 1.0, "returned float"),
        (lambda x, y: (x.detach() - y).square().sum(dim=(-2, -1)), "cannot be differentiated"),
    ):
        with pytest.raises(RecipeError, match=words):
            mean_of(manifold, points, distance=wrong)
