"""Means among matrices of one rank: closed forms, dense oracles, and never a cost above the cut mean's."""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.frechet.status import Status
from riemerge.methods import METHODS, Options, run_method
from riemerge.methods.constrained import rank_constrained
from riemerge.methods.constrained.rank_constrained import (
    kronecker,
    lowrank_mats,
    lowrank_regmean,
    lowrank_updates,
)
from riemerge.methods.setting import Answer, Setting
from tests.frechet.quadratic.forms import WEIGHTS, apart, cut, normal
from tests.helpers import adapter_family, random_gauge, random_orthonormal, seeded
from tests.methods.spectra import on_stack
from tests.methods.stacks import SHAPE, merged, spd, stacked, statistics

lowrank = on_stack(rank_constrained.lowrank)
VALUES: dict[str, Any] = {
    "ridge": 0.1,
    "off_diagonal": 0.9,
    "sides": "both",
    "target": "mean",
    "solver": "trust_regions",
    "tol": 1e-10,
    "cost_tol": 0.0,
    "max_passes": 2000,
}


def setting(x: Tensor, rank: int | None = 2, **values: Any) -> Setting:
    data = tuple(statistics(10 * t, (x.shape[1], x.shape[2])) for t in range(len(x)))
    return Setting("m", WEIGHTS, VALUES | values, tuple(x.shape[1:]), statistics=data, rank=rank)


def forms_of(at: Setting, x: Tensor) -> tuple[Tensor, Tensor]:
    """The forms of lowrank_mats, written anew."""
    return tuple(  # type: ignore[return-value]
        torch.stack(
            [
                s[kind] + at.values["ridge"] * s[kind].trace() / size * torch.eye(size).double()
                for s in at.statistics
            ]
        )
        for kind, size in (("covariance", x.shape[1]), ("gram", x.shape[2]))
    )


def cost_of(lefts: Tensor, rights: Tensor, x: Tensor, found: Tensor) -> float:
    moved = found - x
    return float(torch.einsum("t,tij,tjk,tkl,til->", WEIGHTS, lefts, moved, rights, moved)) / 2


@pytest.mark.parametrize("rank", [1, 2, 9, None])
def test_lowrank_is_the_cut_average(rank: int | None) -> None:
    x = normal(3, 6, 8)
    mean = torch.einsum("t,tij->ij", WEIGHTS, x)
    assert apart(lowrank(x, setting(x, rank)), mean if rank in (9, None) else cut(mean, rank or 0)) < 1e-12


def test_regmean_of_one_rank_is_the_weighted_svd_and_what_the_manifold_finds() -> None:
    x = normal(3, 6, 8)
    at = setting(x, ridge=0.0)
    found = lowrank_regmean(x, at)
    grams = [0.9 * s["gram"] + 0.1 * s["gram"].diag().diag() for s in at.statistics]
    total = sum(w * g for w, g in zip(WEIGHTS, grams, strict=True))
    best = sum(w * one @ g for w, one, g in zip(WEIGHTS, x, grams, strict=True)) @ torch.linalg.inv(total)
    root = torch.from_numpy(np.real(scipy.linalg.sqrtm(total.numpy())))
    expected = cut(best @ root, 2) @ torch.linalg.inv(root)
    assert apart(found, expected) < 1e-10
    lefts, rights = torch.eye(6).double().expand(3, 6, 6), torch.stack(grams)
    solved = kronecker(lefts, rights, x, at)
    assert solved.status == Status.CONVERGED
    assert apart(solved.value, found) < 1e-8
    least = cost_of(lefts, rights, x, found)
    assert solved.cost == pytest.approx(least, rel=1e-12)
    # What a cut of RegMean costs, the planted fault.
    assert cost_of(lefts, rights, x, cut(best, 2)) > least * (1 + 1e-4)


def test_inputs_without_data_are_carried_along() -> None:
    x = normal(3, 6, 8)
    at = setting(x, ridge=0.0)
    for known in at.statistics:
        known["gram"][2] = 0.0
        known["gram"][:, 2] = 0.0
    found = lowrank_regmean(x, at)
    assert bool(found.isfinite().all())
    assert torch.linalg.matrix_rank(found) == 2


