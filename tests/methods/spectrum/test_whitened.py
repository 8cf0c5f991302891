"""Whitened means and powers of spectra: laws, limits, and the rows that they pass through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.manifolds import SymmetricPositiveDefinite
from riemerge.methods.setting import Setting
from riemerge.methods.singular import singular_vectors
from riemerge.methods.spectrum import ROWS, whitened
from riemerge.methods.spectrum.whitened import disagreement, whitened_mean
from riemerge.updates import Cores
from tests.fake_cuda import CUDA, fake_cuda, forbid_numpy
from tests.helpers import random_orthonormal, seeded
from tests.methods.spectra import assert_near, low_rank, normal, on_stack

spectrum, spectrum_matched, power_mean = map(
    on_stack, (whitened.spectrum, whitened.spectrum_matched, whitened.power_mean)
)
iso_c, tsv = on_stack(singular_vectors.iso_c), on_stack(singular_vectors.tsv)

METHODS: dict[str, Callable[[Tensor, Setting], Tensor]] = {
    "spectrum": spectrum,
    "spectrum_matched": spectrum_matched,
    "power_mean": power_mean,
}
EVERY = pytest.mark.parametrize("name", METHODS)
DEFAULTS = {"whitening": 0.5, "power": 0.5, "adapt": True, "order": 2.0}
CASES = {
    "wide": (low_rank(3, 9, 14, 2), [0.5, 0.3, 0.2]),
    "tall": (low_rank(2, 13, 8, 3), [0.7, 0.3]),
    "full": (normal(2, 6, 9), [0.6, 0.4]),
    "crowded": (low_rank(4, 5, 4, 3), [0.1, 0.2, 0.3, 0.4]),
    "single": (low_rank(1, 7, 5, 2), [1.0]),
}


def setting(weights: list[float], **values: Any) -> Setting:
    return Setting(
        module="layer",
        weights=torch.tensor(weights, dtype=torch.float64),
        values=DEFAULTS | values,
        shape=(40, 40),
    )


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, list[float]]:
    return CASES[request.param]


def average(x: Tensor, weights: list[float]) -> Tensor:
    return torch.einsum("t,tpq->pq", torch.tensor(weights, dtype=torch.float64), x)


def orthogonal_updates() -> Tensor:
    left, right = random_orthonormal(12, 6, seeded(3)), random_orthonormal(14, 6, seeded(4))
    return torch.stack(
        [left[:, i : i + 2] @ normal(2, 2, seed=i + 1) @ right[:, i : i + 2].mT for i in (0, 2, 4)]
    )


# --- laws of all three --------------------------------------------------------------------------------------


@EVERY
def test_isometries_of_both_spaces_commute(name: str, case: tuple[Tensor, list[float]]) -> None:
    x, weights = case
    merged = METHODS[name](x, setting(weights))
    _, p, q = x.shape
    for up in (0, 4):
        left = random_orthonormal(p + up, p, seeded(1))
        right = random_orthonormal(q + 2 * up, q, seeded(2))
        # What is zero to round-off is left out, so only what is there counts, at the root of the condition.
        assert_near(METHODS[name](left @ x @ right.mT, setting(weights)), left @ merged @ right.mT, 1e-9)


@EVERY
def test_homogeneous_of_degree_one(name: str, case: tuple[Tensor, list[float]]) -> None:
    x, weights = case
    for factor in (-1.0, 1e-12, 1e9):
        found = METHODS[name](factor * x, setting(weights))
        assert_near(found, factor * METHODS[name](x, setting(weights)), 1e-9)


@EVERY
@pytest.mark.parametrize("whitening", [0.0, 0.3, 1.0])
def test_copies_give_themselves_at_any_whitening(name: str, whitening: float) -> None:
    x = low_rank(1, 9, 14, 3).expand(4, 9, 14)
    for values in ({"power": 0.5, "order": 3.0}, {"power": 0.0, "order": 0.5}):
        found = METHODS[name](x, setting([0.1, 0.2, 0.3, 0.4], whitening=whitening, **values))
        assert_near(found, x[0], 1e-9)


@EVERY
def test_two_copies_count_as_one_of_the_sum_of_their_weights(name: str) -> None:
    x = low_rank(2, 9, 14, 2)
    split = METHODS[name](x[[0, 1, 1]], setting([0.5, 0.2, 0.3]))
    assert_near(split, METHODS[name](x, setting([0.5, 0.5])), 1e-9)


@EVERY
def test_without_whitening_and_power_it_is_the_average(name: str, case: tuple[Tensor, list[float]]) -> None:
    x, weights = case
    assert_near(METHODS[name](x, setting(weights, whitening=0.0, power=1.0, order=1.0)), average(x, weights))


@EVERY
def test_equal_singular_values_of_an_update_do_no_harm(name: str) -> None:
    frames = [
        random_orthonormal(9, 3, seeded(i)) @ random_orthonormal(11, 3, seeded(i + 9)).mT for i in (0, 1)
    ]
    x, at = torch.stack(frames), setting([0.7, 0.3])
    left, right = random_orthonormal(9, 9, seeded(1)), random_orthonormal(11, 11, seeded(2))
    assert_near(METHODS[name](left @ x @ right.mT, at), left @ METHODS[name](x, at) @ right.mT, 1e-9)


@EVERY
def test_updates_of_zero(name: str) -> None:
    x = torch.zeros(2, 4, 5, dtype=torch.float64)
    assert torch.equal(METHODS[name](x, setting([0.5, 0.5])), x[0])
    mixed = torch.cat([low_rank(2, 4, 5, 2), x])
    assert bool(METHODS[name](mixed, setting([0.25] * 4)).isfinite().all())


@EVERY
def test_a_weight_that_vanishes_is_absence(name: str) -> None:
    x = low_rank(3, 9, 14, 2)
    found = METHODS[name](x, setting([0.5, 0.5 - 1e-14, 1e-14]))
    # Whitening by half and the order 2: the fourth root of the weight.
    assert_near(found, METHODS[name](x[:2], setting([0.5, 0.5])), 1e-2)


@EVERY
def test_the_device_changes_nothing_and_numpy_is_not_asked(name: str) -> None:
    x, weights = CASES["wide"]
    expected = METHODS[name](x, setting(weights))
    with forbid_numpy():
        assert torch.equal(METHODS[name](x, setting(weights)), expected)
    with fake_cuda():
        found = METHODS[name](x.to("cuda"), setting(weights))
        assert found.device == CUDA
        # The device lays its memory out anew, and a vectorised power may then differ in its last bit.
        assert_near(found.cpu(), expected, 1e-14)


# --- the whitened mean --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wide", "tall", "single"])
def test_wholly_whitened_it_is_tsv_with_weights_of_one(name: str) -> None:
    x, _ = CASES[name]
    equal = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    assert_near(whitened_mean(Cores.of_stack(x), equal, 1.0), tsv(x, setting([1.0] * len(x))))
    found = spectrum(x, setting(equal.tolist(), whitening=1.0, power=1.0))
    assert_near(found, tsv(x, setting([1.0] * len(x))))


@pytest.mark.oracle
@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_whitening_is_scipys_fractional_power_of_the_gram_matrices(exponent: float) -> None:
    x, weights = low_rank(3, 9, 14, 2), [0.5, 0.3, 0.2]
    each = [np.linalg.svd(one.numpy(), full_matrices=False) for one in x]
    left = np.concatenate([w**0.5 * u[:, :2] for w, (u, _, _) in zip(weights, each, strict=True)], axis=1)
    right = np.concatenate([w**0.5 * vh[:2].T for w, (_, _, vh) in zip(weights, each, strict=True)], axis=1)
    values = np.diag(np.concatenate([s[:2] for _, s, _ in each]))
    roots = [scipy.linalg.fractional_matrix_power(one.T @ one, -exponent / 2) for one in (left, right)]
    expected = left @ roots[0] @ values @ roots[1] @ right.T
    found = whitened_mean(Cores.of_stack(x), torch.tensor(weights, dtype=torch.float64), exponent)
    # The Gram matrices have the square of the condition.
    assert_near(found, torch.from_numpy(expected), 1e-8)


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.0])
def test_orthogonal_updates_are_between_their_average_and_their_sum(exponent: float) -> None:
    x, weights = orthogonal_updates(), [0.5, 0.3, 0.2]
    scaled = [w ** (1.0 - exponent) for w in weights]
    found = whitened_mean(Cores.of_stack(x), torch.tensor(weights, dtype=torch.float64), exponent)
    assert_near(found, average(x, scaled))
    mean = power_mean(x, setting(weights, whitening=exponent, order=2.0))
    assert_near(mean, average(x, [w ** ((1.0 - exponent) / 2) for w in weights]), 1e-9)


# --- the power ----------------------------------------------------------------------------------------------


def test_the_power_is_the_affine_invariant_geodesic_to_the_identity() -> None:
    x, weights = normal(3, 6, 6), [0.5, 0.3, 0.2]
    rotation, core = scipy.linalg.polar(average(x, weights).numpy())
    spd, start = SymmetricPositiveDefinite(6, k=1), torch.from_numpy(core)[None]
    way = spd.log(start, torch.eye(6, dtype=torch.float64)[None])
    expected = torch.from_numpy(rotation) @ spd.exp(start, 0.4 * way)[0]
    found = spectrum(x, setting(weights, whitening=0.0, power=0.6, adapt=False))
    assert_near(found / found.norm(), expected / expected.norm(), 1e-9)
    assert float(found.norm()) == pytest.approx(float(average(x, weights).norm()))


def test_the_end_of_the_way_is_iso_c_but_for_its_scale(case: tuple[Tensor, list[float]]) -> None:
    x, weights = case
    flat = iso_c(x, setting(weights))
    found = spectrum(x, setting(weights, whitening=0.0, power=0.0, adapt=False))
    assert_near(found / found.norm(), flat / flat.norm())


def test_without_adapting_copies_are_not_themselves() -> None:
    x = low_rank(1, 9, 14, 3).expand(4, 9, 14)
    found = spectrum(x, setting([0.25] * 4, adapt=False))
    assert float((found - x[0]).norm() / x[0].norm()) >= 1e-2
    assert float(found.norm()) == pytest.approx(float(x[0].norm()))


def test_adapting_goes_as_far_as_the_updates_disagree() -> None:
    x, weights = low_rank(3, 9, 14, 2), [0.5, 0.3, 0.2]
    share = float(disagreement(Cores.of_stack(x), torch.tensor(weights, dtype=torch.float64)))
    plain = spectrum(x, setting(weights, power=1.0 - 0.5 * share, adapt=False))
    assert_near(spectrum(x, setting(weights)), plain)
    one = orthogonal_updates()
    one = one / torch.linalg.matrix_norm(one)[:, None, None]
    found = disagreement(Cores.of_stack(one), torch.tensor(weights, dtype=torch.float64))
    assert float(found) == pytest.approx(1.0 - sum(w**2 for w in weights))


def test_a_cut_after_the_mean_commutes_with_the_power() -> None:
    x, weights = CASES["full"]
    at = setting(weights, adapt=False)
    u, s, vh = torch.linalg.svd(spectrum(x, at), full_matrices=False)
    after = (u[:, :3] * s[:3]) @ vh[:3]
    u, s, vh = torch.linalg.svd(whitened_mean(Cores.of_stack(x), at.weights, 0.5), full_matrices=False)
    cut = (u[:, :3] * s[:3]) @ vh[:3]
    before = spectrum(cut[None], setting([1.0], whitening=0.0, adapt=False))
    assert_near(after / after.norm(), before / before.norm())


# --- the matched spectrum -----------------------------------------------------------------------------------


def test_matched_at_the_end_it_has_the_mean_spectrum_and_none_of_it_is_nearer_to_the_average() -> None:
    x, weights = CASES["full"]
    found = spectrum_matched(x, setting(weights, whitening=0.0, power=0.0))
    squares = torch.linalg.svdvals(x).square()
    target = average(squares[:, None], weights)[0].sqrt()
    assert_near(torch.linalg.svdvals(found), target)
    mean = average(x, weights)
    # The distance of two matrices is at least that of their spectra (Mirsky).
    least = (torch.linalg.svdvals(mean) - target).norm()
    assert float((found - mean).norm()) == pytest.approx(float(least))


def test_matched_on_the_way_the_spectrum_is_a_geometric_mean() -> None:
    x, weights = CASES["wide"]
    start = spectrum_matched(x, setting(weights, power=1.0))
    end, half = (spectrum_matched(x, setting(weights, power=power)) for power in (0.0, 0.5))
    values = [torch.linalg.svdvals(one)[:2] for one in (start, half, end)]
    assert_near(values[1], (values[0] * values[2]).sqrt())
    assert int(torch.linalg.matrix_rank(half)) == 2


def test_matched_refuses_to_tell_equal_singular_values_apart() -> None:
    x = torch.stack([torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 3.0]))]).double()
    with pytest.raises(NumericalError, match="singular values 1 and 2 of the mean are equal"):
        spectrum_matched(x, setting([0.5, 0.5], whitening=0.0))
    assert_near(spectrum_matched(x, setting([0.5, 0.5], whitening=0.0, power=1.0)), average(x, [0.5, 0.5]))


def test_matched_at_the_end_refuses_what_cancels() -> None:
    x = normal(2, 6, 5, seed=3)
    x[1] = -x[0]
    with pytest.raises(NumericalError, match="0 directions left"):
        spectrum_matched(x, setting([0.5, 0.5], whitening=0.0, power=0.0))
    assert not spectrum_matched(x, setting([0.5, 0.5], whitening=0.0, power=0.5)).any()  # the limit is zero


# --- the power mean -----------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
def test_the_power_mean_of_positive_matrices_is_scipys(order: float) -> None:
    roots = normal(3, 5, 5)
    x, weights = roots @ roots.mT, [0.5, 0.3, 0.2]
    powers = [scipy.linalg.fractional_matrix_power(one.numpy(), order) for one in x]
    mean = sum(w * one for w, one in zip(weights, powers, strict=True))
    expected = torch.from_numpy(scipy.linalg.fractional_matrix_power(mean, 1 / order))
    found = power_mean(x, setting(weights, whitening=0.0, order=order))
    assert_near(found, expected, 1e-8)


def test_rows_are_true_to_their_functions() -> None:
    assert [row.name for row in ROWS] == list(METHODS)
    for row in ROWS:
        assert row.mean == f"riemerge.methods.spectrum.whitened:{row.name}"
        assert row.domain == "cores"
        usual = DEFAULTS | ({"power": 0.25} if row.name == "spectrum" else {})
        assert all(usual[key] == value for key, value in row.defaults.items() if key != "scale")
