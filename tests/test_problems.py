"""Families have the structure that their names promise; real adapters are posed in their joint span."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from riemerge import Problem, frechet_mean, problems
from riemerge.errors import RecipeError
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.problems import FAMILIES, adapter_family, random_update
from tests.folders import family, write_family
from tests.helpers import seeded

M, N, R = 40, 30, 4


def cosines(frame: Tensor, other: Tensor) -> Tensor:
    """Cosines of the principal angles between the spans of two (., r) matrices."""
    (q, _), (p, _) = torch.linalg.qr(frame), torch.linalg.qr(other)
    return torch.linalg.svdvals(q.mT @ p)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_follows_from_its_seed_and_has_the_asked_shapes_and_condition(name: str) -> None:
    family = adapter_family(name, 3, M, N, R, seed=1, cond=1e4)
    for (left, right), (left_again, right_again) in zip(
        family, adapter_family(name, 3, M, N, R, seed=1, cond=1e4), strict=True
    ):
        assert left.shape == (M, R)
        assert right.shape == (R, N)
        assert torch.equal(left, left_again)
        assert torch.equal(right, right_again)
        values = torch.linalg.svdvals(left @ right)[:R]
        # noise of the core in `close` is multiplicative, exp(E) with |E| about 0.1
        assert 0.5e4 < values[0] / values[-1] < 2e4
    assert not torch.allclose(family[0][0], adapter_family(name, 3, M, N, R, seed=2, cond=1e4)[0][0])


# Random subspaces of these widths have cosines of about sqrt(r/n) = 0.3 to 0.4, at most about 0.8.
@pytest.mark.parametrize(
    ("name", "common_columns", "common_rows"),
    [
        ("close", R, R),
        ("mix", R // 2, R // 2),
        ("shared_subspace", R, R),
        ("lora_like", 0, R),
        ("independent", 0, 0),
        ("ill_conditioned", 0, R),
    ],
)
def test_a_family_shares_the_directions_that_it_promises(
    name: str, common_columns: int, common_rows: int
) -> None:
    (left, right), (other_left, other_right) = adapter_family(name, 2, M, N, R, seed=3, noise=0.1)
    assert int((cosines(left, other_left) > 0.95).sum()) == common_columns
    assert int((cosines(right.mT, other_right.mT) > 0.95).sum()) == common_rows


def test_only_close_adapters_are_close() -> None:
    for name in FAMILIES:
        (left, right), (other_left, other_right) = adapter_family(name, 2, M, N, R, seed=4, noise=0.01)
        difference = torch.linalg.norm(left @ right - other_left @ other_right) / torch.linalg.norm(
            left @ right
        )
        assert (difference < 0.1) == (name == "close")


def test_only_ill_conditioned_updates_are_ill_conditioned() -> None:
    for name in FAMILIES:
        ((left, right),) = adapter_family(name, 1, M, N, R, seed=5)
        values = torch.linalg.svdvals(left @ right)[:R]
        assert (values[0] / values[-1] > 1e5) == (name == "ill_conditioned")


def test_an_update_has_norm_one_and_the_asked_condition() -> None:
    left, right = random_update(M, N, R, 1e6, seeded(0))
    values = torch.linalg.svdvals(left @ right)[:R]
    # the smallest singular value of a product of norm 1 is known to eps = 2e-16, here 1e-6 of it
    torch.testing.assert_close(values[[0, -1]], torch.tensor([1.0, 1e-6]).double(), rtol=1e-8, atol=0)
    assert torch.linalg.matrix_rank(left @ right) == R


def test_the_problem_of_a_family_has_its_updates_as_points() -> None:
    problem = problems.family("close", 3, M, N, R, modules=2, seed=7, noise=0.2, loss="square")
    total = problem.manifold.total
    for place, point in enumerate(problem.points):
        for k, matrix in enumerate(total.matrix(point)):
            left, right = adapter_family("close", 3, M, N, R, 7 + 100 * k, noise=0.2)[place]
            torch.testing.assert_close(matrix, left @ right, rtol=1e-12, atol=1e-12)
    again = problems.family("close", 3, M, N, R, modules=2, seed=7, noise=0.2)
    assert all(torch.equal(x, y) for x, y in zip(problem.points, again.points, strict=True))


# --- real adapters ------------------------------------------------------------------------------------------


def test_real_adapters_have_the_mean_that_they_have_at_their_own_width(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 3))
    (name, *_) = family("close", 3)[0]
    small = problems.real(folders, [name])
    total = FixedRank(14, 12, 3)
    factors = [adapter[name] for adapter in family("close", 3)]
    points = [total.factor(b[None], a.mT[None]) for b, a in factors]
    wide = Problem(QuotientManifold(total, Orthogonal(3)), points, reduce=False)
    # Both are solved to a gradient of 1e-8: distances differ by its square over the curvature. A merge has
    # its models in an order of its own.
    found, expected = (np.sort(frechet_mean(problem).distances, axis=0) for problem in (small, wide))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_every_update_is_truncated_to_the_least_numerical_rank_of_its_module(tmp_path: Path) -> None:
    adapters = family("close", 2)
    name = next(iter(adapters[0]))
    left = adapters[0][name][0]
    left[:, -1] = 0
    manifold = problems.real(write_family(tmp_path, adapters), [name]).manifold.total
    assert isinstance(manifold, FixedRank)
    assert manifold.r == left.shape[1] - 1


@pytest.mark.parametrize(
    ("modules", "message"),
    [(["up_prj"], "up_prj: no such module: did you mean"), (None, "2 problems: expected one")],
)
def test_what_is_no_one_problem_is_refused(tmp_path: Path, modules: list[str] | None, message: str) -> None:
    folders = write_family(tmp_path, family("close", 2, shapes={"q": (9, 8), "up_proj": (5, 30)}))
    with pytest.raises(RecipeError, match=message):
        problems.real(folders, modules)


def test_a_mean_that_is_a_closed_form_is_no_problem(tmp_path: Path) -> None:
    adapters = family("close", 2)
    name = next(iter(adapters[0]))
    adapters[1][name][0].zero_()
    with pytest.raises(RecipeError, match="0 problems: expected one"):
        problems.real(write_family(tmp_path, adapters), [name])
