"""Rows that see decompositions side by side, beside the formulas of a stack; and K modules side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from riemerge.linalg import SVD
from riemerge.methods import METHODS
from riemerge.methods.engine import Row
from riemerge.methods.setting import Setting
from riemerge.methods.singular.core_space import core
from riemerge.methods.stack import resolve
from riemerge.updates import Cores, JointSpan, LowRankUpdate
from tests.helpers import random_gauge, random_orthonormal, seeded
from tests.methods import dense_rows
from tests.methods.rows import Alone
from tests.methods.spectra import assert_near, normal
from tests.methods.stacks import SHAPE, merged

VALUES: dict[str, Any] = {
    "whitening": 0.5,
    "power": 0.5,
    "adapt": True,
    "order": 2.0,
    "common_space_fraction": 0.5,
    "rank_fraction": 0.3,
    "deviation_scale": 0.3,
    "core_mean": "average",
    "frames": "chordal",
    "rank": None,
}
ROWS: dict[str, Callable[[Tensor, Setting], Tensor]] = {
    name: getattr(dense_rows, name)
    for name in (
        "spectrum",
        "spectrum_matched",
        "power_mean",
        "tsv",
        "iso_c",
        "iso_cts",
        "cart",
        "lowrank",
        "subspace",
    )
}


def draw(ranks: Sequence[int], m: int, n: int, seed: int = 0, condition: float = 1.0) -> list[LowRankUpdate]:
    """Updates of these ranks, in gauges of a condition."""
    found = []
    for place, rank in enumerate(ranks):
        b, a = normal(m, rank, seed=seed + place), normal(rank, n, seed=seed + place + 50)
        gauge = random_gauge(rank, condition, seeded(seed + place))
        found.append(LowRankUpdate(b @ gauge, torch.linalg.solve(gauge, a), 0.5))
    return found


def ill() -> list[LowRankUpdate]:
    """Updates whose frames nearly agree, and whose singular values fall over three decades."""
    left, right = random_orthonormal(20, 4, seeded(1)), random_orthonormal(16, 4, seeded(2))
    sizes = torch.logspace(0, -3, 4, dtype=torch.float64)
    near = [
        [torch.linalg.qr(side + 1e-2 * normal(*side.shape, seed=seed)).Q for seed in range(3)]
        for side in (left, right)
    ]
    return [LowRankUpdate(b * sizes * (1 + t), a.mT) for t, (b, a) in enumerate(zip(*near, strict=True))]


ZERO = LowRankUpdate(torch.zeros(20, 2).double(), torch.zeros(2, 16).double())
CASES: dict[str, list[LowRankUpdate]] = {
    "random": draw([3, 3, 3], 20, 16),
    "bad gauges": draw([3, 3, 3], 20, 16, condition=1e4),
    "unequal ranks": draw([1, 4, 2], 20, 16),
    "ill conditioned": ill(),
    "a zero": [*draw([2, 3], 20, 16), ZERO],
    "beyond the width": draw([3] * 8, 12, 10),
    "rank of the width": draw([9, 2], 6, 5),
}
# Round-off times the condition: of 1e7, where singular vectors of the least of a sum count as much as all.
TOLERANCE = {("iso_cts", "ill conditioned"): 1e-7}


def seen(updates: Sequence[LowRankUpdate]) -> tuple[Cores, Tensor, Setting]:
    """The updates in their joint span as decompositions and as a stack, and a setting."""
    small = JointSpan(updates).updates
    weights = torch.arange(1, len(updates) + 1, dtype=torch.float64) / 10
    at = Setting("m", weights / weights.sum(), VALUES, updates[0].shape, rank=2)
    return Cores.of(small), torch.stack([one.dense() for one in small]), at


def value(row: Alone, x: Any, at: Setting) -> Tensor:
    found: Any = row(x, at).value
    return found.matrix() if isinstance(found, SVD) else found


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ROWS)
def test_from_decompositions_a_row_is_the_formula_of_a_stack(name: str, case: str) -> None:
    x, stack, at = seen(CASES[case])
    if (name, case) == ("iso_cts", "a zero"):
        at = replace(at, values=VALUES | {"common_space_fraction": 1.0})  # nothing of its own to give
    row = Alone(METHODS[name])
    expected = ROWS[name](stack, at)
    for given in (x, Cores.of_stack(stack)):
        assert_near(value(row, given, at), expected, TOLERANCE.get((name, case), 1e-10))


@pytest.mark.oracle
@pytest.mark.parametrize("name", [name for name in ROWS if METHODS[name].idempotent])
def test_of_copies_too(name: str) -> None:
    x, stack, at = seen(draw([3], 20, 16) * 3)
    assert_near(value(Alone(METHODS[name]), x, at), ROWS[name](stack, at))


@pytest.mark.oracle
@pytest.mark.parametrize("case", [case for case in CASES if case != "ill conditioned"])
def test_the_bases_of_core_space_are_those_of_a_stack(case: str) -> None:
    x, stack, _ = seen(CASES[case])
    left, cores, right = core(x)
    own, expected, other = dense_rows.core(stack)
    signs, others = ((a * b).sum(dim=0).sign() for a, b in ((left, own), (right, other)))
    assert_near(cores, signs[:, None] * expected * others, 1e-9)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.together])
def test_modules_side_by_side_are_merged_each_as_by_itself(name: str) -> None:
    """Equal ranks, one module whose frames nearly agree, and parameters of each module."""
    modules = [seen(one) for one in (draw([4] * 3, 20, 16), ill(), draw([4] * 3, 20, 16, seed=9))]
    settings = [
        replace(at, values=VALUES | {"whitening": 0.5 * k, "power": 0.4 + 0.1 * k, "adapt": k > 0})
        for k, (_, _, at) in enumerate(modules)
    ]
    svds = zip(*(x.svds for x, _, _ in modules), strict=True)
    together = SVD(*(torch.stack(parts) for parts in svds))
    row = METHODS[name]
    found = resolve(row.together)(Cores(modules[0][0].ranks, lambda: together), settings)
    for k, ((x, _, _), at) in enumerate(zip(modules, settings, strict=True)):
        mine = SVD(*(part[k] for part in found)).matrix() if isinstance(found, SVD) else found[k]
        assert_near(mine, value(Alone(row), x, at), 1e-9)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.domain == "weights"])
def test_what_the_weights_say_asks_nothing_of_the_updates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cores, "inner", None)
    given = [(2.0 * update.B, update.A) for update in draw([3, 3], *SHAPE)]
    found = merged(name, given, [0.5, 0.5])
    row = Row.of(METHODS[name])
    at = Setting("m", torch.tensor([0.5, 0.5]).double(), dict(row.method.defaults), SHAPE)
    coefficients = Alone(row.method)(normal(2, 2), at).value
    assert_near(found, torch.einsum("t,tmn->mn", coefficients, torch.stack([b @ a for b, a in given])))
