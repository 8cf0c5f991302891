"""Core Space: the reference bases' laws, and its merges beside numpy, PEFT and merges without bases."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.methods import METHODS
from riemerge.methods.setting import Setting
from riemerge.methods.singular import core_space, singular_vectors
from riemerge.methods.singular.core_space import Core, survey
from riemerge.updates import Cores
from tests.fake_cuda import CUDA, fake_cuda, forbid_numpy
from tests.helpers import random_orthonormal, seeded
from tests.methods.rows import Alone
from tests.methods.spectra import CASES, assert_near, in_both_orders, low_rank, on_stack, trimmed

core_ties, core_dare_ties = on_stack(core_space.core_ties), on_stack(core_space.core_dare_ties)
iso_c, tsv = on_stack(singular_vectors.iso_c), on_stack(singular_vectors.tsv)


def core(x: Tensor) -> Core:
    return core_space.core(Cores.of_stack(x))


def ties(x: Tensor, at: Setting) -> Tensor:
    return core_ties(x, replace(at, facts=survey(lambda: iter([(Cores.of_stack(x), at)]))))


MEANS = {"ties": ties, "dare_ties": core_dare_ties}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Setting]:
    x, weights = CASES[request.param]
    return x, trimmed(weights, x, 0.6)


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
    assert_near(ties(x, trimmed([1.0] * 3, x, density)), expected)


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
    at = trimmed([1.0, 0.5, 2.0], x)
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


def test_it_is_ties_in_the_principal_axes_of_the_sums_of_absolute_values() -> None:
    x = low_rank(3, 6, 6, 2, seed=4)
    axes = []
    u, s, vh = torch.linalg.svd(x)
    for side in (u, vh.mT):
        absolute = side * s[:, None] @ side.mT
        axes.append(torch.linalg.eigh(absolute.sum(dim=0)).eigenvectors)
    at = trimmed([0.5, 0.3, 0.2], x, 0.4)
    row = Alone(METHODS["ties_original"])
    signs = [axis * torch.tensor([1.0, -1.0]).double().repeat(len(axis) // 2) for axis in axes]
    for left, right in (axes, signs):
        turned = left.mT @ x @ right
        facts = row.row.run_survey(partial(iter, [(turned, at)]))
        found = row(turned, replace(at, facts=facts)).value
        # Both trim to the same number of entries: the joint spaces fill both sides.
        assert_near(left @ found @ right.mT, ties(x, at))
    facts = row.row.run_survey(lambda: iter([(x, at)]))
    there = row(x, replace(at, facts=facts)).value
    # In the axes of the weights it is another merge.
    assert float((there - ties(x, at)).norm() / there.norm()) >= 0.1


@pytest.mark.parametrize("name", MEANS)
def test_undecided_entries_depend_on_no_sign_of_a_basis_vector(name: str) -> None:
    x = low_rank(1, 6, 8, 3)
    x = torch.cat([x, -x])
    at = trimmed([1.0, 1.0], x, 1.0)
    assert not MEANS[name](x, at).any()


@pytest.mark.parametrize("name", MEANS)
def test_order_is_nothing(name: str, case: tuple[Tensor, Setting]) -> None:
    assert_near(*in_both_orders(MEANS[name], *case))


@pytest.mark.parametrize("weights", [[1 / 3] * 3, [0.2, 0.3, 0.5]])
def test_copies_give_themselves_at_full_density(weights: list[float]) -> None:
    x = low_rank(1, 9, 14, 2).expand(3, 9, 14)
    at = trimmed(weights, x, 1.0)
    assert_near(ties(x, at), x[0])
    assert_near(core_dare_ties(x, at), x[0])


def test_the_core_of_one_update_is_its_singular_values() -> None:
    x = low_rank(1, 7, 5, 3)
    _, cores, _ = core(x)
    assert_near(cores[0].abs(), torch.diag(torch.linalg.svdvals(x[0])[:3]))
    # So a trim to three of nine entries loses nothing.
    assert_near(ties(x, trimmed([1.0], x, 0.34)), x[0])


def test_the_threshold_is_one_for_all_modules() -> None:
    seen = [(x, trimmed([1.0, 1.0], x, 0.4)) for x in (low_rank(2, 7, 8, 2), 1e3 * low_rank(2, 9, 6, 2))]
    facts = survey(lambda: ((Cores.of_stack(x), at) for x, at in seen))
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
        assert torch.equal(mean(x, trimmed([1.0, 1.0], x, 0.5)), x[0])


@pytest.mark.parametrize("name", MEANS)
def test_the_device_changes_no_bit_and_numpy_is_not_asked(name: str) -> None:
    x, weights = CASES["wide"]
    at = trimmed(weights, x, 0.6)
    with forbid_numpy():
        expected = MEANS[name](x, at)
    with fake_cuda():
        found = MEANS[name](x.to("cuda"), at)
        assert found.device == CUDA
        assert torch.equal(found.cpu(), expected)
