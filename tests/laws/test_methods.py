"""Laws of every row of the table: each holds where the row claims it, and fails where the row denies it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from riemerge.laws import judge
from riemerge.methods import METHODS, Options, run_method
from riemerge.study.method_laws import check_method
from riemerge.updates.low_rank import LowRankUpdate
from tests.helpers import adapter_family
from tests.methods.stacks import MODULE, SHAPE, stacked, statistics

# What makes a place count, where a default leaves all alike.
PLACES: dict[str, dict[str, Any]] = {"slerp": {"t": 0.3}, "lawa": {"last": 2}}


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", list(METHODS))
def test_a_row_does_what_it_claims(name: str) -> None:
    found = judge("method", check_method(name, **PLACES.get(name, {})))
    # The running mean is a row for sequences, and as it happens their order is nothing to it.
    failing = [finding.name for finding in found if finding.verdict != "holds"]
    assert failing == {"swa": ["sequence"]}.get(name, []), found


def test_what_a_survey_found_of_a_model_stays_with_it_where_others_are_left_out() -> None:
    """A weight that is 0 in some modules only leaves those with fewer updates: places count there."""
    method = METHODS["fisher"]
    given = adapter_family("independent", 3, *SHAPE, 3, 7)
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
