"""Frames: their retractions, dtypes and shapes, and what is refused."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from riemerge.manifolds import Stiefel
from riemerge.manifolds.checks import check_retraction


def test_reflections_are_out_of_reach_on_the_orthogonal_group() -> None:
    manifold = Stiefel(3, 3)
    a = torch.eye(3, dtype=torch.float64)[None]
    assert not bool(manifold.logarithm(a, a * torch.tensor([1.0, 1, -1])).valid)


def test_failures_leave_other_pairs_alone() -> None:
    manifold = Stiefel(20, 4, k=3, seed=3)
    a, b = manifold.random_point(), manifold.random_point()
    alone = manifold.logarithm(a, b).tangent
    b[1] = -a[1]
    together = manifold.logarithm(a, b).tangent
    # Not to the bit: a batch of another size may multiply in another order.
    torch.testing.assert_close(alone[[0, 2]], together[[0, 2]], rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_small_matrices_are_double(dtype: torch.dtype) -> None:
    manifold = Stiefel(300, 8, k=2, dtype=dtype, seed=1)
    a, b = manifold.random_point(), manifold.random_point()
    found = manifold.logarithm(a, b)
    assert found.tangent.dtype == dtype
    assert found.squared.dtype == torch.float64
    assert bool(found.valid.all())
    # A few units of round-off of entries of order one.
    assert float((manifold.exp(a, found.tangent) - b).abs().max()) < 50 * torch.finfo(dtype).eps


def test_leading_axes_broadcast() -> None:
    manifold = Stiefel(12, 2, k=3, seed=0)
    a = manifold.random_point()
    b = torch.stack([manifold.random_point() for _ in range(4)])
    found = manifold.logarithm(a, b)
    assert found.tangent.shape == (4, 3, 12, 2)
    torch.testing.assert_close(found.tangent[2], manifold.logarithm(a, b[2]).tangent, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("n", "p"), [(3, 4), (3, 0)])
def test_bad_sizes_are_refused(n: int, p: int) -> None:
    with pytest.raises(ValueError, match="1 <= p <= n"):
        Stiefel(n, p)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="'cayley'"):
        Stiefel(5, 2, retraction="cayley")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta is 0"):
        Stiefel(5, 2, beta=0)
    with pytest.raises(ValueError, match="k is 0"):
        Stiefel(5, 2, k=0)
    with pytest.raises(ValueError, match="floating point"):
        Stiefel(5, 2, dtype=torch.int64)


@pytest.mark.parametrize(("retraction", "order"), [("qr", 2), ("polar", 2), ("exp", np.inf)])
def test_retraction_order(retraction: Literal["exp", "qr", "polar"], order: float) -> None:
    # For the canonical metric the polar factor is of first order only; it is of second order for the
    # Euclidean one.
    assert check_retraction(Stiefel(9, 3, k=2, retraction=retraction)) == pytest.approx(order, abs=0.1)
