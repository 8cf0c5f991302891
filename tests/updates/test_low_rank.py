"""Laws of LowRankUpdate, against dense numpy, at random and ill-conditioned points."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riemerge.updates.low_rank import JointSpan, LowRankUpdate, sum_updates
from tests.fake_cuda import fake_cuda

EPS = float(np.finfo(np.float64).eps)


def random_update(
    seed: int, m: int, n: int, r: int, *, decades: float = 0.0, scale: float = 1.0
) -> LowRankUpdate:
    """Gaussian factors whose columns of B fall over so many decades."""
    generator = torch.Generator().manual_seed(seed)
    fall = 10.0 ** -(torch.arange(r, dtype=torch.float64) * decades / max(r - 1, 1))
    b = torch.randn(m, r, generator=generator, dtype=torch.float64) * fall
    return LowRankUpdate(b, torch.randn(r, n, generator=generator, dtype=torch.float64), scale)


def dense(update: LowRankUpdate) -> np.ndarray:
    return update.scale * update.B.double().numpy() @ update.A.double().numpy()


def bound(*updates: LowRankUpdate) -> float:
    """Round-off of a product of factors: eps times their norms; the factor covers the sizes below."""
    return (
        1e3
        * EPS
        * math.prod(abs(u.scale) * float(u.B.double().norm() * u.A.double().norm()) for u in updates)
    )


any_update = st.builds(
    random_update,
    seed=st.integers(0, 10_000),
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    r=st.integers(1, 8),
    decades=st.floats(0.0, 6.0),
    scale=st.sampled_from([-100.0, -0.3, 0.0, 1.0, 2.0, 1e6]),
)
laws = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@laws
@given(any_update)
def test_norm_spectrum_and_dense_are_those_of_dw(update: LowRankUpdate) -> None:
    matrix, tolerance = dense(update), bound(update)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    assert update.shape == matrix.shape
    assert update.norm() == pytest.approx(np.linalg.norm(matrix), abs=tolerance)
    found = update.singular_values().numpy()
    np.testing.assert_allclose(found, sigma[: len(found)], rtol=0, atol=tolerance)
    assert np.all(sigma[len(found) :] <= tolerance)
    np.testing.assert_allclose(update.dense().numpy(), matrix, rtol=0, atol=tolerance)


@laws
@given(any_update, st.integers(0, 10_000), st.integers(1, 8))
def test_inner_is_the_trace_and_agrees_with_the_norm(update: LowRankUpdate, seed: int, r: int) -> None:
    other = random_update(seed, *update.shape, r, decades=3.0, scale=-0.7)
    tolerance = bound(update, other)
    assert update.inner(other) == pytest.approx(np.sum(dense(update) * dense(other)), abs=tolerance)
    assert update.inner(other) == pytest.approx(other.inner(update), abs=tolerance)
    assert update.inner(update) == pytest.approx(update.norm() ** 2, abs=bound(update, update))


@laws
@given(any_update, st.integers(1, 9))
def test_truncate_is_the_best_approximation(update: LowRankUpdate, rank: int) -> None:
    sigma = np.linalg.svd(dense(update), compute_uv=False)
    best = np.linalg.norm(sigma[rank:])
    cut = update.truncate(rank)
    assert cut.rank == min(rank, update.rank, *update.shape)
    assert np.linalg.norm(dense(cut) - dense(update)) == pytest.approx(best, abs=bound(update))
    total = float(np.sum(sigma**2))
    expected = float(np.sum(sigma[:rank] ** 2)) / total if total > 0 else 1.0
    assert update.energy_kept(rank) == pytest.approx(expected, abs=1e-9)  # a ratio of sums of squares


@laws
@given(any_update)
def test_balance_is_the_same_update_in_the_svd_gauge(update: LowRankUpdate) -> None:
    balanced, tolerance = update.balance(), bound(update)
    assert balanced.scale == 1.0
    np.testing.assert_allclose(dense(balanced), dense(update), rtol=0, atol=tolerance)
    spectrum = np.diag(update.singular_values().numpy())
    np.testing.assert_allclose((balanced.B.T @ balanced.B).numpy(), spectrum, rtol=0, atol=tolerance)
    np.testing.assert_allclose((balanced.A @ balanced.A.T).numpy(), spectrum, rtol=0, atol=tolerance)
    b = balanced.B.numpy()
    assert np.all(b[np.abs(b).argmax(axis=0), np.arange(b.shape[1])] >= 0)


@pytest.mark.parametrize("seed", range(5))
def test_balance_forgets_the_gauge(seed: int) -> None:
    update = random_update(seed, 40, 30, 6, decades=2.0, scale=1.5)
    rng = np.random.default_rng(seed)
    p, q = (np.linalg.qr(rng.standard_normal((6, 6)))[0] for _ in range(2))
    change = p @ np.diag(np.logspace(0, 3, 6)) @ q  # condition 1e3
    other = LowRankUpdate(
        update.B @ torch.from_numpy(change), torch.from_numpy(np.linalg.inv(change)) @ update.A, update.scale
    )
    # The round-off of the change of gauge, 1e3 eps, over √ of singular values 1e-2 below the largest.
    torch.testing.assert_close(other.balance().B, update.balance().B, rtol=0, atol=1e-9)
    torch.testing.assert_close(other.balance().A, update.balance().A, rtol=0, atol=1e-9)
    assert not torch.allclose(other.B, update.B, atol=1e-3)


def test_the_norm_survives_cancellation_where_a_gram_matrix_does_not() -> None:
    # dW = b (a - a + 2^-40 c) with small integers: every entry is exact, and so is ‖dW‖ = 2^-40 ‖b‖ ‖c‖.
    b, a, c = (torch.tensor(v, dtype=torch.float64) for v in ([3.0, 1.0, 2.0], [1.0, 5.0], [7.0, -2.0]))
    update = LowRankUpdate(torch.stack([b, b], dim=1), torch.stack([a, -a + 2.0**-40 * c]))
    exact = 2.0**-40 * float(b.norm() * c.norm())
    # eps ‖B‖ ‖A‖ / exact is 5e-4
    assert update.norm() == pytest.approx(exact, rel=5e-3)
    assert update.inner(update.balance()) == pytest.approx(exact**2, rel=1e-2)
    gram = float(((update.B.T @ update.B) * (update.A @ update.A.T)).sum())
    assert math.sqrt(max(gram, 0.0)) != pytest.approx(exact, rel=0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_numerical_rank_sees_through_the_rounding_of_the_storage(dtype: torch.dtype) -> None:
    full = random_update(3, 600, 500, 5)
    assert full.to(dtype).numerical_rank() == 5
    # Rank 5 hidden in 10 columns: rounding the factors fills the other five with noise.
    unused = random_update(4, 600, 500, 5)
    gauge = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).standard_normal((10, 10)))[0])
    b, a = torch.cat([full.B, 0 * unused.B], dim=1), torch.cat([full.A, unused.A])
    hidden = LowRankUpdate(b @ gauge, gauge.T @ a).to(dtype)
    assert hidden.numerical_rank() == 5
    assert hidden.to(torch.float64).numerical_rank(storage=dtype) == 5
    if dtype is not torch.float64:
        assert hidden.to(torch.float64).numerical_rank() == 10


def test_numerical_rank_counts_up_to_its_threshold() -> None:
    tau = math.sqrt(2) * torch.finfo(torch.float32).eps  # the part of float64 is 1e-8 of it
    for factor, rank in ((1.01, 2), (0.99, 1)):
        b = torch.diag(torch.tensor([1.0, factor * tau], dtype=torch.float64))
        assert (
            LowRankUpdate(b, torch.eye(2, dtype=torch.float64)).numerical_rank(storage=torch.float32) == rank
        )


@laws
@given(any_update, st.integers(0, 10_000), st.floats(-3, 3), st.floats(-3, 3))
def test_sum_is_exact_with_weights_of_any_sign(update: LowRankUpdate, seed: int, v: float, w: float) -> None:
    other = random_update(seed, *update.shape, 3, scale=2.0)
    total = sum_updates([update, other], [v, w])
    assert total.rank == update.rank + other.rank
    expected = v * dense(update) + w * dense(other)
    np.testing.assert_allclose(dense(total), expected, rtol=0, atol=3 * (bound(update) + bound(other)))


def test_negation_scaling_and_conversion() -> None:
    update = random_update(0, 5, 4, 2, scale=1.5)
    np.testing.assert_array_equal(dense(-update), -dense(update))
    np.testing.assert_array_equal(dense(update.times(2.0)), 2 * dense(update))
    half = update.to(torch.float16)
    assert (half.dtype, half.scale, half.device) == (torch.float16, 1.5, torch.device("cpu"))
    assert update.to().B is update.B
    assert half.balance().dtype == half.truncate(1).dtype == torch.float16
    assert half.norm() == pytest.approx(
        np.linalg.norm(dense(half)), rel=1e-12
    )  # exact values, float64 arithmetic
    assert sum_updates([update, half], [1.0, 1.0]).dtype == torch.float64


def test_the_zero_update_has_answers() -> None:
    zero = LowRankUpdate(torch.zeros(4, 2), torch.ones(2, 3))
    assert (zero.norm(), zero.numerical_rank(), zero.energy_kept(1)) == (0.0, 0, 1.0)
    assert not zero.balance().dense().any()
    assert not random_update(0, 4, 3, 2, scale=0.0).dense().any()


def test_dw_is_never_formed() -> None:
    wide = random_update(0, 100_000, 100_000, 2)  # dW would take 80 GB
    assert wide.truncate(1).norm() < wide.norm()


# --- joint spans --------------------------------------------------------------------------------------------


@laws
@given(any_update, st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6))
def test_small_updates_have_the_geometry_of_the_updates(
    update: LowRankUpdate, seed: int, r: int, q: int
) -> None:
    others = [random_update(seed, *update.shape, r, decades=4.0), random_update(seed + 1, *update.shape, q)]
    updates = [update, *others]
    small = JointSpan(updates).updates
    total = sum(x.rank for x in updates)
    m, n = update.shape
    assert {x.shape for x in small} == {(min(m, total), min(n, total))}
    for one, x in zip(updates, small, strict=True):
        for other, y in zip(updates, small, strict=True):
            expected = np.sum(dense(one) * dense(other))
            assert x.inner(y) == pytest.approx(expected, abs=10 * bound(one, other))
        sigma = np.linalg.svd(dense(one), compute_uv=False)
        found = x.singular_values().numpy()[: len(sigma)]
        np.testing.assert_allclose(found, sigma[: len(found)], rtol=0, atol=10 * bound(one))


@laws
@given(any_update, st.integers(0, 10_000), st.integers(1, 6))
def test_lifting_returns_what_was_reduced(update: LowRankUpdate, seed: int, r: int) -> None:
    other = random_update(seed, *update.shape, r, decades=4.0, scale=-2.0)
    span = JointSpan([update, other])
    for whole, small in zip((update, other), span.updates, strict=True):
        lifted = span.lift(small)
        assert (lifted.shape, lifted.rank) == (whole.shape, whole.rank)
        np.testing.assert_allclose(dense(lifted), dense(whole), rtol=0, atol=bound(whole))
    mean = sum_updates(span.updates, [0.25, 0.75])
    expected = 0.25 * dense(update) + 0.75 * dense(other)
    np.testing.assert_allclose(dense(span.lift(mean)), expected, rtol=0, atol=bound(update) + bound(other))


@pytest.mark.parametrize("seed", range(3))
def test_a_gauge_of_any_condition_costs_its_round_off_only(seed: int) -> None:
    plain = [random_update(10 * seed + i, 50, 40, 5, decades=1.0) for i in range(3)]
    rng = np.random.default_rng(seed)
    p, q = (np.linalg.qr(rng.standard_normal((5, 5)))[0] for _ in range(2))
    gauge = p @ np.diag(np.logspace(0, 6, 5)) @ q
    turned = LowRankUpdate(
        plain[0].B @ torch.from_numpy(gauge), torch.from_numpy(np.linalg.inv(gauge)) @ plain[0].A
    )
    span = JointSpan([turned, *plain[1:]])
    # 1e6 eps of the gauge; a Gram matrix would see the square of its condition and lose everything.
    assert np.linalg.norm(dense(span.lift(span.updates[0])) - dense(turned)) <= 1e-9 * turned.norm()
    assert span.updates[0].inner(span.updates[1]) == pytest.approx(
        plain[0].inner(plain[1]), abs=1e-8 * plain[0].norm() * plain[1].norm()
    )


def test_canonical_factors_stay_canonical_when_lifted() -> None:
    updates = [random_update(i, 60, 50, 4) for i in range(3)]
    span = JointSpan(updates)
    lifted = span.lift(span.updates[1].balance())
    torch.testing.assert_close(lifted.B, updates[1].balance().B, rtol=0, atol=1e-12)
    torch.testing.assert_close(lifted.A, updates[1].balance().A, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_span_computes_in_the_dtype_of_its_factors(dtype: torch.dtype) -> None:
    updates = [random_update(i, 60, 50, 4).to(dtype) for i in range(2)]
    span = JointSpan(updates)
    assert {small.dtype for small in span.updates} == {torch.float64}
    lifted = span.lift(span.updates[0])
    assert lifted.dtype is torch.float32
    assert 0 < np.linalg.norm(dense(lifted) - dense(updates[0])) <= 1e-5 * updates[0].norm()
    assert JointSpan([updates[0], updates[1].to(torch.float64)]).lift(span.updates[0]).dtype is torch.float64


def test_absorbing_a_scale_keeps_the_canonical_gauge() -> None:
    balanced = random_update(0, 9, 8, 3).balance()
    for factor in (2.0, -0.3, 0.0):
        absorbed = balanced.times(factor).absorb_scale()
        again = balanced.times(factor).balance()
        assert absorbed.scale == 1.0
        torch.testing.assert_close(absorbed.B, again.B, rtol=0, atol=1e-13)
        torch.testing.assert_close(absorbed.A, again.A, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LowRankUpdate(torch.ones(3, 2), torch.ones(3, 4)), r"B is \(3, 2\) and A is \(3, 4\)"),
        (lambda: LowRankUpdate(torch.ones(3), torch.ones(1, 4)), r"B is \(3,\)"),
        (lambda: LowRankUpdate(torch.ones(3, 0), torch.ones(0, 4)), r"B is \(3, 0\)"),
        (lambda: LowRankUpdate(torch.ones(3, 1), torch.ones(1, 4).double()), "expected one dtype and device"),
        (lambda: LowRankUpdate(torch.ones(3, 1).long(), torch.ones(1, 4).long()), "expected a float dtype"),
        (lambda: LowRankUpdate(torch.ones(3, 1), torch.ones(1, 4), math.inf), "scale is inf"),
        (lambda: random_update(0, 3, 3, 1).truncate(0), "rank 0"),
        (lambda: random_update(0, 3, 3, 1).inner(random_update(0, 3, 4, 1)), "no inner product"),
        (lambda: sum_updates([], []), "0 updates and 0 weights"),
        (lambda: JointSpan([]), "expected at least one"),
        (lambda: JointSpan([random_update(0, 3, 3, 1), random_update(0, 4, 3, 1)]), "all of one shape"),
        (lambda: sum_updates([random_update(0, 3, 3, 1)], [1.0, 2.0]), "1 updates and 2 weights"),
        (
            lambda: sum_updates([random_update(0, 3, 3, 1), random_update(0, 3, 4, 1)], [1, 1]),
            "different shapes",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_everything_happens_on_the_device_of_the_factors() -> None:
    update = random_update(0, 6, 5, 2, scale=0.5)
    with fake_cuda():
        there = update.to(device="cuda")
        for result in (there.balance(), there.truncate(1), sum_updates([there, -there], [0.5, 0.25])):
            assert result.device.type == "cuda"
        assert there.singular_values().device.type == there.dense().device.type == "cuda"
        assert there.norm() == pytest.approx(update.norm(), rel=1e-12)
        assert there.inner(there) == pytest.approx(update.norm() ** 2, rel=1e-12)
        assert there.numerical_rank() == 2
        span = JointSpan([there, -there])
        assert span.updates[0].device.type == span.lift(span.updates[1]).device.type == "cuda"
