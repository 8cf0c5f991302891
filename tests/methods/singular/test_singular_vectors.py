"""Task singular vectors, flat spectra and CART: laws, closed forms, and what fusion-bench merges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.methods.setting import Setting
from riemerge.methods.singular import ROWS, singular_vectors
from riemerge.methods.singular.singular_vectors import polar_whitener
from riemerge.updates.low_rank import JointSpan, LowRankUpdate
from tests.fake_cuda import CUDA, fake_cuda, forbid_numpy
from tests.helpers import ROOT, random_gauge, random_orthonormal, seeded
from tests.methods.spectra import assert_near, low_rank, normal, on_stack

tsv, iso_c, iso_cts, cart = (
    on_stack(getattr(singular_vectors, name)) for name in ("tsv", "iso_c", "iso_cts", "cart")
)

METHODS: dict[str, Callable[[Tensor, Setting], Tensor]] = {
    "tsv": tsv,
    "iso_c": iso_c,
    "iso_cts": iso_cts,
    "cart": cart,
}
VALUES = {"common_space_fraction": 0.5, "rank_fraction": 0.4, "deviation_scale": 0.3}
FROZEN = load_file(ROOT / "tests" / "oracles" / "spectral.safetensors")
FULL = ("wide", "tall", "square", "one")


def setting(weights: list[float], shape: tuple[int, ...], **values: Any) -> Setting:
    return Setting(
        module="layer",
        weights=torch.tensor(weights, dtype=torch.float64),
        values=VALUES | values,
        shape=shape,
    )


def ones(x: Tensor) -> Setting:
    """The published weights, 1 for each."""
    return setting([1.0] * len(x), (x.shape[1], x.shape[2]))


CASES = {
    "wide": (low_rank(3, 9, 14, 2), [0.5, 0.3, 0.2]),
    "tall": (low_rank(2, 13, 8, 3), [0.7, 1.9]),
    "full": (normal(2, 6, 9), [1.0, 0.4]),
    "single": (low_rank(1, 7, 5, 2), [1.0]),
    "tiny": (normal(2, 2, 2), [0.2, 0.8]),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Setting]:
    x, weights = CASES[request.param]
    return x, setting(weights, (x.shape[1], x.shape[2]))


@pytest.mark.oracle
@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize(
    ("method", "values", "published"),
    [
        (tsv, {}, "tsv"),
        (iso_c, {}, "iso_c"),
        (iso_cts, {"common_space_fraction": 0.8}, "iso_cts_08"),
        (iso_cts, {"common_space_fraction": 0.5}, "iso_cts_05"),
    ],
)
def test_full_rank_is_fusion_bench(
    method: Callable[[Tensor, Setting], Tensor], values: dict[str, float], published: str, name: str
) -> None:
    x = FROZEN[f"{name}.x"]
    at = setting([1.0] * len(x), (x.shape[1], x.shape[2]), **values)
    assert_near(method(x, at), FROZEN[f"{name}.{published}"])


def test_low_rank_iso_c_is_full_space_restricted_to_the_joint_span_times_the_ratio_of_directions() -> None:
    x, published = FROZEN["low.x"], FROZEN["low.iso_c"]
    left, right = torch.cat(list(x), dim=1), torch.cat(list(x), dim=0)
    onto = left @ torch.linalg.pinv(left)
    restricted = onto @ published @ torch.linalg.pinv(right) @ right
    # The sum has 4 directions of min(12, 9): the published mean is over 9.
    assert_near(iso_c(x, ones(x)), restricted * 9 / 4)
    # What is published spreads most of its energy over directions that no update has.
    assert float(restricted.square().sum() / published.square().sum()) == pytest.approx(4 / 9)


def test_low_rank_iso_c_in_full_space_is_arbitrary_and_ours_is_not() -> None:
    x, turn = FROZEN["low.x"], FROZEN["low.turn"]
    published, single = FROZEN["low.iso_c"], FROZEN["low.iso_c_float32"]
    turned = FROZEN["low.iso_c_turned"]
    # Two precisions of one computation, and one problem in two bases: both should be round-off.
    assert float((published - single).norm() / published.norm()) > 0.5
    assert float((published @ turn - turned).norm() / published.norm()) > 0.5
    ours = iso_c(x, ones(x))
    # The condition of the sum times the round-off of float32.
    assert_near(iso_c(x.float().double(), ones(x)), ours, 1e-5)
    assert_near(iso_c(x @ turn, ones(x)), ours @ turn)


@pytest.mark.oracle
def test_low_rank_tsv_is_scipys_polar_factor_of_the_nonzero_singular_vectors() -> None:
    x = FROZEN["low.x"]
    triples = [np.linalg.svd(one.numpy(), full_matrices=False) for one in x]
    left, _ = scipy.linalg.polar(np.concatenate([u[:, :2] for u, _, _ in triples], axis=1))
    right, _ = scipy.linalg.polar(np.concatenate([vh[:2].T for _, _, vh in triples], axis=1))
    expected = left @ np.diag(np.concatenate([s[:2] for _, s, _ in triples])) @ right.T
    assert_near(tsv(x, ones(x)), torch.from_numpy(expected))
    # The published code turns them by two arbitrary vectors of zero of each update.
    assert float((tsv(x, ones(x)) - FROZEN["low.tsv"]).norm() / FROZEN["low.tsv"].norm()) > 0.05


@pytest.mark.oracle
@pytest.mark.parametrize(("models", "m", "n"), [(2, 6, 9), (3, 12, 5)])
def test_cart_is_its_formula_with_numpys_svd(models: int, m: int, n: int) -> None:
    x = normal(models, m, n, seed=m)
    at = setting([1 / models] * models, (m, n))
    mean = x.mean(dim=0)
    expected = mean.numpy().copy()
    for one in (x - mean).numpy():
        u, s, vh = np.linalg.svd(one)
        expected += VALUES["deviation_scale"] * sum(s[i] * np.outer(u[:, i], vh[i]) for i in range(2))
    assert int(VALUES["rank_fraction"] * min(m, n)) == 2
    assert_near(cart(x, at), torch.from_numpy(expected))


@pytest.mark.parametrize("name", METHODS)
def test_isometries_of_both_spaces_commute(name: str, case: tuple[Tensor, Setting]) -> None:
    x, at = case
    merged = METHODS[name](x, at)
    _, p, q = x.shape
    for up in (0, 4):
        left = random_orthonormal(p + up, p, seeded(1))
        right = random_orthonormal(q + 2 * up, q, seeded(2))
        assert_near(METHODS[name](left @ x @ right.mT, at), left @ merged @ right.mT)


@pytest.mark.parametrize("name", METHODS)
def test_equal_singular_values_that_are_kept_together_do_no_harm(name: str) -> None:
    frames = [
        random_orthonormal(9, 3, seeded(i)) @ random_orthonormal(11, 3, seeded(i + 9)).mT for i in range(2)
    ]
    x, at = torch.stack(frames), setting([1.0, 0.3], (9, 11), rank_fraction=1.0, common_space_fraction=1.0)
    left, right = random_orthonormal(9, 9, seeded(1)), random_orthonormal(11, 11, seeded(2))
    turned = METHODS[name](left @ x @ right.mT, at)
    assert_near(turned, left @ METHODS[name](x, at) @ right.mT)


@pytest.mark.parametrize("name", METHODS)
def test_order_is_nothing(name: str, case: tuple[Tensor, Setting]) -> None:
    x, at = case
    order = list(range(len(x)))[::-1]
    turned = setting(at.weights[order].tolist(), at.shape)
    assert_near(METHODS[name](x[order], turned), METHODS[name](x, at))


@pytest.mark.parametrize("name", METHODS)
def test_homogeneous_of_degree_one(name: str, case: tuple[Tensor, Setting]) -> None:
    x, at = case
    for factor in (-1.0, 1e-12, 1e9):
        assert_near(METHODS[name](factor * x, at), factor * METHODS[name](x, at))


@pytest.mark.parametrize("name", ["tsv", "iso_c", "iso_cts"])
def test_a_weight_is_a_factor_of_its_update(name: str, case: tuple[Tensor, Setting]) -> None:
    x, at = case
    for sign in (1.0, -1.0):
        weights = at.weights.clone()
        weights[0] *= sign
        scaled = METHODS[name](weights[:, None, None] * x, ones(x))
        assert_near(METHODS[name](x, setting(weights.tolist(), at.shape)), scaled)


def test_orthogonal_updates_are_summed_by_tsv() -> None:
    left, right = random_orthonormal(12, 6, seeded(3)), random_orthonormal(14, 6, seeded(4))
    x = torch.stack([left[:, i : i + 2] @ normal(2, 2, seed=i) @ right[:, i : i + 2].mT for i in (0, 2, 4)])
    weights = [1.0, -0.5, 2.0]
    assert_near(tsv(x, setting(weights, (12, 14))), torch.einsum("t,tmn", torch.tensor(weights).double(), x))


def test_tsv_keeps_the_leading_singular_vectors_that_fit() -> None:
    x = normal(1, 6, 9).expand(2, 6, 9)
    u, sigma, vh = torch.linalg.svd(x[0], full_matrices=False)
    kept = (u[:, :3] * sigma[:3]) @ vh[:3]
    # Copies of weight 1: the frames are dependent, and the partial isometry shares them out.
    assert_near(tsv(x, ones(x)), kept)
    with pytest.raises(NumericalError, match="3 models share the 2 singular vectors"):
        tsv(normal(3, 2, 5), setting([1.0] * 3, (2, 5)))


def test_copies() -> None:
    x = low_rank(1, 9, 14, 2).expand(3, 9, 14)
    assert_near(tsv(x, ones(x)), x[0])
    assert_near(cart(x, setting([0.2, 0.3, 0.5], (9, 14))), x[0])
    flat = iso_c(x[:1], ones(x[:1]))
    thirds = setting([1 / 3] * 3, (9, 14))
    assert_near(iso_c(x, thirds), flat)
    # A common direction and one of each update's own, all the same: still two directions, one of them shared
    # out. D = 2 holds for no three private ones, so all directions are common.
    assert_near(iso_cts(x, thirds), flat)


def test_copies_in_distinct_gauges_are_copies() -> None:
    b, a = normal(20, 3), normal(3, 17)
    gauges = [random_gauge(3, 1e3, seeded(i)) for i in range(3)]
    span = JointSpan([LowRankUpdate(b @ g, torch.linalg.inv(g) @ a) for g in gauges])
    x = torch.stack([small.dense() for small in span.updates])
    for name, weight in (("tsv", 1.0), ("cart", 1 / 3)):
        merged = METHODS[name](x, setting([weight] * 3, (20, 17)))
        # Round-off times the condition of the gauge.
        assert_near(merged, x[0], 1e-9)
    assert_near(iso_c(x, setting([1 / 3] * 3, (20, 17))), iso_c(x[:1], setting([1.0], (20, 17))), 1e-9)


def test_iso_c_has_the_spaces_and_the_nuclear_norm_of_the_sum(case: tuple[Tensor, Setting]) -> None:
    x, at = case
    total = torch.einsum("t,tmn", at.weights, x)
    merged = iso_c(x, at)
    rank = int(torch.linalg.matrix_rank(total))
    sigma = torch.linalg.svdvals(merged)
    assert_near(sigma[:rank], sigma[:1].expand(rank))
    assert float(sigma[rank:].sum()) <= 1e-12 * float(sigma[0])
    assert_near(sigma.sum(), torch.linalg.svdvals(total).sum())
    # Of all matrices with those singular values, none is nearer to the sum (von Neumann).
    assert_near((merged * total).sum(), sigma[0] * torch.linalg.svdvals(total).sum())


def test_iso_cts_without_private_directions_is_iso_c(case: tuple[Tensor, Setting]) -> None:
    x, at = case
    assert_near(iso_cts(x, setting(at.weights.tolist(), at.shape, common_space_fraction=1.0)), iso_c(x, at))


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.8])
def test_of_one_model_all_directions_are_its_own(fraction: float) -> None:
    x = low_rank(1, 7, 9, 5)
    at = setting([1.0], (7, 9), common_space_fraction=fraction)
    assert_near(tsv(x, at), x[0])
    assert_near(cart(x, at), x[0])
    assert_near(iso_cts(x, at), iso_c(x, at))


def test_without_a_deviation_cart_is_the_mean(case: tuple[Tensor, Setting]) -> None:
    x, at = case
    found = cart(x, setting(at.weights.tolist(), at.shape, deviation_scale=0.0))
    assert_near(found, torch.einsum("t,tmn", at.weights, x))


@pytest.mark.parametrize("name", METHODS)
def test_updates_of_zero_merge_to_zero(name: str) -> None:
    x = torch.zeros(2, 4, 5, dtype=torch.float64)
    assert torch.equal(METHODS[name](x, ones(x)), x[0])


def test_an_update_of_zero_adds_nothing() -> None:
    x = torch.cat([low_rank(2, 9, 14, 2), torch.zeros(1, 9, 14, dtype=torch.float64)])
    assert_near(tsv(x, ones(x)), tsv(x[:2], ones(x[:2])))
    assert_near(iso_c(x, ones(x)), iso_c(x[:2], ones(x[:2])))


@pytest.mark.parametrize("columns", [3, 5, 11])
def test_the_polar_factor_is_the_pseudo_inverse_root(columns: int) -> None:
    frame = normal(7, columns)
    frame[:, -1] = frame[:, 0]
    frame /= frame.norm(dim=0)
    gram, vectors = np.linalg.eigh((frame @ frame.mT).numpy())
    root = np.where(gram > 1e-12, np.abs(gram), np.inf) ** -0.5
    expected = torch.from_numpy(vectors * root @ vectors.T) @ frame
    # The Gram matrix of the expectation has the square of the condition.
    factor = polar_whitener(frame[None])[0] @ frame
    assert_near(factor, expected, 1e-8)
    sigma = torch.linalg.svdvals(factor)
    assert torch.allclose(sigma, (sigma > 0.5).double(), atol=1e-14)


def test_cancelled_directions_are_refused() -> None:
    x = low_rank(2, 9, 14, 2)
    # The last: what is left of 0.1 + 0.2 - 0.3 is round-off.
    for cancelled, weights in (
        ([x[0], -x[0]], [1.0, 1.0]),
        ([*x, -x[0]], [1.0] * 3),
        ([x[0]] * 3, [0.1, 0.2, -0.3]),
    ):
        with pytest.raises(NumericalError, match="numerical rank"):
            iso_c(torch.stack(cancelled), setting(weights, (9, 14)))
    with pytest.raises(NumericalError, match="numerical rank 0, expected"):
        iso_cts(torch.stack([x[0], -x[0]]), setting([1.0, 1.0], (9, 14)))


def test_arbitrary_cuts_are_refused() -> None:
    flat = torch.stack([random_orthonormal(6, 6, seeded(i)) for i in range(4)])
    with pytest.raises(NumericalError, match="singular values 1 and 2 are equal"):
        tsv(flat, ones(flat))
    two = torch.stack([torch.eye(4), -torch.eye(4)]).double()
    with pytest.raises(NumericalError, match="singular values 1 and 2 are equal"):
        cart(two, setting([0.5, 0.5], (4, 4)))


def test_too_many_models_for_private_directions_are_refused() -> None:
    x = normal(6, 4, 5)
    with pytest.raises(NumericalError, match="6 models share 4 directions"):
        iso_cts(x, setting([1.0] * 6, (4, 5), common_space_fraction=0.1))


def test_an_update_without_directions_of_its_own_is_refused() -> None:
    x = normal(2, 6, 6)
    x[1] = 0.0
    with pytest.raises(NumericalError, match="outside of the 2 common directions"):
        iso_cts(x, setting([1.0, 1.0], (6, 6), common_space_fraction=0.4))


@pytest.mark.parametrize("name", METHODS)
def test_the_device_changes_no_bit_and_numpy_is_not_asked(name: str) -> None:
    x, weights = CASES["wide"]
    at = setting(weights, (9, 14))
    expected = METHODS[name](x, at)
    with forbid_numpy():
        assert torch.equal(METHODS[name](x, at), expected)
    with fake_cuda():
        found = METHODS[name](x.to("cuda"), at)
        assert found.device == CUDA
        assert torch.equal(found.cpu(), expected)


def test_rows_are_true_to_their_functions() -> None:
    rows = {row.name: row for row in ROWS}
    for name in METHODS:
        assert rows[name].mean == f"riemerge.methods.singular.singular_vectors:{name}"
        assert rows[name].domain == "cores"
        assert rows[name].normalised == rows[name].idempotent == (name == "cart")
