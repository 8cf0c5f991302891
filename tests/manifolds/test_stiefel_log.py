"""The one iterative verb: what it finds, what it flags, and that it never lies."""

from __future__ import annotations

import pytest
import torch

from riemerge.errors import NumericalError
from riemerge.linalg import procrustes
from riemerge.manifolds import Stiefel, stiefel


@pytest.mark.parametrize(("n", "p"), [(96, 16), (32, 16), (24, 16), (7, 3), (1, 1), (2, 1), (4, 3)])
def test_independent_points(n: int, p: int) -> None:
    manifold = Stiefel(n, p, k=16, seed=n)
    a, b = manifold.random_point(), manifold.random_point()
    found = manifold.logarithm(a, b)
    reached = manifold.exp(a, found.tangent)
    error = torch.linalg.matrix_norm(reached - b)
    # The flag tells the truth, whichever it is.
    assert bool((error[found.valid] < 1e-10).all())
    if n >= 6 * p:
        assert bool(found.valid.all())
    lengths = manifold.norms(a, found.tangent)
    torch.testing.assert_close(found.squared.sqrt(), lengths, rtol=1e-12, atol=1e-12)


def test_aligned_points_need_no_iteration() -> None:
    # With U'Y symmetric positive the geodesic is Grassmann's, A = 0, in closed form.
    manifold = Stiefel(40, 4, k=3, seed=0)
    a, b = manifold.random_point(), manifold.random_point()
    b = b @ procrustes(b.mT @ a)
    found = manifold.logarithm(a, b)
    assert float((a.mT @ found.tangent).abs().max()) < 1e-13
    angles = torch.linalg.svdvals(a.mT @ b).clamp(max=1).arccos()
    torch.testing.assert_close(found.squared, angles.square().sum(dim=-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["equal", "turned", "orthogonal", "half shared", "nearly equal"])
def test_degenerate_points(case: str) -> None:
    manifold = Stiefel(20, 4, seed=3)
    a, other = manifold.random_point(), manifold.random_point()
    complement = torch.linalg.qr(torch.cat((a, other), dim=-1)).Q[..., 4:]
    quarter = torch.tensor([[0, 1.0], [-1, 0]], dtype=torch.float64)
    b = {
        "equal": a,
        "turned": a @ torch.matrix_exp(torch.kron(quarter, torch.eye(2, dtype=torch.float64))),
        "orthogonal": complement,
        "half shared": torch.cat((a[..., :2], complement[..., :2]), dim=-1),
        "nearly equal": a + 1e-9 * complement,
    }[case]
    found = manifold.logarithm(a, b)
    assert bool(found.valid.all())
    assert float((manifold.exp(a, found.tangent) - b).abs().max()) < 1e-12


def test_cut_locus_is_flagged_and_named() -> None:
    manifold = Stiefel(20, 4, k=2, seed=3)
    a = manifold.random_point()
    b = torch.stack((manifold.random_point()[0], -a[1]))
    assert manifold.logarithm(a, b).valid.tolist() == [True, False]
    assert torch.isnan(manifold.dists(a, b)).tolist() == [False, True]
    with pytest.raises(NumericalError, match=r"1 of 2 pairs.*cut locus"):
        manifold.log(a, b)
    with pytest.raises(NumericalError, match="cut locus"):
        manifold.dist(a, b)


def test_reflections_are_out_of_reach_on_the_orthogonal_group() -> None:
    manifold = Stiefel(3, 3)
    a = torch.eye(3, dtype=torch.float64)[None]
    assert not bool(manifold.logarithm(a, a * torch.tensor([1.0, 1, -1])).valid)


def test_forward_check_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, U -> -U passes for converged: the lower right block vanishes there too."""
    manifold = Stiefel(20, 4, seed=3)
    a = manifold.random_point()
    monkeypatch.setattr(stiefel, "forward_error", lambda frame, found: torch.zeros_like(found.residual))
    assert bool(manifold.logarithm(a, -a).valid)


def test_stuck_iteration_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stiefel, "_MAX_TURNS", 1)
    manifold = Stiefel(32, 16, k=4, seed=0)
    assert not bool(manifold.logarithm(manifold.random_point(), manifold.random_point()).valid.any())


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
    with pytest.raises(ValueError, match="k is 0"):
        Stiefel(5, 2, k=0)
    with pytest.raises(ValueError, match="floating point"):
        Stiefel(5, 2, dtype=torch.int64)
