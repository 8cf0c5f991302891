"""KnOTS: the alignment's laws, and its merges beside fusion-bench, PEFT and the published order of steps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.methods.setting import Setting
from riemerge.methods.singular import ROWS
from riemerge.methods.singular.knots import align, knots_dare_ties, knots_ties, survey
from tests.fake_cuda import CUDA, fake_cuda, forbid_numpy
from tests.helpers import ROOT, random_orthonormal, seeded
from tests.methods.spectra import CASES, CLOSE, assert_near, in_both_orders, low_rank, trimmed

FROZEN = load_file(ROOT / "tests" / "oracles" / "spectral.safetensors")
MODULES = [FROZEN[f"knots.{place}.x"] for place in range(2)]
# The entries of all aligned blocks: six axes of 7 and of 9 columns.
SIZE = 6 * 7 + 6 * 9


def surveyed(x: Tensor, at: Setting) -> Setting:
    """The setting after a survey of this one module."""
    return replace(at, facts=survey(lambda: iter([(x, at)])))


def ties(x: Tensor, at: Setting) -> Tensor:
    return knots_ties(x, surveyed(x, at))


MEANS = {"ties": ties, "dare_ties": knots_dare_ties}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Setting]:
    x, weights = CASES[request.param]
    return x, trimmed(weights, x, 0.6)


def merged_globally(density: float, merge_func: str) -> list[Tensor]:
    seen = [(x, trimmed([1.0] * len(x), x, density, merge_func=merge_func)) for x in MODULES]
    facts = survey(lambda: iter(seen))
    return [knots_ties(x, replace(at, facts=facts)) for x, at in seen]


@pytest.mark.oracle
@pytest.mark.parametrize("merge_func", ["mean", "sum", "max"])
def test_ties_is_fusion_benchs_with_its_one_entry_more(merge_func: str) -> None:
    published = [FROZEN[f"knots.{place}.{merge_func}"] for place in range(2)]
    kept = int(0.2 * SIZE)
    for found, expected in zip(merged_globally((kept + 1.5) / SIZE, merge_func), published, strict=True):
        assert_near(found, expected)
    ours = merged_globally(0.2, merge_func)
    # Their threshold is the entry after the last to keep, and it is kept, too.
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(ours, published, strict=True)) > 1e-3


@pytest.mark.oracle
@pytest.mark.parametrize("density", [0.3, 0.99])
def test_ties_of_one_module_is_pefts_on_the_blocks_of_numpys_svd(density: float) -> None:
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    x = low_rank(3, 8, 11, 2, seed=4)
    u, sigma, vh = np.linalg.svd(np.concatenate(list(x.numpy()), axis=1), full_matrices=False)
    blocks = [torch.from_numpy(np.diag(sigma[:6]) @ one[:6]) for one in np.split(vh, 3, axis=1)]
    merged = merge_utils.ties(blocks, torch.ones(3, dtype=torch.float64), density, "total")
    assert_near(ties(x, trimmed([1.0] * 3, x, density)), torch.from_numpy(u[:, :6]) @ merged)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, -2.0, 0.1]])
def test_task_arithmetic_of_the_blocks_is_task_arithmetic(weights: list[float]) -> None:
    x, shares = CASES["wide"][0], torch.tensor(weights, dtype=torch.float64)
    frame, blocks = align(x)
    assert_near(frame @ torch.einsum("t,tkn", shares, blocks), torch.einsum("t,tmn", shares, x))
    row = next(row for row in ROWS if row.name == "knots_ta")
    assert (row.domain, row.geometry, row.mean) == ("weights", "flat:normalize=false", "")
    assert not row.normalised


def test_the_axes_are_principal(case: tuple[Tensor, Setting]) -> None:
    x, _ = case
    frame, blocks = align(x)
    rank = frame.shape[1]
    assert rank == int(torch.linalg.matrix_rank(torch.cat(list(x), dim=1)))
    assert torch.allclose(frame.mT @ frame, torch.eye(rank, dtype=torch.float64), atol=1e-13)
    rows = torch.cat(list(blocks), dim=1)
    sigma = torch.linalg.svdvals(torch.cat(list(x), dim=1))[:rank]
    assert_near(rows @ rows.mT, torch.diag(sigma.square()))


def test_the_axes_of_small_singular_values_keep_their_digits() -> None:
    left, right = random_orthonormal(8, 2, seeded(1)), random_orthonormal(11, 2, seeded(2))
    x = (left * torch.tensor([1.0, 1e-6], dtype=torch.float64) @ right.mT)[None]
    frame, _ = align(x)
    # eps over the singular value; by the Gram matrix it would be eps over its square.
    assert float((frame[:, 1].abs() - left[:, 1].abs()).norm()) < 1e-9


@pytest.mark.parametrize("name", MEANS)
def test_isometries_of_the_column_space_commute(name: str, case: tuple[Tensor, Setting]) -> None:
    x, at = case
    merged = MEANS[name](x, at)
    p = x.shape[1]
    for up in (0, 5):
        left = random_orthonormal(p + up, p, seeded(up))
        assert_near(MEANS[name](left @ x, at), left @ merged)


@pytest.mark.parametrize("name", MEANS)
def test_undecided_entries_depend_on_no_sign_of_an_axis(name: str) -> None:
    x = low_rank(1, 6, 8, 2)
    x = torch.cat([x, -x, low_rank(1, 6, 8, 1, seed=5)])
    at = trimmed([1.0, 1.0, 1.0], x)
    at = replace(at, values={**at.values, "density": torch.tensor([1.0, 1.0, 0.3], dtype=torch.float64)})
    merged = MEANS[name](x, at)
    # Of the third update some entries are left, and they decide; the others are undecided.
    assert 0 < float((align(x).frame.mT @ merged).abs().gt(1e-9).double().mean()) < 0.5
    for seed in range(2):
        left = random_orthonormal(6, 6, seeded(seed))
        assert float((MEANS[name](left @ x, at) - left @ merged).norm()) < CLOSE


@pytest.mark.parametrize("name", MEANS)
def test_order_is_nothing(name: str, case: tuple[Tensor, Setting]) -> None:
    assert_near(*in_both_orders(MEANS[name], *case))


@pytest.mark.parametrize("weights", [[1 / 3] * 3, [0.2, 0.3, 0.5]])
def test_copies_give_themselves_at_full_density(weights: list[float]) -> None:
    x = low_rank(1, 9, 14, 2).expand(3, 9, 14)
    at = trimmed(weights, x, 1.0)
    assert_near(ties(x, at), x[0])
    assert_near(knots_dare_ties(x, at), x[0])


def test_of_one_model_the_largest_aligned_entries_are_left() -> None:
    x = CASES["single"][0]
    at = trimmed([1.0], x, 0.3)
    frame, blocks = align(x)
    limit = blocks.abs().flatten().sort(descending=True).values[math.floor(0.3 * blocks.numel()) - 1]
    assert_near(ties(x, at), frame @ torch.where(blocks[0].abs() >= limit, blocks[0], 0.0))


def test_the_threshold_is_one_for_all_modules() -> None:
    small, large = MODULES[0], 1e3 * MODULES[1]
    seen = [(x, trimmed([1.0] * 3, x, 0.5)) for x in (small, large)]
    facts = survey(lambda: iter(seen))
    merged = [knots_ties(x, replace(at, facts=facts)) for x, at in seen]
    # Half of all 96 entries are within the 54 of the large module.
    assert not merged[0].any()
    assert merged[1].any()


def test_drops_are_unbiased() -> None:
    x = CASES["wide"][0]
    kept = []
    for seed in range(400):
        # Of disjoint updates nobody dissents, so the sum is what is left of each.
        at = replace(trimmed([1.0], x[:1], 0.5, merge_func="sum"), seeds=(seed,))
        kept.append(knots_dare_ties(x[:1], at))
    # The variance of each aligned entry is (1 - p)/p times its square: 5 standard deviations.
    error = torch.stack(kept).mean(dim=0) - x[0]
    assert float(error.norm() / x[0].norm()) < 5 / 400**0.5
    assert float((kept[0] - kept[1]).norm()) > 0.1


def test_equal_singular_values_are_refused() -> None:
    x = torch.eye(4, 5, dtype=torch.float64)[None]
    with pytest.raises(NumericalError, match="singular values 1 and 2 are equal"):
        align(x)


def test_updates_of_zero_merge_to_zero() -> None:
    x = torch.zeros(2, 4, 5, dtype=torch.float64)
    # One axis, so that a survey has something to count.
    assert align(x).blocks.shape == (2, 1, 5)
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