def alternating(lefts: Tensor, rights: Tensor, x: Tensor, start: Tensor, rank: int) -> Tensor:
    """Alternating least squares with dense Kronecker systems."""
    w, ls, rs, xs = (one.numpy() for one in (WEIGHTS, lefts, rights, x))
    v = np.linalg.svd(start.numpy())[2][:rank].T

    def solved(v: Any, ls: Any, rs: Any, xs: Any) -> Any:
        system = sum(a * np.kron(v.T @ r @ v, one) for a, one, r in zip(w, ls, rs, strict=True))
        right = sum(a * one @ d @ r @ v for a, one, d, r in zip(w, ls, xs, rs, strict=True))
        return np.linalg.solve(system, right.T.ravel()).reshape(rank, -1).T

    for _ in range(2999):
        u = np.linalg.qr(solved(v, ls, rs, xs))[0]
        v = np.linalg.qr(solved(u, rs, ls, xs.transpose(0, 2, 1)))[0]
    u = np.linalg.qr(solved(v, ls, rs, xs))[0]
    v = solved(u, rs, ls, xs.transpose(0, 2, 1))
    return torch.from_numpy(u @ v.T)


def test_mats_of_one_rank_is_what_alternating_least_squares_find_and_below_the_cut() -> None:
    x = normal(3, 6, 5)
    at = setting(x)
    lefts, rights = forms_of(at, x)
    found, whole = lowrank_mats(x, at), lowrank_mats(x, setting(x, None))
    assert (found.status, whole.status) == (Status.CONVERGED, Status.CONVERGED)
    assert found.cost is not None
    dense = sum(w * torch.kron(a, b) for w, a, b in zip(WEIGHTS, lefts, rights, strict=True))
    right = torch.einsum("t,tij,tjk,tkl->il", WEIGHTS, lefts, x, rights).flatten()
    assert apart(whole.value.flatten(), torch.linalg.solve(dense, right)) < 1e-8
    assert found.cost == pytest.approx(cost_of(lefts, rights, x, found.value), rel=1e-10)
    other = alternating(lefts, rights, x, found.value + 0.1 * normal(6, 5, seed=3), 2)
    assert cost_of(lefts, rights, x, other) == pytest.approx(found.cost, rel=1e-9)
    assert apart(other, found.value) < 1e-4
    assert cost_of(lefts, rights, x, cut(whole.value, 2)) > found.cost * (1 + 1e-4)


def test_forms_of_condition_1e6_are_solved() -> None:
    x = normal(3, 12, 10)
    at = setting(x, 3, ridge=1e-3, tol=1e-8)
    for t, s in enumerate(at.statistics):
        for kind, size in (("covariance", 12), ("gram", 10)):
            frame = random_orthonormal(size, size, seeded(t + size))
            s[kind] = frame * torch.logspace(0, -6, size).double() @ frame.mT  # type: ignore[index]
    found = lowrank_mats(x, at)
    assert found.status == Status.CONVERGED
    whole = lowrank_mats(x, Setting(**{**{k: getattr(at, k) for k in Setting.__slots__}, "rank": None}))
    assert whole.ok
    assert found.cost is not None
    assert found.cost < cost_of(*forms_of(at, x), x, cut(whole.value, 3))


def test_copies_cost_nothing_and_not_less() -> None:
    for seed in range(8, 12):
        copies = (normal(1, 9, 2, seed=seed) @ normal(1, 2, 8, seed=seed + 40)).expand(3, -1, -1)
        for rank in (2, None):
            found = lowrank_updates(copies, setting(copies, rank))
            assert isinstance(found, Answer)
            assert found.cost is not None
            assert 0.0 <= found.cost <= 1e-12


