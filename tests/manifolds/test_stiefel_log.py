"""The one iterative verb: what it finds, what it flags, and that it never lies."""

from __future__ import annotations

import pytest
import torch

from riemerge import linalg
from riemerge.errors import NumericalError
from riemerge.linalg import polar
from riemerge.manifolds import Stiefel, stiefel, stiefel_log
from tests.helpers import seeded

R = 4


def test_shared_directions_have_a_normal_factor() -> None:
    gram = torch.zeros(1, 3, 3, dtype=torch.float64)
    gram[0, 0, 0] = 0.25
    factor, found = stiefel_log.normal_factor(gram)
    assert bool(found.all())
    torch.testing.assert_close(factor.mT @ factor, gram, rtol=0, atol=1e-14)
    assert not bool(stiefel_log.normal_factor(-gram)[1].any())


@pytest.mark.parametrize("length", [1e-9, 0.05, 0.3])
def test_a_completion_near_the_identity_is_the_one_that_lapack_finds(
    length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = linalg.skew(torch.randn(5, 2 * R, 2 * R, generator=seeded(4), dtype=torch.float64))
    size = torch.linalg.matrix_norm(drawn)[:, None, None]
    frame = linalg.exp_skew(length * drawn / size)[..., :R]
    near = stiefel_log.complete_rotation(frame)
    monkeypatch.setattr(stiefel_log, "_CLOSE", -1.0)
    torch.testing.assert_close(near, stiefel_log.complete_rotation(frame), rtol=0, atol=1e-14)


def test_a_completion_that_is_too_far_is_not_taken() -> None:
    frame = torch.eye(4, dtype=torch.float64)[None, :, :2]
    rest = torch.eye(4, dtype=torch.float64)[None, :, 2:]
    moved, near = stiefel_log.move_completion(frame, rest)
    assert bool(near.all())
    torch.testing.assert_close(moved, rest)
    assert not bool(stiefel_log.move_completion(frame, frame)[1].any())


@pytest.mark.parametrize("turned", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("angle", [0.5, 1.0, 1.3])
def test_a_completion_is_continued_to_first_order(turned: float, angle: float) -> None:
    """Of the block C, that a frame's way leaves in a completion made orthogonal to it, little is left."""
    drawn = torch.randn(3, 1, 2 * R, 2 * R, generator=seeded(3), dtype=torch.float64)
    upper, lower = linalg.skew(drawn[0, :, :R, :R]), drawn[1, :, :R, :R]
    log = stiefel_log.generator(
        turned * upper / torch.linalg.matrix_norm(upper, 2),
        angle * lower / torch.linalg.matrix_norm(lower, 2),
    )
    rotation = linalg.exp_skew(log)
    frame = linalg.exp_skew(1e-3 * linalg.skew(drawn[2])) @ rotation[..., :R]
    plain, _ = stiefel_log.move_completion(frame, rotation[..., R:])
    rest, near = stiefel_log.continue_rotation(frame, rotation, log)
    assert bool(near.all())
    left, before = (stiefel_log.fibre_log(frame, x, 0.0, 0).residual for x in (rest, plain))
    # The next power of L at these angles is (angle / pi)^4 / 45 and less.
    assert float(left) < float(before) / 30


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
    b = b @ polar(b.mT @ a)
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


def test_forward_check_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, and where round-off in Q is no matter, U -> -U passes for converged: the lower right block
    vanishes there too."""
    manifold = Stiefel(20, 4, seed=3)
    a = manifold.random_point()
    monkeypatch.setattr(stiefel, "forward_error", lambda frame, found, beta: torch.zeros_like(found.residual))
    monkeypatch.setattr(stiefel._Span, "loss", lambda span, lower: lower.new_zeros(lower.shape[:-2]))
    assert bool(manifold.logarithm(a, -a).valid)


def test_stuck_iteration_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stiefel, "_MAX_TURNS", 1)
    manifold = Stiefel(32, 16, k=4, seed=0)
    assert not bool(manifold.logarithm(manifold.random_point(), manifold.random_point()).valid.any())
