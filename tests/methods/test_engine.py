"""The way of modules through the engine: windows, certificates, faults told at once, results lifted later."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from riemerge.errors import NumericalError
from riemerge.methods import METHODS, Method, Options, Stack, engine, run_method
from riemerge.methods.engine import Row, fill
from riemerge.methods.stack import Merged
from riemerge.progress import Progress
from riemerge.updates.low_rank import LowRankUpdate
from tests.methods.spectra import normal

OPTIONS = Options(tol=1e-11, cost_tol=0.0, max_passes=500)


def stack(count: int = 5) -> Stack:
    """Modules of three updates that are near to each other, of two widths."""
    modules = {}
    for k in range(count):
        n = 9 + k % 2
        left, right = normal(8, 2, seed=k), normal(2, n, seed=k + 50)
        modules[f"m{k}"] = tuple(
            LowRankUpdate(left + 0.1 * normal(8, 2, seed=100 * t + k + 1), right) for t in range(3)
        )
    weights = (0.5, 0.3, 0.2)
    return Stack(("a", "b", "c"), modules, lambda _: weights, (torch.float64,) * 3)


def run(row: Method, given: Stack, options: Options = OPTIONS) -> dict[str, Merged]:
    values = row.defaults
    return dict(run_method(row, replace(given, values=lambda _: values), options))


@pytest.mark.parametrize("name", ["karcher", "median", "balanced", "geomerge"])
def test_windows_change_no_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All modules at once, and one at a time: those that are solved side by side do not meet."""
    together = run(METHODS[name], stack())
    monkeypatch.setattr(engine, "_WINDOW", 1)
    apart = run(METHODS[name], stack())
    assert sorted(together) == sorted(apart) == [f"m{k}" for k in range(5)]
    for module, merged in together.items():
        gap = merged.update.dense() - apart[module].update.dense()
        assert float(gap.norm()) <= 1e-8 * merged.norms[0]
        assert merged.evidence.ok
        assert merged.evidence.distances == pytest.approx(apart[module].evidence.distances, abs=1e-7)


@pytest.mark.parametrize("name", ["average", "karcher", "geomerge"])
def test_threads_and_later_lifts_change_no_bit(name: str) -> None:
    expected = run(METHODS[name], stack())
    for options in (replace(OPTIONS, threads=2), replace(OPTIONS, later=True)):
        for module, merged in run(METHODS[name], stack(), options).items():
            gap = merged.update.dense() - expected[module].update.dense()
            assert float(gap.norm()) <= 1e-12 * merged.norms[0]


def test_all_that_cannot_be_merged_is_told_at_once() -> None:
    given = stack(3)
    modules = dict(given.modules)
    for name in ("m0", "m2"):
        first = given.low_rank(name)[0]
        modules[name] = (first, first.times(-2.0), first)
    with pytest.raises(NumericalError) as fault:
        run(METHODS["karcher"], replace(given, modules=modules))
    assert [problem.partition(":")[0] for problem in fault.value.problems] == ["m0", "m2"]


def test_progress_tells_what_is_read_and_what_is_merged() -> None:
    events: list[Progress] = []
    run(METHODS["karcher"], stack(), replace(OPTIONS, progress=events.append))
    assert [event.done for event in events if event.stage == "read"] == [1, 2, 3, 4, 5]
    assert [event.done for event in events if event.stage == "merge"][-1] == 5
    assert {event.total for event in events} == {5}


def test_columns_name_the_parameters_that_they_take() -> None:
    assert fill("flat:normalize={normalize}", {"normalize": False}) == "flat:normalize=false"
    for row in METHODS.own:
        values = {"normalize": True, "delta": 1.0, **row.defaults}
        if not row.mean:
            assert Row.of(row).domain(values) == row.domain or row.edits