@pytest.mark.parametrize("target", ["mean", "tsv", "ties"])
def test_forms_of_the_updates_move_with_isometries_and_cost_less_than_the_cut(target: str) -> None:
    x = normal(3, 9, 2) @ normal(3, 2, 8, seed=1)
    at = setting(x, target=target)
    found = lowrank_updates(x, at)
    assert isinstance(found, Answer)
    left, right = random_orthonormal(12, 9, seeded(1)), random_orthonormal(11, 8, seeded(2))
    tall = lowrank_updates(left @ x @ right.mT, at)
    assert isinstance(tall, Answer)
    assert apart(tall.value, left @ found.value @ right.mT) < 1e-7
    assert tall.cost == pytest.approx(found.cost, rel=1e-9)
    copies = x[:1].expand(3, -1, -1)
    same = lowrank_updates(copies, setting(copies, target=target))
    assert isinstance(same, Answer)
    assert apart(same.value, x[0]) < 1e-8
    unit = x / torch.linalg.matrix_norm(x)[:, None, None]
    # Joint spaces of dimension 6 = 3 models x rank 2.
    lefts, rights = (6 * y @ y.mT + 0.1 * torch.eye(y.shape[1]).double() for y in (unit, unit.mT))
    if target == "mean":
        whole = lowrank_updates(x, setting(x, None))
        assert isinstance(whole, Answer)
        assert found.cost is not None
        assert found.cost == pytest.approx(cost_of(lefts, rights, x, found.value), rel=1e-9)
        assert cost_of(lefts, rights, x, cut(whole.value, 2)) > found.cost * (1 + 1e-3)
    one_sided = lowrank_updates(x, setting(x, target=target, sides="inputs"))
    assert isinstance(one_sided, Tensor)
    if target == "mean":
        solved = kronecker(torch.eye(9).double().expand(3, 9, 9), rights, x, at)
        assert apart(solved.value, one_sided) < 1e-7


def test_what_has_no_answer_is_refused() -> None:
    x = normal(3, 6, 5)
    with pytest.raises(NumericalError, match="raise ridge"):
        lowrank_updates(x, setting(x, ridge=0.0))
    zero = torch.zeros(3, 6, 6).double(), torch.zeros(3, 5, 5).double()
    with pytest.raises(NumericalError, match="all forms are zero"):
        kronecker(*zero, x, setting(x))
    flat = torch.ones(3, 6, 6).double(), torch.ones(3, 5, 5).double()
    with pytest.raises(NumericalError, match="singular to working precision: raise ridge"):
        kronecker(*flat, x, setting(x))


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.constrained])
def test_the_answer_has_the_rank_and_is_a_function_of_the_updates(name: str) -> None:
    given = adapter_family("independent", 3, *SHAPE, 3, 7)
    said: dict[str, Any] = {"tol": 3e-10, "cost_tol": 0.0} if "tol" in METHODS[name].parameters else {}
    first = merged(name, given, [0.5, 0.3, 0.2], rank=2, **said)
    gauge = random_gauge(3, 1e2, seeded(3))
    turned = [(b @ gauge, torch.linalg.solve(gauge, a)) for b, a in given]
    turn = itemgetter(2, 0, 1)
    again = merged(name, turn(turned), turn([0.5, 0.3, 0.2]), turn([0, 10, 20]), rank=2, **said)
    # The gradient at which a solve ends, over the least curvature.
    assert apart(again, first) < 1e-7
    stack = stacked(METHODS[name], given, [0.5, 0.3, 0.2], [0, 10, 20], **said)
    ((_, one),) = run_method(METHODS[name], stack, Options(rank=2))
    assert one.evidence.ok
    assert one.evidence.energy_kept == pytest.approx(1.0, abs=1e-12)
    assert one.evidence.status == (Status.CONVERGED if said else Status.EXACT)


def test_a_start_that_happens_to_have_the_rank_is_not_taken_for_the_answer() -> None:
    """Two multiples of one update: their average has the rank, and nearly the answer's gradient."""
    generator = seeded(3)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64) @ torch.randn(
        3, 9, generator=generator, dtype=torch.float64
    )
    lefts, rights = (torch.stack([spd(size, seed) for seed in (size, size + 1)]) for size in (12, 9))
    at = Setting(
        module="q",
        weights=torch.tensor([0.5, 0.5], dtype=torch.float64),
        values={"solver": "lbfgs", "tol": 1e-3, "cost_tol": 0.0, "max_passes": 500},
        shape=(12, 9),
        rank=3,
    )
    found = kronecker(lefts, rights, torch.stack([x, 1.02 * x]), at)
    assert found.status == Status.CONVERGED
    assert found.gradient_norm is not None
    assert found.gradient_norm <= 1e-3
    exact = kronecker(
        lefts, rights, torch.stack([x, 1.02 * x]), replace(at, values={**at.values, "tol": 1e-9})
    )
    assert found.cost is not None
    assert exact.cost is not None
    assert found.cost <= exact.cost * (1 + 1e-3)
