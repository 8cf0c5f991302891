"""Means of positive matrices, and of rectangular ones by their polar factors: limits, oracles."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from riemerge.frechet.status import Status
from riemerge.manifolds import SymmetricPositiveDefinite
from tests.helpers import random_orthonormal, seeded
from tests.methods.polar.polar_cases import (
    KINDS,
    WEIGHTS,
    average,
    polar_mean,
    positive,
    positive_mean,
    value,
)
from tests.methods.spectra import assert_near, normal


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
