"""What is decided once about matrices: the thin SVD, its numerical rank and signs, and the weighted mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riemerge.linalg import SVD, canonical_signs, numerical_rank, thin_svd, weighted_mean

SHAPES = [(5, 3), (3, 5), (4, 4), (2, 5, 3), (2, 1, 3, 5)]


def matrices(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_thin_svd_gives_the_matrix_back_from_orthonormal_frames(shape: tuple[int, ...]) -> None:
    matrix = matrices(*shape)
    svd, rank = thin_svd(matrix), min(shape[-2:])
    assert svd.left.shape == (*shape[:-1], rank)
    assert svd.right.shape == (*shape[:-2], shape[-1], rank)
    for frame in (svd.left, svd.right):
        torch.testing.assert_close(
            frame.mT @ frame, torch.eye(rank, dtype=torch.float64).expand(*shape[:-2], -1, -1)
        )
    assert bool((svd.values.diff(dim=-1) <= 0).all())
    torch.testing.assert_close(svd.matrix(), matrix)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_truncated_svd_is_at_the_distance_of_the_values_left_out(shape: tuple[int, ...]) -> None:
    matrix = matrices(*shape)
    svd = thin_svd(matrix)
    distance = torch.linalg.matrix_norm(matrix - svd.truncate(2).matrix())
    torch.testing.assert_close(distance, torch.linalg.vector_norm(svd.values[..., 2:], dim=-1))


def test_exponent_of_a_svd_is_a_power_of_a_positive_matrix() -> None:
    root = matrices(4, 4)
    positive = root @ root.mT
    half = thin_svd(positive).matrix(0.5)
    torch.testing.assert_close(half @ half, positive)


def test_numerical_rank_counts_per_matrix_against_the_first_value() -> None:
    values = torch.tensor([[4.0, 2.0, 1e-9], [1e-9, 1e-10, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert numerical_rank(values, 1e-6).tolist() == [2, 2, 0]


def test_numerical_rank_counts_against_the_size_that_it_is_told() -> None:
    values = torch.tensor([4.0, 2.0, 0.5], dtype=torch.float64)
    assert int(numerical_rank(values, 0.1, 10.0)) == 2
    assert int(numerical_rank(values[:0], 0.1)) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_canonical_signs_undo_any_flip_of_the_pairs(shape: tuple[int, ...]) -> None:
    svd = thin_svd(matrices(*shape))
    flips = matrices(*shape[:-2], 1, min(shape[-2:]), seed=1).sign()
    flipped = SVD(svd.left * flips, svd.values, svd.right * flips)
    for pair, other in ((svd.left, flipped.left), (svd.right, flipped.right)):
        signed = pair * canonical_signs(svd.left)
        assert torch.equal(signed, other * canonical_signs(flipped.left))
    canonical = svd.left * canonical_signs(svd.left)
    assert torch.equal(canonical.amax(dim=-2), svd.left.abs().amax(dim=-2))


def test_canonical_sign_of_a_zero_column_is_plus() -> None:
    assert canonical_signs(torch.zeros(3, 2)).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 5)], ids=str)
def test_weighted_mean_is_the_sum_of_what_is_weighted(shape: tuple[int, ...]) -> None:
    stack, weights = matrices(3, *shape), torch.tensor([0.5, 0.3, 0.2])
    expected = sum((float(w) * x for w, x in zip(weights, stack, strict=True)), torch.zeros(shape))
    torch.testing.assert_close(weighted_mean(weights, stack), expected.double())
    copies = stack[:1].expand(3, *shape)
    torch.testing.assert_close(weighted_mean(weights, copies), copies[0], atol=1e-7, rtol=1e-7)
