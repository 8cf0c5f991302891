"""Reports show what the record says, whatever the names hold and however narrow the terminal is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riemerge.merging.sinks import MergeResult
from riemerge.methods import METHODS, PARAMETERS
from riemerge.report.tables import (
    MAX_EACH,
    MAX_SHOWN,
    collection_report,
    evaluation_report,
    inspection_report,
    merge_report,
    method_report,
    methods_report,
    written_report,
)
from riemerge.report.verdict import answer
from riemerge.report.words import number
from riemerge.study.inspection import inspect_adapters
from tests.folders import SHAPES, family, merge_adapters, write_family, write_folder
from tests.records.collections import made_collection
from tests.report.samples import NOTHING, evaluation, interval, render


@pytest.fixture
def result(tmp_path: Path) -> MergeResult:
    return merge_adapters(write_family(tmp_path, family("mix", 3)), [2, 1, 1])


def test_every_module_has_its_row_and_the_total_its_own(result: MergeResult) -> None:
    text = render(merge_report(result.record, verbose=True))
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


@pytest.mark.parametrize(("missing", "word"), [("zero", "zero"), ("skip", "left out")])
def test_modules_that_some_adapters_lack_have_a_table(tmp_path: Path, missing: str, word: str) -> None:
    one, two = family("close", 2)
    folders = write_family(tmp_path, [one, {"layers.0.q": two["layers.0.q"]}])
    record = merge_adapters(folders, method="average", missing=missing).record
    shown = render(merge_report(record, verbose=True))
    _, table = shown.split("missing (below layers)")
    cells = [line.split() for line in table.splitlines() if line.strip()]
    assert cells[1:] == [["0.v", "b", *word.split()], ["1.q", "b", *word.split()]]
    assert "counts as" not in render(merge_report(record))


@pytest.mark.parametrize("method", ["spectrum", "average", "geomerge", "iso_c"])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_answer_comes_first_in_at_most_seven_lines(tmp_path: Path, count: int, method: str) -> None:
    record = merge_adapters(write_family(tmp_path, family("mix", count)), method=method).record
    lines = render(written_report(record, Path("merged"), 0.002)).splitlines()
    (place,) = (place for place, line in enumerate(lines) if line.startswith("next: "))
    assert place < 7
    assert "" in lines[place + 1 : place + 2] or len(lines) == place + 1
    assert lines[0].startswith(f"{count} adapter{'s' * (count > 1)} merged by {method}: ")
    assert lines[1].startswith("keeps of each input: ")
    assert "written to" in lines[place - 2]
    assert lines[place - 1].startswith("serve with vLLM: --max-lora-rank ")
    # What is worth a remark is seen without any option; tables of modules are not.
    shown = " ".join(" ".join(lines).split())
    assert all(f"warning: {text}" in shown for text in record.warnings)
    assert "layers.0.q" not in " ".join(lines[: place + 1])
    assert ("mean determined?" in shown) == (method == "geomerge")
    assert "mean determined?" in shown or "determine their mean" not in shown


def test_the_answer_stands_above_the_tables(result: MergeResult) -> None:
    short, long = (render(merge_report(result.record, verbose=verbose)) for verbose in (False, True))
    assert long.startswith(short)
    assert all(line in " ".join(short.split()) for line in answer(result.record))
    assert "mean fixed?" in long
    assert "mean fixed?" not in short


@pytest.mark.parametrize("width", [40, 80, 100, 160])
@pytest.mark.parametrize("count", [2, 7])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int, count: int) -> None:
    shapes = {f"model.layers.{i}.self_attn.a_projection_with_a_long_name": (12, 12) for i in range(2)}
    record = merge_adapters(write_family(tmp_path, family("mix", count, shapes=shapes))).record
    text = render(merge_report(record, verbose=True), width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 100:
        assert "0.self_attn." in text or "0.self_att" in text
        assert "…" in text
        assert all(number(row.cost) in text for row in record.modules)
        if count > 5:
            assert "–" in text


def test_left_out_updates_have_no_distance_in_the_report(tmp_path: Path) -> None:
    adapters = family("close", 3)
    for i in (0, 1, 2):
        adapters[i]["layers.0.v"][0][:] = 0
    adapters[1]["layers.0.q"][0][:] = 0
    folders = write_family(tmp_path, adapters)
    record = merge_adapters(folders).record
    text = render(merge_report(record, verbose=True), 120)
    (line,) = (line for line in text.splitlines() if line.startswith("0.v"))
    assert "exact" in line
    (line,) = (line for line in text.splitlines() if line.startswith("0.q"))
    assert record.modules[0].distances is not None
    shown = [number(distance) for distance in record.modules[0].distances]
    assert shown[1] == "-"
    assert " ".join(shown) in " ".join(line.split())
    assert "warning: b: its update is all zero in 2 of 3 modules" in " ".join(text.split())
    inspected = inspect_adapters(folders, distances=True)
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
        render(merge_report(record, verbose=True), 200),
        render(inspection_report(inspect_adapters(folders)), 200),
    ):
        assert "[red]a[bold]\\x1b[31m\\u202e" in text
        assert ":warning:" in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "[bold]zero" in render(merge_report(record, verbose=True), 200)
    assert "\x1b[31m" not in render(merge_report(record, verbose=True), 200, terminal=True).replace(
        "\x1b[33m", ""
    )


def test_warnings_are_shown(tmp_path: Path) -> None:
    record = merge_adapters(write_family(tmp_path, family("mix", 2)), max_passes=1, cost_tol=0).record
    assert "warning: 3 of 3 modules ended as BUDGET" in render(merge_report(record))


def test_an_inspection_shows_singular_values_and_pairs(tmp_path: Path) -> None:
    adapters = family("close", 2, rank=6)
    adapters[1]["layers.0.v"][0][:, 5] = 0
    inspection = inspect_adapters(write_family(tmp_path, adapters, lora_alpha=12), distances=True)
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
    (pair,) = inspect_adapters(folders, distances=True).pairs
    totals = merge_adapters(folders, cost_tol=0).record.totals
    assert totals.distances is not None
    both = [distance for distance in totals.distances if distance is not None]
    assert pair.distance == pytest.approx(sum(both), rel=1e-6)
    assert pair.overlap is not None
    assert totals.overlap is not None
    # One is measured beside other adapters than the other, in other bases.
    expected = totals.overlap.model_dump() | {"cosine": pair.overlap.cosine}  # there the mean over modules
    assert pair.overlap.model_dump() == pytest.approx(expected, rel=1e-12)
    assert pair.notes == ()


def test_adapters_of_different_rank_have_an_overlap_but_no_distance(tmp_path: Path) -> None:
    (a,), (b,) = family("close", 1, rank=4), family("close", 1, rank=2)
    (pair,) = inspect_adapters(write_family(tmp_path, [a, b]), distances=True).pairs
    assert pair.distance is None
    assert pair.overlap is not None
    assert len(pair.notes) == len(SHAPES)
    assert "ranks 4 and 2 differ" in pair.notes[0]


# --- evaluations --------------------------------------------------------------------------------------------


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


# --- collections --------------------------------------------------------------------------------------------


def test_a_collection_is_shown_with_its_clusters_its_advice_and_who_is_left_out() -> None:
    record = made_collection()
    named = record.left_out[0].model_copy(update={"reasons": ("\x1b[31mbroken: 1 NaN",)})
    text = render(collection_report(record.model_copy(update={"left_out": (named,)})))
    lines = text.splitlines()
    assert lines[0].startswith("4 adapters of 3 modules compared")
    (_, row) = [line.split()[:3] for line in lines if " family " in line]
    assert row == ["0", "family", "3"]
    assert "  riemerge merge law med -o family-0 --method geomerge" in lines
    assert "left out: broken: \\x1b[31mbroken: 1 NaN" in lines
    assert max(map(len, lines)) <= 100


def test_of_many_clusters_and_much_advice_the_first_are_shown() -> None:
    record = made_collection()
    long = record.advice[0].model_copy(update={"command": "riemerge merge " + "name " * 200})
    many = record.model_copy(
        update={"clusters": record.clusters[:1] * 20, "advice": (long,) * (MAX_EACH + 2)}
    )
    text = render(collection_report(many, "atlas/atlas.html"))
    assert text.count(" family ") == MAX_SHOWN
    assert f"and {20 - MAX_SHOWN} more clusters: see atlas/atlas.html" in text
    assert "- and 2 more: see atlas/atlas.html" in text
    assert text.count("  (its command is on atlas/atlas.html)") == MAX_EACH


# --- methods ------------------------------------------------------------------------------------------------


def test_the_table_of_methods_shows_every_row() -> None:
    text = " ".join(render(methods_report(METHODS.values())).split())  # lines are wrapped
    for row in METHODS.values():
        assert row.name in text
        assert " ".join(row.source.split()) in text


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_a_method_opens_with_a_command_and_explains_every_parameter(name: str) -> None:
    row = METHODS[name]
    lines = render(method_report(row), 400).splitlines()
    assert lines[0] == name
    assert lines[1].startswith("  riemerge merge ")
    assert lines[3] == f"  {row.summary}"
    for parameter in row.parameters:
        (line,) = (line for line in lines if line.startswith(f"  {parameter} ") and ":" not in line[:40])
        assert PARAMETERS[parameter].summary in line
        assert str(row.defaults.get(parameter, "")).lower() in line
    assert f"  source: {row.source}" in lines
