"""What a report says in words: the answer, whether the mean is determined, whether the method suits."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.nli.__main__ import RESULTS
from benchmarks.nli.report import for_package
from riemerge import merge_adapters
from riemerge.merging import plan
from riemerge.merging.identifiability import judge_overlap
from riemerge.merging.measure import totals
from riemerge.methods import DEFAULT_METHOD
from riemerge.records.evaluation_record import PairedDifference
from riemerge.records.run_record import RunRecord
from riemerge.report import verdict as words
from riemerge.report.tables import merge_report
from riemerge.report.verdict import (
    LOSS,
    Measured,
    answer,
    concerns,
    cut,
    energy_kept,
    evaluation_verdict,
    geomerge_lines,
    kept_shares,
    measurement,
    remarks,
    verdict,
)
from tests.folders import family, write_family
from tests.folders import merge_adapters as merge_by_geomerge
from tests.helpers import FAMILIES, ROOT, seeded
from tests.report.samples import NOTHING, evaluation, interval, render

SHAPES = {"q": (150, 140)}


def record_of(tmp_path: Path, kind: str, method: str, **parameters: Any) -> RunRecord:
    adapters = family(kind, 3, rank=2, shapes=SHAPES)
    return merge_adapters(write_family(tmp_path, adapters), method=method, **parameters).record


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
    shares: dict[str, tuple[float, ...]] = {method: ours} if method != "average" else {}
    known = Measured(0.09, {DEFAULT_METHOD: best} | shares)
    monkeypatch.setattr(words, "measurement", lambda: known)
    found = [text for text in concerns(record_of(tmp_path, kind, method)) if "hardly related" in text]
    assert len(found) == told
    # Neither of other parameters nor of a whole delta was anything measured.
    assert not concerns(record_of(tmp_path / "whole", kind, method, rank="sum"))
    if told:
        assert f"kept {ours[0]:.2f} and {ours[1]:.2f}" in found[0]
        assert f"{DEFAULT_METHOD} {best[0]:.2f} and {best[1]:.2f}" in found[0]


def test_a_cut_that_loses_much_is_told_with_its_share(tmp_path: Path) -> None:
    record = record_of(tmp_path, "independent", "average", rank=1)
    (found,) = cut(record)
    assert concerns(record) == []
    assert verdict(record)[-1] == found
    (row,) = record.modules
    assert row.energy_kept is not None
    assert f"kept {row.energy_kept:.0%}" in found


def test_of_many_adapters_all_is_told_that_needs_no_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = verdict(record_of(tmp_path / "few", "independent", "spectrum", rank=1))
    monkeypatch.setattr(plan, "FEW", 2)
    record = record_of(tmp_path / "many", "independent", "spectrum", rank=1)
    assert record.totals.overlap is None
    found, *same = verdict(record)
    assert first.startswith("Do these adapters determine their mean?")
    assert found.startswith("Whether these adapters determine their mean was not measured")
    assert same == others
    assert same[0].startswith("Only geomerge depends on that; spectrum has one answer")
    assert same[-1].startswith("The cut to the rank of the result kept")


def test_what_the_package_tells_is_what_the_benchmark_found() -> None:
    found = json.loads((RESULTS / "nli.json").read_text(encoding="utf-8"))
    told = for_package(found)
    assert measurement() == Measured(told["cosine"], {n: tuple(x) for n, x in told["methods"].items()})
    # The default follows from the table: no row that needs no data and is worth more than noise is better.
    best = measurement().methods[DEFAULT_METHOD]
    assert {"geomerge", "average", "tsv", "svd"} <= set(measurement().methods)
    assert all(mine <= top + LOSS for mine, top in zip(measurement().methods["average"], best, strict=True))


def test_the_paper_s_mean_is_told_of_what_it_lost_with_its_defaults_spelt_out(tmp_path: Path) -> None:
    plain = record_of(tmp_path / "plain", "independent", "geomerge")
    (found,) = concerns(plain)
    ours, best = (measurement().methods[name] for name in ("geomerge", DEFAULT_METHOD))
    assert f"geomerge kept {ours[0]:.2f} and {ours[1]:.2f}" in found
    assert f"{DEFAULT_METHOD} {best[0]:.2f} and {best[1]:.2f}" in found
    assert concerns(record_of(tmp_path / "said", "independent", "geomerge", tol=1e-8, scale=1)) == [found]
    # Another scale is another merge: that of nobody who was measured.
    others: list[dict[str, Any]] = [{"max_passes": 20}, {"scale": 0.5}, {"scale": "matched"}]
    for place, other in enumerate(others):
        assert concerns(record_of(tmp_path / str(place), "independent", "geomerge", **other)) == []


# --- the answer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_what_is_kept_of_an_input_is_the_projection_on_it(tmp_path: Path, scale: float) -> None:
    adapters = family("mix", 3)
    adapters[1]["layers.0.q"][0][:] = 0  # an input that is zero in a module has nothing there to keep
    result = merge_adapters(
        write_family(tmp_path, adapters), [2, 1, 1], method="average", rank="sum", scale=scale
    )
    for adapter, share in zip(adapters, kept_shares(result.record), strict=True):
        own = {module: b @ a for module, (b, a) in adapter.items()}
        inner = sum(float((result.updates[module].dense() * update).sum()) for module, update in own.items())
        assert share == pytest.approx(inner / sum(float(update.square().sum()) for update in own.values()))


def test_copies_are_kept_whole_and_zero_has_no_share(tmp_path: Path) -> None:
    (adapter,) = family("close", 1)
    zero = {module: (0 * b, a) for module, (b, a) in adapter.items()}
    same = write_family(tmp_path, [adapter, adapter])
    assert kept_shares(merge_adapters(same, method="average").record) == pytest.approx([1.0, 1.0])
    both = write_family(tmp_path / "zero", [adapter, zero])
    whole, nothing = kept_shares(merge_adapters(both, method="average").record)
    assert whole == pytest.approx(0.5)
    assert nothing is None


def test_the_energy_that_a_cut_kept_is_that_of_all_modules(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("independent", 3))
    cut_to_one, whole = (merge_adapters(folders, method="average", rank=rank) for rank in (1, "sum"))
    norms = [result.record.totals.norm for result in (cut_to_one, whole)]
    assert energy_kept(cut_to_one.record) == pytest.approx((norms[0] / norms[1]) ** 2)
    assert energy_kept(whole.record) == 1.0
    assert "--rank sum keeps all" in " ".join(answer(cut_to_one.record))
    assert "--rank sum keeps all" not in " ".join(answer(whole.record))


def test_the_answer_names_the_inputs_that_count_and_weights_that_differ(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("mix", 3))
    first, *_ = answer(merge_adapters(folders, [1, 1, 0], method="average").record)
    assert first == "2 adapters merged by average: a, b; equal weights"
    first, *_, last = answer(merge_adapters(folders, [0.5, 0.3, 0.2], method="average", rank="sum").record)
    assert first == "3 adapters merged by average: a (0.5), b (0.3), c (0.2)"
    assert last == "nothing is wrong; modules: 3 exact"
    warned = answer(merge_adapters(folders, [1, 1, 0], method="average", rank="sum").record)
    assert warned[-1].startswith("1 remark, below")


def test_what_geomerge_makes_of_adapters_is_said_in_three_lines(tmp_path: Path) -> None:
    record = merge_by_geomerge(write_family(tmp_path, family("independent", 2))).record
    keeps, fixed, accuracy = geomerge_lines(record)
    (share, _) = kept_shares(record)
    assert f"a {share:.0%}, b" in keeps
    assert "3 not determined" in fixed
    ours, best = (measurement().methods[name] for name in ("geomerge", DEFAULT_METHOD))
    assert f"keeps {ours[0]:.2f} and {ours[1]:.2f} of" in accuracy
    assert f"{DEFAULT_METHOD} {best[0]:.2f} and {best[1]:.2f}" in accuracy


# --- whether the inputs determine their mean ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("family_name", "method", "begins", "holds"),
    [
        (
            "close",
            "geomerge",
            "Do these adapters determine their mean? Yes.",
            "not by the start or the solver",
        ),
        (
            "mix",
            "geomerge",
            "Do these adapters determine their mean? No",
            "--method average --rank sum",
        ),
        ("lora_like", "geomerge", "Do these adapters determine their mean? No", "where the start of A is"),
        (
            "independent",
            "geomerge",
            "Do these adapters determine their mean? No",
            "farther from each input than the average",
        ),
        ("independent", "average", "Do these adapters determine their mean? No", "has one answer"),
        ("close", "average", "Do these adapters determine their mean? Yes.", "--method geomerge"),
        ("shared_subspace", "average", "Do these adapters determine their mean? No", "has one answer"),
        ("independent", "balanced", "Do these adapters determine their mean? No", "depends on that."),
    ],
)
def test_the_verdict_follows_the_overlap(
    tmp_path: Path, family_name: str, method: str, begins: str, holds: str
) -> None:
    adapters = family(family_name, 3, rank=2, shapes={"q": (150, 150)})
    record = merge_adapters(write_family(tmp_path, adapters), method=method).record
    first, second, *_ = verdict(record)
    assert first.startswith(begins)
    assert holds in second
    assert record.totals.overlap is not None
    assert f"RMS cosine of {record.totals.overlap.left:.2f} (random subspaces: 0.12)" in first
    shown = " ".join(render(merge_report(record, verbose=True)).split())
    assert (" ".join(first.split()) in shown) == (method == "geomerge")
    assert ("has one answer" in second) == (method == "average")
    if method == "geomerge" and record.totals.determined != "yes":
        assert "(rank 6 here)" in second
        assert "about 1/3" in second


def test_a_measured_spread_decides_and_is_shown(tmp_path: Path) -> None:
    shapes = {"q": (60, 60), "v": (60, 50)}
    close, far = (family(name, 4, shapes=shapes) for name in ("close", "independent"))
    adapters = [{"q": one["q"], "v": other["v"]} for one, other in zip(close, far, strict=True)]
    folders = write_family(tmp_path, adapters)
    judged, starts = (merge_by_geomerge(folders, starts=number).record for number in (None, 3))
    first, _ = verdict(judged)
    assert "judged by this overlap; --method geomerge --starts 10" in first
    assert "Modules: 1 well determined (q); 1 not determined (v)." in first
    first, _ = verdict(starts)
    assert "solved from 3 starts" in first
    assert answer(starts)[-1].startswith("1 remark, below")
    assert remarks(starts)[0].startswith("These adapters do not determine their mean: several starts ended")
    assert "up to 1%, in part up to 10%" in first
    (row,) = (row for row in starts.modules if row.module == "v")
    assert row.update_spread is not None
    assert row.determined == "no"
    text = render(merge_report(starts, verbose=True), 120)
    assert f"no ({row.update_spread:.0%})" in text
    assert "yes (0%)" in text
    assert "None" not in text
    # The spread has the last word, whatever the overlap says.
    turned = [
        one.model_copy(update={"update_spread": spread, "determined": judge_overlap(one.overlap, spread)})
        for one, spread in zip(starts.modules, (0.05, 0.001), strict=True)
    ]
    assert [one.determined for one in turned] == ["partly", "yes"]
    assert (judged.totals.determined, starts.totals.determined) == ("partly", "partly")
    total = totals(turned)
    expected = math.hypot(0.05 * turned[0].norm, 0.001 * turned[1].norm)
    assert total.update_spread == pytest.approx(expected / math.hypot(turned[0].norm, turned[1].norm))
    first, _ = verdict(starts.model_copy(update={"modules": tuple(turned), "totals": total}))
    assert "1 well determined (v); 1 determined in part (q)" in first


def test_where_the_overlap_does_not_tell_the_verdict_says_so(tmp_path: Path) -> None:
    adapters = [
        {name: (b + 0.37 * torch.randn(b.shape, generator=seeded(i)), a) for name, (b, a) in one.items()}
        for i, one in enumerate(family("close", 3, rank=2, shapes={"q": (150, 150)}))
    ]
    record = merge_by_geomerge(write_family(tmp_path, adapters)).record
    (row,) = record.modules
    assert row.overlap is not None
    assert (row.determined, record.totals.determined) == ("open", "open")
    first, second, *_ = verdict(record)
    assert first.startswith("Do these adapters determine their mean? Their overlap does not tell.")
    found = json.loads((ROOT / "benchmarks" / "results" / "verdict.json").read_text(encoding="utf-8"))["sets"]
    for one in found.values():
        assert one["told"] == one["told_rightly"]
        assert one["auto_agrees"] == len(one["modules"]) == one["told"] + one["auto_measured"]
    real: Counter[str] = Counter()
    for name, one in found.items():
        if name not in FAMILIES:
            real.update(one["open"])
    assert f"of {real.total()} such modules" in second
    assert real.keys() == {"yes", "no"}
    assert f"in {real['yes']} all ten starts ended in one update, in {real['no']} in different ones" in second


# --- evaluations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (interval(0.01, 0.02, 0.03), "+0.020 [+0.010, +0.030] from average: better beyond noise (p = 0.04)"),
        (interval(-0.01, 0.02, 0.03), "not better beyond noise"),
        (interval(0, 0, 0), "not better beyond noise"),
        (interval(-0.03, -0.02, -0.01), "worse beyond noise"),
        (PairedDifference(value=0.125), "+0.125 from average; whether it is more than noise cannot be said"),
    ],
)
def test_the_verdict_says_whether_the_best_is_better_beyond_noise(
    difference: PairedDifference, words: str
) -> None:
    (text,) = evaluation_verdict(evaluation(difference))
    assert text.startswith("Best on dev rows is ties:density=0.2 at 2 times the norm")
    assert words in text
    assert "The best model alone, a, has 0.500." in text
    assert ("better beyond" in text.replace("not better beyond", "")) == (words.startswith("+0.020"))


def test_the_verdict_on_the_average_itself_and_without_parts() -> None:
    (text,) = evaluation_verdict(evaluation(NOTHING, best="average", parts=False))
    assert text.startswith("Best on these rows is average")
    assert "That is the plain average itself" in text
