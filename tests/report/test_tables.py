"""Reports show what the record says, whatever the names hold and however narrow the terminal is."""

from __future__ import annotations

import json
import math
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console, RenderableType

from riemerge.merging.identifiability import judge_modules, judge_overlap
from riemerge.merging.measure import totals
from riemerge.merging.sinks import MergeResult
from riemerge.methods import METHODS, PARAMETERS
from riemerge.records.evaluation_record import Entry, Evaluation, Look, PairedDifference
from riemerge.records.run_record import Determined, Overlap
from riemerge.report.card import evaluation_verdict, number, printable, verdict
from riemerge.report.tables import evaluation_report, inspection_report, merge_report, methods_report
from riemerge.study.inspection import inspect_adapters
from tests.folders import SHAPES, family, merge_adapters, write_family, write_folder
from tests.helpers import FAMILIES, ROOT, seeded


def render(what: RenderableType, width: int = 100, *, terminal: bool = False) -> str:
    out = StringIO()
    Console(file=out, width=width, markup=False, highlight=False, force_terminal=terminal).print(what)
    return out.getvalue()


@pytest.fixture
def result(tmp_path: Path) -> MergeResult:
    return merge_adapters(write_family(tmp_path, family("mix", 3)), [2, 1, 1])


def test_every_module_has_its_row_and_the_total_its_own(result: MergeResult) -> None:
    text = render(merge_report(result.record))
    lines = text.splitlines()
    for row in result.record.modules:
        assert row.distances is not None
        (line,) = (line for line in lines if line.startswith(row.module.removeprefix("layers.")))
        shown = [number(row.cost), number(row.gradient_norm), row.status.lower(), number(row.norm)]
        shown += [number(distance) for distance in row.distances] + [row.determined or "-"]
        assert line.split()[2:] == [*shown, f"{result.record.timing.modules[row.module]:.2f}"]
    (total,) = (line for line in lines if line.startswith("total"))
    assert number(result.record.totals.cost) in total
    assert "below layers" in text
    assert f"{result.record.timing.solve:.2f}" in total


