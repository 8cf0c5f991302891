"""The nearest matrix of low rank is as near as the singular values say, however it was found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.linalg import SVD, thin_svd
from riemerge.updates import truncation
from riemerge.updates.truncation import least_rank, nearest
from tests.fake_cuda import CUDA, fake_cuda, forbid_numpy
from tests.helpers import seeded

EPS = torch.finfo(torch.float64).eps
INDEX = torch.arange(1, 3000, dtype=torch.float64)
SPECTRA = {
    "halves": 2.0**-INDEX,
    "tenths": 10.0**-INDEX,
    "harmonic": 1 / INDEX,
    "squares": INDEX**-2,
    "steps": torch.where(INDEX <= 8, 1.0, 1e-6),
    "linear": torch.clamp(1 - (INDEX - 1) / 500, min=0.1),
    "flat": torch.ones_like(INDEX),
    "many equal ones": torch.where(INDEX <= 40, 10.0, 1.0),
    "no gap": torch.where(INDEX <= 8, 1.0, 1 - 1e-8),
    "rank 3": torch.where(INDEX <= 3, 1 / INDEX, 0.0),
    "rank 60": torch.where(INDEX <= 60, 1 / INDEX, 0.0),
}
SHAPES = [(420, 450), (640, 400), (30, 50), (7, 5), (1, 9)]


def with_spectrum(sigma: Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    """A matrix of these singular values (as many as fit) in random frames."""
    draw = np.random.default_rng(seed)
    k = min(m, n)
    u, v = (np.linalg.qr(draw.standard_normal((size, k)))[0] for size in (m, n))
    return torch.from_numpy((u * sigma[:k].numpy()) @ v.T)


def assert_nearest(matrix: Tensor, rank: int) -> None:
    update, kept = nearest(matrix, rank)
    sigma = torch.from_numpy(scipy.linalg.svdvals(matrix.numpy()))
    assert update.shape == tuple(matrix.shape)
    assert update.rank == min(rank, *matrix.shape)
    assert (update.dtype, update.scale) == (torch.float64, 1.0)
    # A few factorisations in a row, each with an error of a few eps that grows with the root of the size.
    slack = 10 * EPS * math.sqrt(max(matrix.shape)) * float(sigma.norm())
    distance, least = float((matrix - update.dense()).norm()), float(sigma[rank:].norm())
    assert distance <= (1 + 1e-8) * least + slack
    assert kept == pytest.approx(float((sigma[:rank].norm() / sigma.norm()) ** 2), abs=1e-12)
    torch.testing.assert_close(update.singular_values(), sigma[:rank], rtol=1e-8, atol=slack)


@pytest.mark.oracle
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("rank", [1, 8])
def test_nothing_of_that_rank_is_nearer(spectrum: str, m: int, n: int, rank: int) -> None:
    assert_nearest(with_spectrum(SPECTRA[spectrum], m, n), rank)


@pytest.mark.oracle
@pytest.mark.parametrize("rank", [20, 21, 60, 400, 1000])
def test_any_rank_will_do(rank: int) -> None:
    assert_nearest(with_spectrum(SPECTRA["harmonic"], 460, 500), rank)


@pytest.mark.oracle
def test_no_copy_of_a_singular_value_is_missed() -> None:
    assert_nearest(with_spectrum(SPECTRA["many equal ones"], 620, 610), 30)


@pytest.mark.oracle
def test_a_random_matrix_has_no_gap_and_is_no_harder() -> None:
    draw = torch.Generator().manual_seed(3)
    assert_nearest(torch.randn(600, 450, generator=draw, dtype=torch.float64), 8)


@pytest.mark.oracle
@pytest.mark.parametrize("make", ["diagonal", "one row", "one entry", "two blocks"])
def test_matrices_aligned_with_the_axes(make: str) -> None:
    matrix = torch.zeros(450, 430, dtype=torch.float64)
    if make == "diagonal":
        matrix.diagonal().copy_(SPECTRA["squares"][:430])
    elif make == "one row":
        matrix[7] = 1.0
    elif make == "one entry":
        matrix[7, 5] = -2.0
    else:
        matrix[:40, :40] = torch.eye(40)
        matrix[40:, 40:] = 1e-3
    assert_nearest(matrix, 8)


def test_which_way_is_taken() -> None:
    """The Krylov space where it is worth while, and the SVD where it is not or does not converge."""
    easy, hard = (with_spectrum(SPECTRA[spectrum], 420, 450) for spectrum in ("halves", "linear"))
    assert truncation._krylov(easy, 8) is not None
    assert truncation._krylov(easy, 30) is None
    assert truncation._krylov(easy[:300], 8) is None
    assert truncation._krylov(hard, 8) is None


@pytest.mark.parametrize("spectrum", ["halves", "harmonic", "linear"])
@pytest.mark.parametrize("kind", ["random", "start"])
def test_the_space_keeps_its_law(spectrum: str, kind: str) -> None:
    """Orthonormal to round-off, also when the Krylov space is long exhausted; both images are as stated."""
    matrix = with_spectrum(SPECTRA[spectrum], 120, 140)
    start = None if kind == "random" else matrix[:20]
    space = truncation._Space(matrix, 8, 100, start)
    assert space.started == (start is not None)
    while space.grow():
        k = space.dimension
        leading, residual = space.leading(4, 8)
        u, v, core = space._left[:, :k], space._right[:, :k], space._core
        for basis in (u, v):
            assert float((basis.mT @ basis - torch.eye(k)).abs().max()) < 1e-13
        torch.testing.assert_close(matrix @ v, u @ core, rtol=0, atol=1e-13)
        torch.testing.assert_close(u.mT @ matrix @ v, core, rtol=0, atol=1e-13)
        lifted = space.lift(leading)
        rest = matrix.mT @ lifted.left - lifted.right * lifted.values
        assert residual == pytest.approx(float(rest.norm(dim=0).max()), abs=1e-13)
    assert space.dimension == (96 if kind == "random" else 100)


def test_a_start_that_misses_the_leading_vectors_changes_nothing() -> None:
    """Rows that hold none of the leading vectors, all of them, or more than a start may have."""
    matrix = with_spectrum(SPECTRA["harmonic"], 420, 450)
    exact, _ = nearest(matrix, 6)
    right = thin_svd(matrix).right.mT
    for start in (right[50:80], right[:30], torch.randn(300, 450, generator=seeded(1)).double()):
        found = truncation._krylov(matrix, 6, start)
        assert found is not None
        torch.testing.assert_close(found.dense(), exact.dense(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("spectrum", ["halves", "squares"])
def test_both_ways_give_the_same_factors(spectrum: str) -> None:
    """Distinct singular values determine the canonical factors."""
    matrix = with_spectrum(SPECTRA[spectrum], 420, 450)
    one, two = truncation._krylov(matrix, 6), truncation._exact(matrix, 6)
    assert one is not None
    # sigma_1 / gap is at most 200 at the sixth; what is verified is 1e-9 sigma_6.
    torch.testing.assert_close(one.B, two.B, rtol=0, atol=1e-8)
    torch.testing.assert_close(one.A, two.A, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("m", "n"), [(420, 450), (30, 20)])
def test_the_gauge_is_canonical(m: int, n: int) -> None:
    update, _ = nearest(with_spectrum(SPECTRA["harmonic"], m, n), 6)
    sigma = torch.diag(1 / INDEX[:6])
    for gram in (update.B.mT @ update.B, update.A @ update.A.mT):
        torch.testing.assert_close(gram, sigma, rtol=0, atol=1e-8)
    largest = update.B.gather(0, update.B.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()


def test_the_same_matrix_gives_the_same_bits_and_is_left_alone() -> None:
    matrix = with_spectrum(SPECTRA["harmonic"], 420, 450)
    before = matrix.clone()
    torch.manual_seed(1)
    one, kept = nearest(matrix, 8)
    torch.manual_seed(2)
    two, again = nearest(matrix, 8)
    assert torch.equal(one.B, two.B)
    assert torch.equal(one.A, two.A)
    assert kept == again
    assert torch.equal(matrix, before)


@pytest.mark.parametrize(("m", "n"), [(420, 450), (3, 4)])
def test_zero_has_zero_factors_and_keeps_everything(m: int, n: int) -> None:
    update, kept = nearest(torch.zeros(m, n, dtype=torch.float64), 8)
    assert (update.shape, update.rank, kept) == ((m, n), min(8, m, n), 1.0)
    assert not update.B.any()
    assert not update.A.any()


@pytest.mark.parametrize("size", [1e-280, 1e-170, 1e170, 1e280])
@pytest.mark.parametrize(("m", "n"), [(420, 450), (12, 9)])
def test_squares_neither_overflow_nor_vanish(size: float, m: int, n: int) -> None:
    matrix = with_spectrum(SPECTRA["harmonic"], m, n)
    (expected, share), (update, kept) = nearest(matrix, 4), nearest(matrix * size, 4)
    assert kept == pytest.approx(share, rel=1e-12)
    for factor, like in ((update.B, expected.B), (update.A, expected.A)):
        torch.testing.assert_close(factor / math.sqrt(size), like, rtol=0, atol=1e-8)


def test_narrower_dtypes_are_computed_in_float64() -> None:
    matrix = with_spectrum(SPECTRA["harmonic"], 30, 20).to(torch.bfloat16)
    one, two = nearest(matrix, 4)[0], nearest(matrix.to(torch.float64), 4)[0]
    assert torch.equal(one.B, two.B)
    assert torch.equal(one.A, two.A)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    matrix = torch.ones(420, 450, dtype=torch.float64)
    matrix[3, 4] = value
    with pytest.raises(NumericalError, match="NaN or Inf"):
        nearest(matrix, 2)


@pytest.mark.parametrize(("shape", "rank"), [((3,), 1), ((2, 3, 4), 1), ((0, 3), 1), ((3, 4), 0)])
def test_what_is_no_matrix_or_rank_is_an_error(shape: tuple[int, ...], rank: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        nearest(torch.ones(shape, dtype=torch.float64), rank)


def test_it_stays_on_its_device() -> None:
    matrix = with_spectrum(SPECTRA["harmonic"], 420, 450)
    expected, share = nearest(matrix, 4)
    with fake_cuda(), forbid_numpy():
        update, kept = nearest(matrix.to("cuda"), 4)
        assert update.device == CUDA
        assert kept == share
        assert torch.equal(update.B.cpu(), expected.B)
        assert torch.equal(update.A.cpu(), expected.A)


# --- what is not verified is not returned -------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["sigma", "u", "v", "a copy"])
def test_wrong_triples_are_not_accepted(fault: str) -> None:
    matrix = with_spectrum(SPECTRA["harmonic"], 40, 50)
    leading = thin_svd(matrix).truncate(4)
    assert truncation._verify(matrix, leading) is not None
    if fault == "sigma":
        wrong = leading._replace(values=leading.values * (1 + 1e-8))
    elif fault == "u":
        wrong = leading._replace(left=leading.left + 1e-8 * torch.eye(40, 4))
    elif fault == "v":
        wrong = leading._replace(right=leading.right.flip(1))
    else:
        twice = torch.tensor([0, 1, 1, 2])
        wrong = SVD(leading.left[:, twice], leading.values[twice], leading.right[:, twice])
    assert truncation._verify(matrix, wrong) is None


def test_a_space_that_fails_leaves_the_exact_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without orthogonality the space finds copies of triples; they are seen, and the SVD is taken."""

    def careless(block: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        newest = basis[:, -block.shape[1] :] if basis.shape[1] else basis
        q, beyond = torch.linalg.qr(block - newest @ (newest.mT @ block))
        return q, basis.mT @ block, beyond

    monkeypatch.setattr(truncation, "_orthogonalize", careless)
    assert_nearest(with_spectrum(SPECTRA["halves"], 420, 450), 8)
    assert_nearest(with_spectrum(SPECTRA["rank 60"], 420, 450), 8)


@pytest.mark.parametrize("size", [1e-160, 1.0, 1e150])
@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (1, 9), (9, 1)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_least_rank_keeps_the_share_and_one_less_does_not(
    spectrum: str, shape: tuple[int, int], size: float
) -> None:
    matrix = size * with_spectrum(SPECTRA[spectrum], *shape)
    energy = (torch.linalg.svdvals(matrix) / size).square()
    kept = energy.cumsum(0) / energy.sum()
    for share in (1e-6, 0.5, 0.95, 0.999):
        rank = least_rank(matrix, share)
        assert 1 <= rank <= min(shape)
        # To the round-off of the sum.
        assert kept[rank - 1] >= share - 1e-13
        assert rank == 1 or kept[rank - 2] < share + 1e-13


def test_the_least_rank_of_nothing_is_one() -> None:
    assert least_rank(torch.zeros(4, 3, dtype=torch.float64), 0.95) == 1
