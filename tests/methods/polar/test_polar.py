"""Means of what is shared, of balanced factors, and in mean subspaces: laws, limits, oracles."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pymanopt
import pytest
import scipy.linalg
import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.frechet.status import Status
from riemerge.manifolds import SymmetricPositiveDefinite
from riemerge.methods.polar.balanced import balanced
from riemerge.methods.polar.positive import polar_mean, positive_mean, procrustes_mean
from riemerge.methods.polar.shared_private import shared_private, shares
from riemerge.methods.polar.subspace import chordal, grassmann, subspace
from riemerge.methods.setting import Answer, Mean, Setting
from tests.fake_cuda import CUDA, fake_cuda, forbid_numpy
from tests.helpers import random_orthonormal, seeded
from tests.methods.spectra import assert_near, low_rank, normal

MEANS: dict[str, Mean] = {"shared_private": shared_private, "balanced": balanced, "subspace": subspace}
EVERY = pytest.mark.parametrize("name", MEANS)
KINDS = pytest.mark.parametrize("kind", ["bures_wasserstein", "affine_invariant", "log_euclidean"])
POLAR = pytest.mark.parametrize("kind", ["average", "bures_wasserstein", "affine_invariant", "log_euclidean"])
DEFAULTS = {
    "core_mean": "bures_wasserstein",
    "frames": "chordal",
    "rank": None,
    "tol": 1e-10,
    "cost_tol": 1e-6,
    "max_passes": 1000,
}
WEIGHTS = [0.5, 0.3, 0.2]


def setting(weights: list[float], shape: tuple[int, int] = (400, 300), **values: Any) -> Setting:
    return Setting("layer", torch.tensor(weights, dtype=torch.float64), DEFAULTS | values, shape)


def value(found: Tensor | Answer) -> Tensor:
    assert isinstance(found, Answer)
    assert found.ok
    return found.value


def average(x: Tensor, weights: list[float]) -> Tensor:
    return torch.einsum("t,tpq->pq", torch.tensor(weights, dtype=torch.float64), x)


def close(count: int, p: int, q: int, rank: int, noise: float, seed: int = 0) -> Tensor:
    """Updates of one rank that differ in frames and cores by some noise."""
    left = normal(1, p, rank, seed=seed) + noise * normal(count, p, rank, seed=seed + 1)
    right = normal(1, rank, q, seed=seed + 2) + noise * normal(count, rank, q, seed=seed + 3)
    return left @ right


def orthogonal_updates() -> Tensor:
    left, right = random_orthonormal(12, 6, seeded(3)), random_orthonormal(14, 6, seeded(4))
    return torch.stack(
        [left[:, i : i + 2] @ normal(2, 2, seed=i + 1) @ right[:, i : i + 2].mT for i in (0, 2, 4)]
    )


def positive(count: int, size: int, seed: int = 0) -> Tensor:
    roots = normal(count, size, size + 2, seed=seed)
    return roots @ roots.mT


CASES = {
    "close": close(3, 9, 11, 2, 0.3),
    "independent": low_rank(3, 9, 14, 2),
    "full": close(3, 5, 5, 5, 0.2, seed=5),
}


@pytest.fixture(params=CASES)
def x(request: pytest.FixtureRequest) -> Tensor:
    return CASES[request.param]


# --- laws of all three rows ---------------------------------------------------------------------------------


@EVERY
@POLAR
def test_isometries_of_both_spaces_commute(name: str, kind: str, x: Tensor) -> None:
    _, p, q = x.shape
    at = setting(WEIGHTS, core_mean=kind)
    found = MEANS[name](x, at)
    left, right = random_orthonormal(p + 3, p, seeded(1)), random_orthonormal(q + 4, q, seeded(2))
    moved = MEANS[name](left @ x @ right.mT, at)
    assert isinstance(found, Answer)
    assert isinstance(moved, Answer)
    assert_near(moved.value, left @ found.value @ right.mT, 1e-8)


@EVERY
@POLAR
def test_copies_give_themselves(name: str, kind: str) -> None:
    x = low_rank(1, 9, 7, 3).expand(4, 9, 7)
    assert_near(value(MEANS[name](x, setting([0.1, 0.2, 0.3, 0.4], core_mean=kind))), x[0], 1e-9)


@EVERY
def test_scales_and_signs_commute_and_so_does_transposition(name: str, x: Tensor) -> None:
    found = value(MEANS[name](x, setting(WEIGHTS)))
    for factor in (-1.0, 1e-9, 1e6):
        assert_near(value(MEANS[name](factor * x, setting(WEIGHTS))), factor * found, 1e-8)
    assert_near(value(MEANS[name](x.mT, setting(WEIGHTS, (300, 400)))), found.mT, 1e-8)


@EVERY
def test_two_copies_count_as_one_of_the_sum_of_their_weights(name: str) -> None:
    x = CASES["close"][:2]
    split = value(MEANS[name](x[[0, 1, 1]], setting([0.5, 0.2, 0.3], (10**9, 10**9))))
    assert_near(split, value(MEANS[name](x, setting([0.5, 0.5], (10**9, 10**9)))), 1e-4)


@EVERY
def test_updates_of_zero(name: str) -> None:
    x = torch.zeros(2, 4, 5, dtype=torch.float64)
    assert torch.equal(value(MEANS[name](x, setting([0.5, 0.5]))), x[0])


@EVERY
def test_the_device_changes_no_bit_and_numpy_is_not_asked(name: str) -> None:
    x = CASES["close"]
    expected = value(MEANS[name](x, setting(WEIGHTS)))
    with forbid_numpy():
        assert torch.equal(value(MEANS[name](x, setting(WEIGHTS))), expected)
    with fake_cuda():
        found = value(MEANS[name](x.to("cuda"), setting(WEIGHTS)))
        assert found.device == CUDA
        assert torch.equal(found.cpu(), expected)


# --- positive matrices, and matrices by their polar factors -------------------------------------------------


def test_the_affine_invariant_mean_balances_all_logarithms() -> None:
    matrices, weights = positive(3, 4), torch.tensor(WEIGHTS, dtype=torch.float64)
    mean = value(positive_mean(matrices, weights, "affine_invariant"))
    logs = SymmetricPositiveDefinite(4, k=3).log(mean.expand(3, 4, 4), matrices)
    assert float(average(logs, WEIGHTS).norm()) <= 1e-9 * float(mean.norm())


@pytest.mark.oracle
def test_two_positive_matrices_have_the_means_of_scipy() -> None:
    one, other = (x.numpy() for x in positive(2, 4))
    share = 0.3
    weights = torch.tensor([1 - share, share], dtype=torch.float64)
    given = torch.from_numpy(np.stack([one, other]))
    root = scipy.linalg.sqrtm(one)
    inverse = np.linalg.inv(root)
    expected = root @ scipy.linalg.fractional_matrix_power(inverse @ other @ inverse, share) @ root
    assert_near(value(positive_mean(given, weights, "affine_invariant")), torch.from_numpy(expected), 1e-9)
    expected = scipy.linalg.expm((1 - share) * scipy.linalg.logm(one) + share * scipy.linalg.logm(other))
    assert_near(value(positive_mean(given, weights, "log_euclidean")), torch.from_numpy(expected), 1e-9)
    cross = scipy.linalg.sqrtm(one @ other).real
    expected = (1 - share) ** 2 * one + share**2 * other + share * (1 - share) * (cross + cross.T)
    assert_near(value(positive_mean(given, weights, "bures_wasserstein")), torch.from_numpy(expected), 1e-6)


def test_a_singular_core_gives_way_and_says_so() -> None:
    x = normal(3, 4, 4)
    x[0, :, 0] = 0.0
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    found = polar_mean(x, weights, "affine_invariant")
    assert (found.ok, found.status) == (False, Status.SINGULAR)
    assert "affine_invariant" in found.advice
    usual = polar_mean(x, weights, "bures_wasserstein")
    assert usual.ok
    assert torch.equal(usual.value, found.value)


@KINDS
def test_rotations_that_cancel_have_no_mean_and_say_so(kind: str) -> None:
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    x = normal(2, 3, 3, seed=5)
    x[1] = -2.0 * x[0]
    found = polar_mean(x, half, kind)
    assert (found.status, found.ok) == (Status.SINGULAR, False)
    assert "cancel in 3 directions" in found.advice
    # Directions that no core has are no such thing, nor are those that cores have on one side alone.
    lacking = normal(2, 3, 3, seed=6)
    lacking[:, :, 2] = 0.0
    assert polar_mean(lacking, half, "bures_wasserstein").ok
    for side in (
        torch.diag_embed(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()),
        torch.eye(2).double()[:, None],
    ):
        assert polar_mean(side, half, "bures_wasserstein").ok


@KINDS
def test_rotations_do_not_shrink(kind: str) -> None:
    turns = torch.linalg.matrix_exp(torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double() * 0.8)
    given = torch.stack([3.0 * turns, 3.0 * turns.mT])
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert_near(value(polar_mean(given, weights, kind)), 3.0 * torch.eye(2).double())
    # The average of the same: cos 0.8 of it.
    assert_near(value(polar_mean(given, weights, "average")), 3.0 * np.cos(0.8) * torch.eye(2).double())


@KINDS
@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (2, 5)])
def test_matrices_of_one_rotation_have_the_mean_of_their_positive_parts(
    kind: str, shape: tuple[int, int]
) -> None:
    size = min(shape)
    frame, turn = random_orthonormal(max(shape), size, seeded(1)), random_orthonormal(size, size, seeded(2))
    parts, weights = positive(3, size), torch.tensor(WEIGHTS, dtype=torch.float64)
    given = frame @ turn @ parts
    given = given if shape[0] >= shape[1] else given.mT
    expected = frame @ turn @ value(positive_mean(parts, weights, kind))
    expected = expected if shape[0] >= shape[1] else expected.mT
    assert_near(value(polar_mean(given, weights, kind)), expected, 1e-6)


# --- shared and private -------------------------------------------------------------------------------------


@POLAR
def test_orthogonal_updates_give_their_average(kind: str) -> None:
    x = orthogonal_updates()
    assert_near(value(shared_private(x, setting(WEIGHTS, core_mean=kind))), average(x, WEIGHTS))
    # One side shared alone: still nothing that both sides share.
    half = torch.cat([low_rank(1, 6, 8, 2), low_rank(1, 6, 8, 2, seed=3)])
    half[1] = half[0] @ torch.linalg.pinv(half[0]) @ half[1]
    half[1] -= half[1] @ torch.linalg.pinv(half[0]) @ half[0]
    assert_near(value(shared_private(half, setting([0.5, 0.5], core_mean=kind))), average(half, [0.5, 0.5]))


@KINDS
def test_a_common_block_has_the_polar_mean_and_private_blocks_their_average(kind: str) -> None:
    common, private = normal(3, 2, 2, seed=4), normal(3, 2, 2, seed=5)
    x = torch.zeros(3, 8, 8, dtype=torch.float64)
    for place in range(3):
        x[place, :2, :2] = common[place]
        x[place, 2 + 2 * place : 4 + 2 * place, 2 + 2 * place : 4 + 2 * place] = private[place]
    expected = average(x, WEIGHTS)
    expected[:2, :2] = value(polar_mean(common, torch.tensor(WEIGHTS, dtype=torch.float64), kind))
    assert_near(value(shared_private(x, setting(WEIGHTS, core_mean=kind))), expected, 1e-9)


def test_half_shared_directions_come_in_by_their_shares(x: Tensor) -> None:
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    mixed = torch.cat([x[:2], low_rank(1, *x.shape[1:], 2, seed=8)])
    functions = []
    for one, width in ((mixed, 4000), (mixed.mT, 3000)):
        ranks = [int(rank) for rank in torch.linalg.matrix_rank(one)]
        onto = average(one @ torch.linalg.pinv(one), WEIGHTS)
        level = 0.5 * (1 + ((sum(ranks) - max(ranks)) / width) ** 0.5) ** 2
        eigenvalues, vectors = torch.linalg.eigh(onto)
        functions.append(vectors * ((eigenvalues - level) / (1 - level)).clamp(min=0.0) @ vectors.mT)
    parts = functions[0] @ mixed @ functions[1]
    mean = value(polar_mean(parts, weights, "bures_wasserstein"))
    expected = average(mixed, WEIGHTS) + mean - average(parts, WEIGHTS)
    assert_near(value(shared_private(mixed, setting(WEIGHTS, (4000, 3000)))), expected, 1e-6)


def test_independent_subspaces_share_next_to_nothing_and_copies_all() -> None:
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    frames = [random_orthonormal(256, 8, seeded(i)) for i in range(8)]
    x = torch.stack([left @ right.mT for left, right in zip(frames[:4], frames[4:], strict=True)])
    left, right = shares(x, weights, (256, 256))
    for found in (left, right):
        assert found.shape[1] == 0 or float(found.norm(dim=0).max()) <= 0.1
    left, right = shares(x[:1].expand(4, 256, 256), weights, (256, 256))
    for found in (left, right):
        assert_near(found.mT @ found, torch.eye(8, dtype=torch.float64))


def test_what_is_shared_comes_in_without_a_jump() -> None:
    one = low_rank(1, 9, 8, 2)
    way = [one[0] + step * low_rank(1, 9, 8, 2, seed=9)[0] for step in np.linspace(0.0, 4.0, 81)]
    found = [value(shared_private(torch.stack([one[0], other]), setting([0.6, 0.4]))) for other in way]
    steps = [float((b - a).norm()) for a, b in itertools.pairwise(found)]
    apart = [
        float((value - average(torch.stack([one[0], other]), [0.6, 0.4])).norm())
        for value, other in zip(found, way, strict=True)
    ]
    assert max(apart) >= 0.1
    assert max(steps) <= 4.0 * float(np.median(steps))


# --- balanced factors ---------------------------------------------------------------------------------------


def test_balanced_orthogonal_updates_have_each_side_averaged() -> None:
    x = orthogonal_updates()
    found = value(balanced(x, setting(WEIGHTS, rank="sum")))
    assert_near(found, average(x, [weight**2 for weight in WEIGHTS]))


def test_balanced_updates_that_the_iterate_does_not_meet_add_nothing() -> None:
    left, right = random_orthonormal(7, 2, seeded(1)), random_orthonormal(6, 2, seeded(2))
    x = torch.stack([3.0 * torch.outer(left[:, 0], right[:, 0]), torch.outer(left[:, 1], right[:, 1])])
    assert_near(value(balanced(x, setting([0.6, 0.4], rank=1))), 0.36 * x[0])


@pytest.mark.oracle
def test_balanced_two_updates_are_on_the_geodesic_of_bures_and_wasserstein() -> None:
    x, share = CASES["full"][:2], 0.3
    lifted = []
    for one in x.numpy():
        u, s, vh = np.linalg.svd(one)
        lifted.append(np.concatenate([u, vh.T]) * s**0.5)
    rotation, _ = scipy.linalg.polar(lifted[1].T @ lifted[0])
    point = (1 - share) * lifted[0] + share * lifted[1] @ rotation
    expected = point[:5] @ point[5:].T
    found = value(balanced(x, setting([1 - share, share], cost_tol=0.0)))
    assert_near(found, torch.from_numpy(expected), 1e-8)


@pytest.mark.oracle
@pytest.mark.parametrize("rank", [None, 1, 4])
def test_balanced_nothing_near_has_a_lower_cost(rank: int | None) -> None:
    x, weights = CASES["close"], torch.tensor(WEIGHTS, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    roots = s[:, None, :2].sqrt()
    factors = torch.cat([u[..., :2] * roots, vh.mT[..., :2] * roots], dim=1)
    size = rank or 2
    start = normal(20, size)
    found = procrustes_mean(factors, weights, start, tol=1e-10, cost_tol=0.0, max_passes=5000)

    def cost(point: np.ndarray) -> float:
        inner = torch.linalg.svdvals(factors.mT @ torch.from_numpy(point)).sum(dim=1)
        sizes = (weights * factors.square().sum(dim=(1, 2))).sum()
        return float((sizes + float(np.sum(point**2))) / 2 - (weights * inner).sum())

    turned = torch.stack([scipy_polar(one.mT @ found.value) for one in factors])
    gradient = found.value - torch.einsum("t,tnr,trc->nc", weights, factors, turned)
    # F is flat to round-off where its gradient is below the root of eps.
    assert float(gradient.norm()) <= 1e-7 * float(found.value.norm())
    best, here = cost(found.value.numpy()), found.value.numpy()
    for place in range(20):
        assert cost(here + 1e-2 * normal(20, size, seed=place).numpy()) >= best - 1e-12


def scipy_polar(matrix: Tensor) -> Tensor:
    return torch.from_numpy(scipy.linalg.polar(matrix.numpy())[0])


def test_balanced_is_not_moved_by_a_longer_wait_where_it_is_determined() -> None:
    x = CASES["close"]
    rough, fine = (value(balanced(x, setting(WEIGHTS, cost_tol=tol))) for tol in (1e-6, 1e-14))
    assert_near(rough, fine, 1e-3)
    stopped = balanced(x, setting(WEIGHTS, cost_tol=0.0, tol=1e-15, max_passes=1))
    assert isinstance(stopped, Answer)
    assert (stopped.ok, stopped.status) == (False, Status.BUDGET)


def test_balanced_has_the_rank_that_is_asked_for() -> None:
    x = CASES["independent"]
    for rank, expected in ((None, 2), (1, 1), (4, 4), ("sum", 6)):
        found = value(balanced(x, setting(WEIGHTS, rank=rank, cost_tol=1e-2)))
        assert int(torch.linalg.matrix_rank(found, rtol=1e-9)) == expected


def test_balanced_starts_at_the_average_and_ends_at_the_rank_of_the_updates_whatever_the_rank() -> None:
    x = CASES["independent"]
    start = balanced(x, setting(WEIGHTS, rank="sum", max_passes=0, cost_tol=0.0))
    assert isinstance(start, Answer)
    assert_near(start.value, average(x, WEIGHTS))
    end = value(balanced(x, setting(WEIGHTS, rank="sum", cost_tol=1e-12, max_passes=10000)))
    assert int(torch.linalg.matrix_rank(end, rtol=1e-3)) == 2
    assert_near(end, value(balanced(x, setting(WEIGHTS, cost_tol=1e-14))), 1e-4)


# --- subspaces ----------------------------------------------------------------------------------------------


def test_the_chordal_mean_leads_the_mean_projection() -> None:
    frames = [random_orthonormal(9, 3, seeded(i)) for i in range(3)]
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    found = chordal(frames, weights, 3)
    mean = sum(w * one @ one.mT for w, one in zip(WEIGHTS, frames, strict=True))
    assert float((found.mT @ mean @ found).trace()) == pytest.approx(
        float(torch.linalg.eigvalsh(mean)[-3:].sum())
    )


@pytest.mark.oracle
def test_the_geodesic_mean_balances_the_logarithms_of_pymanopt() -> None:
    base = normal(9, 3)
    frames = torch.linalg.qr(base + 0.4 * normal(3, 9, 3, seed=2)).Q
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    found = value(grassmann(frames, weights, chordal(list(frames), weights, 3)))
    manifold = pymanopt.manifolds.Grassmann(9, 3)
    logs = [manifold.log(found.numpy(), one.numpy()) for one in frames]
    assert np.linalg.norm(sum(w * log for w, log in zip(WEIGHTS, logs, strict=True))) <= 2e-6
    x = frames @ positive(3, 3) @ normal(3, 3, 8)
    u = torch.linalg.svd(value(subspace(x, setting(WEIGHTS, frames="grassmann")))).U[:, :3]
    assert_near(u @ u.mT, found @ found.mT, 1e-9)
    u = torch.linalg.svd(value(subspace(x, setting(WEIGHTS, frames="chordal")))).U[:, :3]
    assert float((u @ u.mT - found @ found.mT).norm()) >= 1e-3


def test_subspace_with_averaged_cores_is_the_average_seen_in_the_mean_subspaces() -> None:
    x = CASES["close"]
    found = value(subspace(x, setting(WEIGHTS, core_mean="average")))
    u, _, vh = torch.linalg.svd(found)
    onto = u[:, :2] @ u[:, :2].mT @ average(x, WEIGHTS) @ vh[:2].mT @ vh[:2]
    assert_near(found, onto)


def test_subspaces_that_have_no_mean_are_refused() -> None:
    with pytest.raises(NumericalError, match="singular values 2 and 3 are equal"):
        subspace(orthogonal_updates(), setting([1 / 3] * 3))
    mixed = torch.cat([low_rank(1, 6, 7, 2), low_rank(1, 6, 7, 3)])
    with pytest.raises(NumericalError, match="mean of their own dimension only"):
        subspace(mixed, setting([0.5, 0.5], frames="grassmann"))