@pytest.mark.parametrize("width", [40, 80, 100, 160])
@pytest.mark.parametrize("count", [2, 7])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int, count: int) -> None:
    shapes = {f"model.layers.{i}.self_attn.a_projection_with_a_long_name": (12, 12) for i in range(2)}
    record = merge_adapters(write_family(tmp_path, family("mix", count, shapes=shapes))).record
    text = render(merge_report(record), width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 100:
        assert "0.self_attn." in text or "0.self_att" in text
        assert "…" in text
        assert all(number(row.cost) in text for row in record.modules)
        if count > 5:
            assert "–" in text


@pytest.mark.parametrize(
    ("family_name", "method", "begins", "holds"),
    [
        (
            "close",
            "geomerge",
            "Do these adapters determine their mean? Yes.",
            "hardly of the start",
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
        ("independent", "balanced", "Do these adapters determine their mean? No", "asked of geomerge."),
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
    assert " ".join(first.split()) in " ".join(render(merge_report(record)).split())
    assert ("has one answer" in second) == (method == "average")
    if method == "geomerge" and record.totals.determined != "yes":
        assert "(rank 6 here)" in second
        assert "about 1/3" in second


def test_a_measured_spread_decides_and_is_shown(tmp_path: Path) -> None:
    shapes = {"q": (60, 60), "v": (60, 50)}
    close, far = (family(name, 4, shapes=shapes) for name in ("close", "independent"))
    adapters = [{"q": one["q"], "v": other["v"]} for one, other in zip(close, far, strict=True)]
    folders = write_family(tmp_path, adapters)
    judged, measured = (merge_adapters(folders, starts=starts).record for starts in (None, 3))
    first, _ = verdict(judged)
    assert "judged by this overlap; --method geomerge --starts 10" in first
    assert "Of 2 modules are well determined: 1 (q); not determined: 1 (v)." in first
    first, _ = verdict(measured)
    assert "solved from 3 starts" in first
    assert "up to 1%, in part up to 10%" in first
    (row,) = (row for row in measured.modules if row.module == "v")
    assert row.update_spread is not None
    assert row.determined == "no"
    text = render(merge_report(measured), 120)
    assert f"no ({row.update_spread:.0%})" in text
    assert "yes (0%)" in text
    assert "None" not in text
    # The spread has the last word, whatever the overlap says.
    turned = [
        one.model_copy(update={"update_spread": spread, "determined": judge_overlap(one.overlap, spread)})
        for one, spread in zip(measured.modules, (0.05, 0.001), strict=True)
    ]
    assert [one.determined for one in turned] == ["partly", "yes"]
    assert (judged.totals.determined, measured.totals.determined) == ("partly", "partly")
    total = totals(turned)
    expected = math.hypot(0.05 * turned[0].norm, 0.001 * turned[1].norm)
    assert total.update_spread == pytest.approx(expected / math.hypot(turned[0].norm, turned[1].norm))
    first, _ = verdict(measured.model_copy(update={"modules": tuple(turned), "totals": total}))
    assert "well determined: 1 (v); determined in part: 1 (q)" in first


def test_where_the_overlap_does_not_tell_the_verdict_says_so(tmp_path: Path) -> None:
    adapters = [
        {name: (b + 0.37 * torch.randn(b.shape, generator=seeded(i)), a) for name, (b, a) in one.items()}
        for i, one in enumerate(family("close", 3, rank=2, shapes={"q": (150, 150)}))
    ]
    record = merge_adapters(write_family(tmp_path, adapters)).record
    (row,) = record.modules
    assert row.overlap is not None
    assert (row.determined, record.totals.determined) == ("open", "open")
    first, second, *_ = verdict(record)
    assert first.startswith("Do these adapters determine their mean? Their overlap does not tell.")
    found = json.loads((ROOT / "benchmarks" / "results" / "verdict.json").read_text(encoding="utf-8"))["sets"]
    for one in found.values():
        assert one["told"] == one["told_rightly"]
        assert one["auto_agrees"] == len(one["modules"]) == one["told"] + one["auto_measured"]
    real = Counter()
    for name, one in found.items():
        if name not in FAMILIES:
            real.update(one["open"])
    assert f"of {real.total()} such modules" in second
    assert real.keys() == {"yes", "no"}
    assert f"in {real['yes']} all ten starts ended in one update, in {real['no']} in different ones" in second


@pytest.mark.parametrize(
    ("yes", "partly", "no", "unsaid", "together"),
    [
        (9, 1, 0, 0, "yes"),
        (9, 0, 1, 0, "yes"),
        (9, 0, 0, 1, "yes"),
        (8, 1, 1, 0, "partly"),
        (8, 1, 0, 1, "open"),
        (7, 1, 1, 1, "partly"),  # whatever the open one is
        (0, 10, 0, 0, "partly"),
        (1, 0, 9, 0, "no"),
        (0, 1, 5, 4, "open"),
        (0, 2, 8, 0, "partly"),
        (5, 0, 4, 1, "partly"),
        (0, 0, 0, 10, "open"),
        (0, 0, 0, 0, None),
    ],
)
def test_the_modules_answer_together(
    yes: int, partly: int, no: int, unsaid: int, together: str | None
) -> None:
    answers: list[Determined | None] = [
        *["yes"] * yes,
        *["partly"] * partly,
        *["no"] * no,
        *["open"] * unsaid,
    ]
    assert judge_modules([*answers, None]) == together


def test_the_weakest_direction_decides_and_orthogonal_updates_do_not() -> None:
    known = {"left": 0.5, "right": 0.8, "left_random": 0.1, "right_random": 0.1, "share": 0.5}
    for weakest, cosine, answer in (
        (0.9, 0.9, "yes"),
        (0.41, 0.21, "yes"),
        (0.39, 0.9, "open"),
        (0.06, 0.9, "open"),
        (0.04, 0.9, "no"),
        (0.9, 0.19, "open"),
        (0.79, 0.01, "open"),
        (0.81, 0.07, "no"),
        (0.81, 0.09, "open"),
        (0.9, -0.5, "no"),
    ):
        found = Overlap(**known, weakest=weakest, cosine=cosine)
        assert judge_overlap(found) == answer
        assert [judge_overlap(found, spread) for spread in (0.009, 0.05, 0.2)] == ["yes", "partly", "no"]
    assert judge_overlap(None) is None


def test_left_out_updates_have_no_distance_in_the_report(tmp_path: Path) -> None:
    adapters = family("close", 3)
    for i in (0, 1, 2):
        adapters[i]["layers.0.v"][0][:] = 0
    adapters[1]["layers.0.q"][0][:] = 0
    folders = write_family(tmp_path, adapters)
    record = merge_adapters(folders).record
    text = render(merge_report(record), 120)
    (line,) = (line for line in text.splitlines() if line.startswith("0.v"))
    assert "exact" in line
    (line,) = (line for line in text.splitlines() if line.startswith("0.q"))
    assert record.modules[0].distances is not None
    shown = [number(distance) for distance in record.modules[0].distances]
    assert shown[1] == "-"
    assert " ".join(shown) in " ".join(line.split())
    assert "warning: b: its update is all zero in 2 of 3 modules" in " ".join(text.split())
    inspected = inspect_adapters(folders)
    assert [row.numerical_rank for row in inspected.adapters[1].modules] == [0, 0, 3]
    assert inspected.pairs[0].notes == (
        "layers.0.q: numerical rank 0 of 3: no quotient distance",
        "layers.0.v: numerical rank 0 of 3: no quotient distance",
    )
    render(inspection_report(inspected))


def test_names_are_shown_literally(tmp_path: Path) -> None:
    adapters = family("close", 2)
    name = "[red]a[bold]\x1b[31m\u202e"
    folders = [write_folder(tmp_path / name, adapters[0]), write_folder(tmp_path / ":warning:", adapters[1])]
    record = merge_adapters([*folders, "[bold]zero"], [1, 1, 0]).record
    for text in (
        render(merge_report(record), 200),
        render(inspection_report(inspect_adapters(folders)), 200),
    ):
        assert "[red]a[bold]\\x1b[31m\\u202e" in text
        assert ":warning:" in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "[bold]zero" in render(merge_report(record), 200)
    assert "\x1b[31m" not in render(merge_report(record), 200, terminal=True).replace("\x1b[33m", "")


def test_warnings_are_shown(tmp_path: Path) -> None:
    record = merge_adapters(write_family(tmp_path, family("mix", 2)), max_passes=1, cost_tol=0).record
    assert "warning: 3 of 3 modules ended as BUDGET" in render(merge_report(record))


def test_an_inspection_shows_singular_values_and_pairs(tmp_path: Path) -> None:
    adapters = family("close", 2, rank=6)
    adapters[1]["layers.0.v"][0][:, 5] = 0
    inspection = inspect_adapters(write_family(tmp_path, adapters, lora_alpha=12))
    text = render(inspection_report(inspection))
    for adapter, factors in zip(inspection.adapters, adapters, strict=True):
        for row in adapter.modules:
            b, a = factors[row.module]
            values = torch.linalg.svdvals(2.0 * b @ a)[:6]
            torch.testing.assert_close(torch.tensor(row.singular_values, dtype=torch.float64), values)
            assert row.norm == pytest.approx(float(values.norm()))
            assert row.scale == 2.0
            assert " ".join(number(float(value)) for value in values[:3]) in text
    assert "6 (5)" in text
    (pair,) = inspection.pairs
    assert pair.distance is None
    assert pair.notes == ("layers.0.v: numerical rank 5 of 6: no quotient distance",)
    assert set(pair.distances) == {"layers.0.q", "layers.1.q"}
    assert "note: a – b: layers.0.v: numerical rank 5 of 6" in text


def test_pairs_are_at_the_distances_that_a_merge_of_the_two_divides(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    (pair,) = inspect_adapters(folders).pairs
    totals = merge_adapters(folders, cost_tol=0).record.totals
    assert totals.distances is not None
    assert pair.distance == pytest.approx(sum(totals.distances), rel=1e-6)
    assert pair.overlap is not None
    assert totals.overlap is not None
    # One is measured beside other adapters than the other, in other bases.
    assert pair.overlap.model_dump() == pytest.approx(totals.overlap.model_dump(), rel=1e-12)
    assert pair.notes == ()


def test_adapters_of_different_rank_have_an_overlap_but_no_distance(tmp_path: Path) -> None:
    (a,), (b,) = family("close", 1, rank=4), family("close", 1, rank=2)
    (pair,) = inspect_adapters(write_family(tmp_path, [a, b])).pairs
    assert pair.distance is None
    assert pair.overlap is not None
    assert len(pair.notes) == len(SHAPES)
    assert "ranks 4 and 2 differ" in pair.notes[0]


def test_the_table_of_methods_shows_every_row() -> None:
    text = " ".join(render(methods_report(METHODS.values())).split())  # lines are wrapped
    for row in METHODS.values():
        assert row.name in text
        assert " ".join(row.source.split()) in text
    explained = " ".join(render(methods_report([METHODS["spectrum"]], explain=True)).split())
    assert all(PARAMETERS[name].summary in explained for name in METHODS["spectrum"].parameters)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (4.2, "4.20"),
        (123.4, "123"),
        (0.0123, "0.0123"),
        (1234.0, "1.2e+03"),
        (1e-9, "1.0e-09"),
        (float("inf"), "inf"),
        (-2.5, "-2.50"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_printable_text_stays_and_anything_else_becomes_visible() -> None:
    assert printable("Ω é 中 [x]") == "Ω é 中 [x]"
    assert printable("a\tb\u2028\udcff") == "a\\tb\\u2028\\udcff"


# --- evaluations --------------------------------------------------------------------------------------------

NOTHING = PairedDifference(value=0, error=0, low=0, high=0, p=1)


def entry(name: str, score: float, difference: PairedDifference, *, method: bool = True) -> Entry:
    looks = (Look(coefficient=2, dev={"t": score}, normalised=score),)
    said = {"method": "ties", "rank": 7, "looks": looks, "coefficient": 2, "scale": 2.5, "dev": score}
    return Entry(
        name=name,
        test={"t": score / 2, "u": score / 4},
        normalised=score,
        error=difference.error,
        to_average=difference,
        to_best=NOTHING,
        **(said if method else {}),
    )


def evaluation(difference: PairedDifference, **said: object) -> Evaluation:
    alone = entry("a", 0.5, difference, method=False)
    made = Evaluation(
        versions={},
        models={"a": {}},
        tasks=("t", "u"),
        specialists={"t": "a", "u": None},
        parts=True,
        rows={"t": 5, "u": 5},
        norm=1.0,
        coefficients=None,
        resamples=10,
        seed=1,
        alone=(alone,),
        entries=(entry("average", 0.625, NOTHING), entry("ties:density=0.2", 0.75, difference)),
        refused={"slerp": ("no two",)},
        average="average",
        best="ties:density=0.2",
        notes=("mind this",),
    )
    return made.model_copy(update=said)


def interval(low: float, value: float, high: float) -> PairedDifference:
    return PairedDifference(value=value, error=0.01, low=low, high=high, p=0.04)


def test_an_evaluation_has_every_row_best_first_and_says_what_is_wrong() -> None:
    text = render(evaluation_report(evaluation(interval(0.1, 0.125, 0.15))))
    lines = text.splitlines()
    assert lines[0].strip() == "scores on test rows"
    assert [line.split()[0] for line in lines[2:5]] == ["ties:density=0.2", "average", "a"]
    shown = "ties:density=0.2 (best on dev) 7 2.00 0.375 0.188 0.750 ± 0.010 +0.125 [+0.100, +0.150]"
    assert lines[2].split() == shown.split()
    assert lines[3].split() == ["average", "7", "2.00", "0.312", "0.156", "0.625", "±", "0.000"]
    assert lines[4].split() == [
        "a",
        "alone",
        "0.250",
        "0.125",
        "0.500",
        "±",
        "0.010",
        "+0.125",
        "[+0.100,",
        "+0.150]",
    ]
    assert "refused: slerp: no two" in text
    assert "note: mind this" in text
    assert "chosen on" in render(evaluation_report(evaluation(NOTHING, parts=False)))


def test_many_tasks_have_a_table_of_their_own_and_nothing_from_outside_is_acted_on() -> None:
    tasks = [f"task {place}" for place in range(6)]
    made = evaluation(NOTHING)
    wide = [
        one.model_copy(update={"test": dict.fromkeys(tasks, 0.5), "name": f"{one.name}\x1b[31m"})
        for one in made.alone
    ]
    same = [one.model_copy(update={"test": dict.fromkeys(tasks, 0.5)}) for one in made.entries]
    made = made.model_copy(update={"tasks": tuple(tasks), "alone": tuple(wide), "entries": tuple(same)})
    text = render(evaluation_report(made))
    assert "by task" in text
    assert "\x1b" not in text
    assert all(task in text for task in tasks)
    assert max(map(len, text.splitlines())) <= 100


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
