"""Core Space: the reference bases' laws, and its merges beside numpy, PEFT and merges without bases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.methods.core_space import core, core_dare_ties, core_ties, survey
from riemerge.methods.setting import Setting
from riemerge.methods.spectral import iso_c, tsv
from riemerge.updates import JointSpan, LowRankUpdate
from tests.fake_cuda import CUDA, fake_cuda, forbid_numpy
from tests.helpers import random_gauge, random_orthonormal, seeded

# The inputs' condition is at most a few hundred.
CLOSE = 1e-10


def setting(weights: list[float], x: Tensor, density: float = 1.0, **values: Any) -> Setting:
    return Setting(
        module=f"{x.shape[1]} x {x.shape[2]}",
        weights=torch.tensor(weights, dtype=torch.float64),
        values={"density": torch.full((len(x),), density, dtype=torch.float64), "merge_func": "mean"}
        | values,
        shape=(x.shape[1], x.shape[2]),
        seeds=tuple(range(7, 7 + len(x))),
    )


def ties(x: Tensor, at: Setting) -> Tensor:
    return core_ties(x, replace(at, facts=survey(lambda: iter([(x, at)]))))


MEANS = {"ties": ties, "dare_ties": core_dare_ties}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def low_rank(count: int, m: int, n: int, r: int, seed: int = 0) -> Tensor:
    return normal(count, m, r, seed=seed) @ normal(count, r, n, seed=seed + 100)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = CLOSE) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


CASES = {
    "wide": (low_rank(3, 9, 14, 2), [0.5, 0.3, 0.2]),
    "tall": (low_rank(2, 13, 4, 3), [0.7, 1.9]),
    "full": (normal(2, 6, 9), [1.0, 0.4]),
    "single": (low_rank(1, 7, 5, 2), [1.0]),
    "tiny": (normal(2, 2, 2), [0.2, 0.8]),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Setting]:
    x, weights = CASES[request.param]
    return x, setting(weights, x, 0.6)


@pytest.mark.oracle
@pytest.mark.parametrize("density", [0.3, 0.99])
@pytest.mark.parametrize(("m", "n", "r"), [(12, 9, 2), (8, 15, 2)])
def test_ties_is_pefts_in_the_published_bases_of_balanced_factors(
    m: int, n: int, r: int, density: float
) -> None:
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    x = low_rank(3, m, n, r, seed=4)
    pairs = []
    for one in x.numpy():
        u, s, vh = np.linalg.svd(one)
        pairs.append((u[:, :r] * np.sqrt(s[:r]), np.sqrt(s[:r])[:, None] * vh[:r]))
    left = np.linalg.svd(np.concatenate([b for b, _ in pairs], axis=1), full_matrices=False)[0]
    right = np.linalg.svd(np.concatenate([a for _, a in pairs], axis=0), full_matrices=False)[2].T
    cores = [torch.from_numpy(left.T @ b @ a @ right) for b, a in pairs]
    merged = merge_utils.ties(cores, torch.ones(3, dtype=torch.float64), density, "total")
    expected = torch.from_numpy(left) @ merged @ torch.from_numpy(right).T
    assert_near(ties(x, setting([1.0] * 3, x, density)), expected)


def test_nothing_is_lost_in_the_bases(case: tuple[Tensor, Setting]) -> None:
    x, _ = case
    left, cores, right = core(x)
    assert_near(left @ cores @ right.mT, x)
    for basis, joint in ((left, torch.cat(list(x), dim=1)), (right, torch.cat(list(x), dim=0).mT)):
        rank = basis.shape[1]
        assert rank == int(torch.linalg.matrix_rank(joint))
        assert torch.allclose(basis.mT @ basis, torch.eye(rank, dtype=torch.float64), atol=1e-13)


def test_updates_that_nearly_agree_keep_their_differences() -> None:
    near, right = random_orthonormal(8, 2, seeded(1)), random_orthonormal(9, 1, seeded(2))
    x = torch.stack([near[:, :1] @ right.mT, (near[:, :1] + 1e-6 * near[:, 1:]) @ right.mT])
    left, cores, right = core(x)
    assert_near(left @ cores @ right.mT, x, 1e-12)


def test_merges_that_need_no_basis_are_the_same_in_core_space() -> None:
    x = low_rank(3, 14, 12, 2)
    at = setting([1.0, 0.5, 2.0], x)
    left, cores, right = core(x)
    assert_near(left @ tsv(cores, at) @ right.mT, tsv(x, at))
    assert_near(left @ iso_c(cores, at) @ right.mT, iso_c(x, at))


@pytest.mark.parametrize("name", MEANS)
def test_isometries_of_both_spaces_commute(name: str, case: tuple[Tensor, Setting]) -> None:
    x, at = case
    merged = MEANS[name](x, at)
    _, p, q = x.shape
    for up in (0, 4):
        left = random_orthonormal(p + up, p, seeded(up))
        right = random_orthonormal(q + 2 * up, q, seeded(up + 9))
        assert_near(MEANS[name](left @ x @ right.mT, at), left @ merged @ right.mT)


@pytest.mark.parametrize("name", MEANS)
def test_undecided_entries_depend_on_no_sign_of_a_basis_vector(name: str) -> None:
    x = low_rank(1, 6, 8, 3)
    x = torch.cat([x, -x])
    at = setting([1.0, 1.0], x, 1.0)
    assert not MEANS[name](x, at).any()


@pytest.mark.parametrize("name", MEANS)
def test_order_is_nothing(name: str, case: tuple[Tensor, Setting]) -> None:
    x, at = case
    order = list(range(len(x)))[::-1]
    density = torch.linspace(0.4, 0.9, len(x), dtype=torch.float64)
    at = replace(at, values=at.values | {"density": density})
    turned = replace(
        at,
        weights=at.weights[order],
        seeds=at.seeds[::-1],
        values=at.values | {"density": density[order]},
    )
    assert_near(MEANS[name](x[order], turned), MEANS[name](x, at))


@pytest.mark.parametrize("name", MEANS)
def test_the_gauge_of_the_factors_is_nothing(name: str) -> None:
    factors = [(normal(20, r, seed=r), normal(r, 17, seed=r + 50)) for r in (2, 3, 4)]
    merged = []
    for condition in (1.0, 100.0):
        gauges = [random_gauge(b.shape[1], condition, seeded(b.shape[1])) for b, _ in factors]
        turned = [
            LowRankUpdate(b @ g, torch.linalg.inv(g) @ a) for (b, a), g in zip(factors, gauges, strict=True)
        ]
        span = JointSpan(turned)
        x = torch.stack([small.dense() for small in span.updates])
        found = MEANS[name](x, setting([0.5, 0.2, 0.3], x, 0.5))
        eye = torch.eye(found.shape[1], dtype=torch.float64)
        merged.append(span.lift(LowRankUpdate(found, eye)).dense())
    # Round-off times the condition of the gauge, and of the small singular values.
    assert_near(merged[1], merged[0], 1e-9)


@pytest.mark.parametrize("weights", [[1 / 3] * 3, [0.2, 0.3, 0.5]])
def test_copies_give_themselves_at_full_density(weights: list[float]) -> None:
    x = low_rank(1, 9, 14, 2).expand(3, 9, 14)
    at = setting(weights, x, 1.0)
    assert_near(ties(x, at), x[0])
    assert_near(core_dare_ties(x, at), x[0])


def test_the_core_of_one_update_is_its_singular_values() -> None:
    x = low_rank(1, 7, 5, 3)
    _, cores, _ = core(x)
    assert_near(cores[0].abs(), torch.diag(torch.linalg.svdvals(x[0])[:3]))
    # So a trim to three of nine entries loses nothing.
    assert_near(ties(x, setting([1.0], x, 0.34)), x[0])


def test_the_threshold_is_one_for_all_modules() -> None:
    seen = [(x, setting([1.0, 1.0], x, 0.4)) for x in (low_rank(2, 7, 8, 2), 1e3 * low_rank(2, 9, 6, 2))]
    facts = survey(lambda: iter(seen))
    merged = [core_ties(x, replace(at, facts=facts)) for x, at in seen]
    assert not merged[0].any()
    assert merged[1].any()


def test_equal_singular_values_are_refused() -> None:
    x = torch.eye(4, 5, dtype=torch.float64)[None]
    with pytest.raises(NumericalError, match="singular values 1 and 2 are equal"):
        core(x)


def test_updates_of_zero_merge_to_zero() -> None:
    x = torch.zeros(2, 4, 5, dtype=torch.float64)
    # One entry, so that a survey has something to count.
    assert core(x).cores.shape == (2, 1, 1)
    for mean in MEANS.values():
        assert torch.equal(mean(x, setting([1.0, 1.0], x, 0.5)), x[0])


@pytest.mark.parametrize("name", MEANS)
def test_the_device_changes_no_bit_and_numpy_is_not_asked(name: str) -> None:
    x, weights = CASES["wide"]
    at = setting(weights, x, 0.6)
    with forbid_numpy():
        expected = MEANS[name](x, at)
    with fake_cuda():
        found = MEANS[name](x.to("cuda"), at)
        assert found.device == CUDA
        assert torch.equal(found.cpu(), expected)
