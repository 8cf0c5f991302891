"""Laws of every row of the table: each holds where the row claims it, and fails where the row denies it."""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter
from typing import Any

import pytest
import torch
from torch import Tensor

from riemerge.methods import METHODS, Method, Options, run_method
from riemerge.updates.low_rank import LowRankUpdate
from tests.helpers import Factors, adapter_family, random_gauge, random_orthonormal, seeded
from tests.methods.stacks import MODULE, SHAPE, merged, stacked, statistics

EVERY = pytest.mark.parametrize("name", list(METHODS))
WEIGHTED = pytest.mark.parametrize(
    "name", [name for name, row in METHODS.items() if row.models[1] is None and not row.ordered]
)
# No orthogonal map keeps entries, or a diagonal form.
EQUIVARIANT = pytest.mark.parametrize(
    "name", [name for name, row in METHODS.items() if row.domain != "entries"]
)
# Where the rank is a constraint, the nearest to the whole mean is another matrix: see test_constrained.py.
TRUNCATED = pytest.mark.parametrize(
    "name", [name for name, row in METHODS.items() if not (row.truncates_inputs or row.constrained)]
)
WEIGHTS = (0.5, 0.3, 0.2)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def count(method: Method) -> int:
    return 3 if method.models[1] is None else method.models[1]


def shares(method: Method) -> list[float]:
    """Weights that sum to 1; equal ones for a sequence, which takes no others."""
    number = count(method)
    if method.ordered:
        return [1.0] * number
    kept = WEIGHTS[:number]
    return [weight / sum(kept) for weight in kept]


def adapters(method: Method, family: str = "independent", seed: int = 7) -> list[Factors]:
    return adapter_family(family, count(method), *SHAPE, 3, seed)


def halved(method: Method) -> dict[str, Any]:
    """What makes a row trim or draw: by default most keep all, and there its laws say nothing of that."""
    return {"density": 0.5} if "density" in method.parameters else {}


def family_of(method: Method) -> str:
    # The mean of independent adapters is hardly determined: there round-off moves it far.
    return "close" if method.may_be_undetermined else "independent"


@EVERY
def test_copies_merge_to_the_one(name: str) -> None:
    method = METHODS[name]
    (one, *_) = adapters(method)
    number = count(method)
    # A sequence has no weights to sum to one, and divides by their number itself.
    weights = [1.0] * number if method.ordered else shares(method)
    found = merged(name, [one] * number, weights, data=[3] * number)
    moved = relative(found, one[0] @ one[1])
    if method.idempotent:
        assert moved <= 1e-9  # MaTS stops at a tolerance of 1e-10
    else:
        assert moved >= 1e-3


@EVERY
def test_the_order_does_not_matter(name: str) -> None:
    method = METHODS[name]
    given, weights = adapters(method, family_of(method)), shares(method)
    turned = [1, 0] if len(given) == 2 else [2, 0, 1]
    data = [10 * i for i in range(len(given))]
    # What makes a place count, where a default leaves all alike.
    places: dict[str, dict[str, Any]] = {"slerp": {"t": 0.3}, "lawa": {"last": 2}}
    said = places.get(name, halved(method))
    first = merged(name, given, weights, data, **said)
    turn = itemgetter(*turned)
    other = merged(name, turn(given), turn(weights), turn(data), **said)
    if method.ordered and name != "swa":
        assert relative(other, first) >= 1e-3
    else:
        assert relative(other, first) <= 1e-8


@WEIGHTED
def test_weight_zero_is_absence(name: str) -> None:
    method = METHODS[name]
    given = adapters(method, family_of(method))
    with_it = merged(name, given, [1.0, 0.0, 2.0])
    without = merged(name, [given[0], given[2]], [1.0, 2.0], data=[0, 20])
    assert torch.equal(with_it, without)


@EVERY
def test_the_gauge_does_not_matter(name: str) -> None:
    method = METHODS[name]
    given, weights = adapters(method, family_of(method)), shares(method)
    if not method.truncates_inputs:  # updates of several ranks, where the row takes them
        given = [(b[:, :rank], a[:rank]) for (b, a), rank in zip(given, (3, 2, 1), strict=False)]
    generator = seeded(5)
    turned = [
        (b @ gauge, torch.linalg.solve(gauge, a))
        for b, a in given
        for gauge in [random_gauge(b.shape[1], 1e3, generator)]
    ]
    said = halved(method)
    moved = relative(merged(name, turned, weights, **said), merged(name, given, weights, **said))
    # A gauge of condition 1e3 in float64; entries that meet a threshold to round-off are not among these.
    assert moved <= 1e-8
    assert method.gauge_invariant


@EQUIVARIANT
def test_orthogonal_maps_move_the_mean_with_the_updates(name: str) -> None:
    method = METHODS[name]
    given, weights = adapters(method, family_of(method)), shares(method)
    generator = seeded(11)
    left = random_orthonormal(SHAPE[0], SHAPE[0], generator)
    right = random_orthonormal(SHAPE[1], SHAPE[1], generator)
    if method.domain == "half":
        right = torch.eye(SHAPE[1], dtype=torch.float64)
    mapped = [(left @ b, a @ right.mT) for b, a in given]
    expected = left @ merged(name, given, weights) @ right.mT
    assert relative(merged(name, mapped, weights), expected) <= 1e-7


@TRUNCATED
def test_rank_cuts_to_the_nearest(name: str) -> None:
    method = METHODS[name]
    given, weights = adapters(method), shares(method)
    whole = merged(name, given, weights)
    cut = merged(name, given, weights, rank=2)
    assert torch.linalg.matrix_rank(cut, rtol=1e-9) <= 2
    # By its distance: a flat spectrum has many nearest matrices.
    least = torch.linalg.svdvals(whole)[2:].norm()
    size = float(whole.norm())
    assert float((cut - whole).norm()) == pytest.approx(float(least), rel=1e-8, abs=1e-8 * size)
    usual = merged(name, given, weights, rank=None)
    assert torch.linalg.matrix_rank(usual, rtol=1e-9) <= 3 or name == "cat"


def test_what_a_survey_found_of_a_model_stays_with_it_where_others_are_left_out() -> None:
    """A weight that is 0 in some modules only leaves those with fewer updates: places count there."""
    method = METHODS["fisher"]
    given = adapters(method)
    whole = stacked(method, given, [1.0, 1.0, 1.0], [0, 10, 20], normalize_fisher=True)
    two = dict.fromkeys(("layers.0.q", "layers.1.q"), whole.modules[MODULE])
    shares = {"layers.0.q": (1 / 3, 1 / 3, 1 / 3), "layers.1.q": (0.0, 0.5, 0.5)}
    values = whole.values(MODULE)
    part = replace(whole, modules=two, weights=shares.__getitem__, values=lambda _: values)
    found = dict(run_method(method, part, Options(rank="sum")))["layers.1.q"].update
    fishers = [statistics(seed)["fisher"] for seed in (10, 20)]
    # Over both modules, which have the same statistics here.
    norms = [(2 * fisher.square().sum()).sqrt() for fisher in fishers]
    forms = [(fisher + 1e-6) / (norm + 1e-6) for fisher, norm in zip(fishers, norms, strict=True)]
    updates = [b @ a for b, a in given[1:]]
    expected = sum(form * one for form, one in zip(forms, updates, strict=True)) / (forms[0] + forms[1])
    assert isinstance(found, LowRankUpdate)
    assert relative(found.dense(), expected) <= 1e-10
