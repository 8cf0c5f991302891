"""Whether the report tells a user that a method does not suit the adapters, and only then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.nli.__main__ import RESULTS
from benchmarks.nli.report import for_package
from riemerge import merge_adapters, suitability
from riemerge.methods import DEFAULT_METHOD
from riemerge.records.run_record import RunRecord
from riemerge.report.card import verdict
from riemerge.report.suitability import LOSS, Measured, concerns, measured
from tests.folders import family, write_family

SHAPES = {"q": (150, 140)}


def record_of(tmp_path: Path, kind: str, method: str, **asked: object) -> RunRecord:
    adapters = family(kind, 3, rank=2, shapes=SHAPES)
    return merge_adapters(write_family(tmp_path, adapters), method=method, **asked).record


@pytest.mark.parametrize(
    ("kind", "method", "told"),
    [
        ("close", "tsv", True),
        ("close", "average", False),
        ("close", DEFAULT_METHOD, False),
        ("independent", "tsv", False),
    ],
)
def test_a_row_that_does_not_give_copies_back_is_told_of_updates_that_nearly_are(
    tmp_path: Path, kind: str, method: str, told: bool
) -> None:
    record = record_of(tmp_path, kind, method, rank="sum")
    found = concerns(record)
    assert len(found) == told
    assert verdict(record)[2:] == found
    if told:
        assert record.totals.overlap is not None
        assert f"mean cosine {record.totals.overlap.cosine:.2f}" in found[0]


@pytest.mark.parametrize(
    ("kind", "method", "ours", "told"),
    [
        ("independent", "svd", (0.80, 0.85), True),
        ("independent", "svd", (0.80, 0.93), False),  # worse on one collection only
        ("independent", DEFAULT_METHOD, (0.92, 0.94), False),
        ("close", "svd", (0.80, 0.85), False),  # not what was measured
        ("independent", "average", (0.80, 0.85), False),  # never measured
    ],
)
def test_a_row_that_lost_on_adapters_like_these_is_told_with_the_numbers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    method: str,
    ours: tuple[float, float],
    told: bool,
) -> None:
    best = (0.92, 0.94)
    known = Measured(0.09, {DEFAULT_METHOD: best} | ({} if method == "average" else {method: ours}))
    monkeypatch.setattr(suitability, "measured", lambda: known)
    found = [text for text in concerns(record_of(tmp_path, kind, method)) if "hardly related" in text]
    assert len(found) == told
    # Neither of other parameters nor of a whole delta was anything measured.
    assert not concerns(record_of(tmp_path / "whole", kind, method, rank="sum"))
    if told:
        assert f"kept {ours[0]:.2f} and {ours[1]:.2f}" in found[0]
        assert f"{DEFAULT_METHOD} {best[0]:.2f} and {best[1]:.2f}" in found[0]


def test_a_cut_that_loses_much_is_told_with_its_share(tmp_path: Path) -> None:
    record = record_of(tmp_path, "independent", "average", rank=1)
    (found,) = concerns(record)
    (row,) = record.modules
    assert row.energy_kept is not None
    assert f"kept {row.energy_kept:.0%}" in found


def test_what_the_package_tells_is_what_the_benchmark_found() -> None:
    found = json.loads((RESULTS / "nli.json").read_text(encoding="utf-8"))
    told = for_package(found)
    assert measured() == Measured(told["cosine"], {n: tuple(x) for n, x in told["methods"].items()})
    # The default follows from the table: no row that needs no data and is worth more than noise is better.
    best = measured().methods[DEFAULT_METHOD]
    assert {"geomerge", "average", "tsv", "svd"} <= set(measured().methods)
    assert all(mine <= top + LOSS for mine, top in zip(measured().methods["average"], best, strict=True))


def test_the_paper_s_mean_is_told_of_what_it_lost_with_its_defaults_spelt_out(tmp_path: Path) -> None:
    plain = record_of(tmp_path / "plain", "independent", "geomerge")
    (found,) = concerns(plain)
    ours, best = (measured().methods[name] for name in ("geomerge", DEFAULT_METHOD))
    assert f"geomerge kept {ours[0]:.2f} and {ours[1]:.2f}" in found
    assert f"{DEFAULT_METHOD} {best[0]:.2f} and {best[1]:.2f}" in found
    assert concerns(record_of(tmp_path / "said", "independent", "geomerge", tol=1e-8, scale=1)) == [found]
    # Another scale is another merge: that of nobody who was measured.
    for place, other in enumerate(({"max_passes": 20}, {"scale": 0.5}, {"scale": "matched"})):
        assert concerns(record_of(tmp_path / str(place), "independent", "geomerge", **other)) == []
