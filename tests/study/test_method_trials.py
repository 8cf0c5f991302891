"""All methods have the same looks at the same norms, chosen on dev alone, on the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import (
    NumericalError,
)
from riemerge.progress import Progress
from riemerge.study.evaluation import evaluate
from riemerge.study.norm_search import HALF_OCTAVE, NORMS
from tests.folders import family, listing, write_family, write_folder
from tests.study.inputs import (
    METHODS,
    ROWS,
    SHAPES,
    TASKS,
    Closeness,
    average,
    flat_updates,
    quick,
)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return write_family(tmp_path, family("lora_like", 3, shapes=SHAPES))


def test_all_methods_have_the_same_looks_at_the_norms_of_the_average(
    folders: list[Path], tmp_path: Path
) -> None:
    seen: list[tuple[str, float]] = []
    judge = Closeness(folders)

    def scorer(folder: Path, part: str) -> dict[str, list[float]]:
        seen.append((part, float(flat_updates(folder).norm())))
        return judge(folder, part)

    events: list[Progress] = []
    made = quick(folders, scorer, folder=tmp_path / "out", progress=events.append)
    unit = float(average(folders).norm())
    assert made.norm == pytest.approx(unit, rel=1e-12)
    scores: list[tuple[str, float | None, str]] = []
    scores += [(name, None, part) for part in ("test", "dev") for name in TASKS]
    for entry in made.entries:
        scores += [(entry.name, look.coefficient, "dev") for look in entry.looks]
        scores += [(entry.name, entry.coefficient, "test")]
    total = 2 * len(TASKS) + 6 * len(METHODS)
    places = list(range(1, total + 1))
    assert [(event.stage, event.done, event.total) for event in events] == [
        ("evaluate", place, total) for place in places
    ]
    for event, (name, coefficient, part), (asked, norm) in zip(events, scores, seen, strict=True):
        at = "" if coefficient is None else f" at {coefficient:.3g}"
        assert event.text.startswith(f"{name}{at}: {part}: a ")
        assert asked == part
        if coefficient is not None:
            # dW of float64 factors, written and read.
            assert norm == pytest.approx(coefficient * unit, rel=1e-12)
    for entry in made.entries:
        first, more = entry.looks[:3], [look.coefficient for look in entry.looks[3:]]
        assert tuple(look.coefficient for look in first) == NORMS
        best = max(first, key=lambda look: look.normalised).coefficient
        assert more == [best / HALF_OCTAVE, best * HALF_OCTAVE]
        assert entry.dev == max(look.normalised for look in entry.looks)
    assert made.best == max(made.entries, key=lambda entry: entry.dev or 0).name


def test_coefficients_that_are_asked_for_replace_the_search(folders: list[Path], tmp_path: Path) -> None:
    judge = Closeness(folders)
    made = quick(folders, judge, folder=tmp_path / "out", coefficients=[0.5, 3])
    assert list(made.coefficients or ()) == [0.5, 3]
    assert {tuple(look.coefficient for look in one.looks) for one in made.entries} == {(0.5, 3.0)}
    assert len(judge.calls) == 2 * 3 + len(METHODS) * (2 + 1)


def test_the_coefficient_is_chosen_on_dev_alone(folders: list[Path], tmp_path: Path) -> None:
    unit = float(average(folders).norm())
    alone = {float(flat_updates(folder).norm()) for folder in folders}

    def scorer(folder: Path, part: str) -> float:
        norm = float(flat_updates(folder).norm())
        # On test the least norm would be best, and on dev twice the average's.
        return 1.0 if norm in alone else 10 - abs(norm / unit - 2 * (part == "dev"))

    made = evaluate(folders, scorer, folder=tmp_path / "out", methods=METHODS)
    for entry in made.entries:
        assert entry.coefficient == 2
        assert entry.normalised == pytest.approx(8)


def test_scores_are_divided_by_the_specialist_s(folders: list[Path], tmp_path: Path) -> None:
    def scorer(folder: Path, part: str) -> dict[str, float]:
        size = float(flat_updates(folder).norm())
        return {"a": size, "b": 2 * size if part == "test" else size, "other": 3.0}

    made = evaluate(
        folders, scorer, folder=tmp_path / "out", methods=METHODS, specialists={"b": "c", "other": None}
    )
    assert made.specialists == {"a": "a", "b": "c", "other": None}
    a, _, c = (float(flat_updates(folder).norm()) for folder in folders)
    for entry in made.entries:
        norm = entry.coefficient * made.norm  # type: ignore[operator]
        assert entry.normalised == pytest.approx((norm / a + norm / c + 3) / 3, rel=1e-12)
        assert entry.dev == pytest.approx(entry.normalised, rel=1e-12)
    own = {one.name: one for one in made.alone}
    assert own["a"].normalised == pytest.approx((1 + a / c + 3) / 3, rel=1e-12)
    assert any("other: no model is the specialist" in note for note in made.notes)
    assert all(one.error is one.to_average.error is None for one in [*made.alone, *made.entries])
    assert any("a, b, other: one score alone" in note for note in made.notes)
    by_path = {"b": str(folders[2]), "other": None}
    again = evaluate(folders, scorer, folder=tmp_path / "out", methods=METHODS, specialists=by_path)
    assert again == made


def test_a_scorer_without_parts_is_asked_once_and_the_record_says_so(
    folders: list[Path], tmp_path: Path
) -> None:
    judge = Closeness(folders)
    calls: list[Path] = []

    def scorer(folder: Path) -> dict[str, list[float]]:
        calls.append(folder)
        return judge(folder, "test")

    made = quick(folders, scorer, folder=tmp_path / "out")
    assert len(calls) == 3 + 5 * len(METHODS)
    assert not made.parts
    assert any("the same rows" in note and "optimistic" in note for note in made.notes)
    for entry in made.entries:
        assert entry.dev == entry.normalised
    told = quick(folders, judge, folder=tmp_path / "told")
    assert not any("optimistic" in note for note in told.notes)


def test_a_method_that_refuses_these_adapters_has_an_entry_that_says_why(tmp_path: Path) -> None:
    adapters = family("lora_like", 2, shapes=SHAPES) + family("lora_like", 1, rank=2, shapes=SHAPES)
    folders = [write_folder(tmp_path / name, one) for name, one in zip(TASKS, adapters, strict=True)]
    judge = Closeness(folders)
    methods = ("average", "slerp", "geomerge", "fisher", "geomerge:rank=2")
    made = evaluate(folders, judge, folder=tmp_path / "out", methods=methods, resamples=50)
    assert [one.name for one in made.entries] == ["average", "geomerge:rank=2"]
    assert set(made.refused) == {"slerp", "geomerge", "fisher"}
    assert "exactly 2" in made.refused["slerp"][0]
    assert "rank" in made.refused["geomerge"][0]
    assert "statistics" in made.refused["fisher"][0]
    before = len(judge.calls)
    assert evaluate(folders, judge, folder=tmp_path / "out", methods=methods, resamples=50) == made
    assert len(judge.calls) == before


def test_another_version_measures_anew(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Closeness(folders)
    evaluate(folders, judge, folder=tmp_path / "out", methods=("average",))
    monkeypatch.setattr("riemerge.study.method_trials.__version__", "0.0.0")
    evaluate(folders, judge, folder=tmp_path / "out", methods=("average",))
    assert len(judge.calls) == 2 * (6 + 6)


ALONE = 6  # scores of three models


@pytest.mark.parametrize("call", [1, 4, 12])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (math.nan, "in score is nan: expected finite numbers"),
        (None, "in score is None: expected finite"),
        ("good", "in score is 'good'"),
        ({}, "of no task"),
        ({"a": [1.0], 3: 1.0}, "have a task 3"),
        ({"a": [1.0, math.inf, math.nan], "b": 1, "c": 1}, "in a is inf in row 2 of 3"),
        ({"a": [], "b": 1.0, "c": 1.0}, "in a is of no row"),
        ({"a": [1.0, "x"], "b": {}, "c": [[1.0]]}, "in a is 'x' in row 2 of 2"),
        ({"a": 10**400, "b": 1, "c": 1}, "in a is "),
    ],
)
def test_what_is_no_score_is_refused_whenever_it_comes(
    folders: list[Path], tmp_path: Path, call: int, answer: Any, words: str
) -> None:
    judge = Closeness(folders)
    before = listing(tmp_path)

    def scorer(folder: Path, part: str) -> Any:
        rows = judge(folder, part)
        return answer if len(judge.calls) == call else rows

    with pytest.raises(NumericalError, match=words):
        evaluate(folders, scorer, folder=tmp_path / "out", methods=("average",))
    left = {path.relative_to(tmp_path).as_posix() for path in {*listing(tmp_path)} - {*before}}
    assert left == (set() if call <= ALONE else {"out", "out/results.jsonl"})


def lacking(rows: dict[str, Any]) -> Any:
    return {task: rows[task] for task in "ab"}


def more(rows: dict[str, Any]) -> Any:
    return {**rows, "d": 1.0}


def shorter(rows: dict[str, Any]) -> Any:
    return {**rows, "b": rows["b"][1:]}


def single(rows: dict[str, Any]) -> Any:
    return {**rows, "b": 1.0}


@pytest.mark.parametrize("call", [2, 5, 8, 12])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lacking, "lack c: expected all tasks"),
        (more, "have d, which others lack"),
        (shorter, f"are of {ROWS - 1} rows of b: expected {ROWS}"),
        (single, f"are of no rows of b: expected {ROWS}"),
    ],
)
def test_scores_of_other_tasks_or_rows_than_before_are_refused(
    folders: list[Path], tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str, call: int
) -> None:
    judge = Closeness(folders)

    def scorer(folder: Path, part: str) -> Any:
        rows = judge(folder, part)
        return change(rows) if len(judge.calls) == call else rows

    with pytest.raises(NumericalError, match=words):
        evaluate(folders, scorer, folder=tmp_path / "out", methods=("average",))
    assert not (tmp_path / "out" / "best").exists()


def test_rows_are_as_many_when_a_run_goes_on(folders: list[Path], tmp_path: Path) -> None:
    judge, shorter_now = Closeness(folders), False

    def scorer(folder: Path, part: str) -> Any:
        rows = judge(folder, part)
        return shorter(rows) if shorter_now else rows

    evaluate(folders, scorer, folder=tmp_path / "out", methods=("average",), resamples=50)
    shorter_now = True
    with pytest.raises(NumericalError, match="expected 7"):
        evaluate(folders, scorer, folder=tmp_path / "out", methods=("tsv",), resamples=50)


def test_dev_and_test_may_be_of_different_numbers_of_rows(folders: list[Path], tmp_path: Path) -> None:
    judge = Closeness(folders)

    def scorer(folder: Path, part: str) -> Any:
        rows = judge(folder, part)
        return shorter(rows) if part == "dev" else rows

    made = quick(folders, scorer, folder=tmp_path / "out")
    assert made.rows == dict.fromkeys(TASKS, ROWS)


@pytest.mark.parametrize("part", ["dev", "test"])
@pytest.mark.parametrize("score", [0.0, -1.0])
def test_a_specialist_whose_score_is_not_above_zero_is_refused(
    folders: list[Path], tmp_path: Path, part: str, score: float
) -> None:
    def scorer(folder: Path, which: str) -> dict[str, float]:
        return {"a": 1.0, "b": score if folder.name == "b" and which == part else 1.0}

    before = listing(tmp_path)
    with pytest.raises(NumericalError, match=f"the score of b .{part}. in b is {score:g}: .*above 0"):
        evaluate(folders, scorer, folder=tmp_path / "out")
    assert listing(tmp_path) == before
    raw = {"b": None}
    made = evaluate(folders, scorer, folder=tmp_path / "out", methods=["average"], specialists=raw)
    assert made.alone[1].test["b"] == (score if part == "test" else 1)


def test_methods_with_many_parameters_are_told_apart(folders: list[Path], tmp_path: Path) -> None:
    """Two names that begin alike, each longer than file systems take, are two rows."""
    steps = [f"ties:density=[{', '.join(['0.5'] * 80)}, {last}]" for last in (0.25, 0.75)]
    judge = Closeness(folders)
    again = partial(
        evaluate, folders, judge, folder=tmp_path / "out", methods=steps, coefficients=[1], resamples=200
    )
    made = again()
    assert len(made.entries) == 3
    calls = len(judge.calls)
    assert again() == made
    assert len(judge.calls) == calls


def test_results_that_are_in_the_table_count_as_done(folders: list[Path], tmp_path: Path) -> None:
    judge, events = Closeness(folders), list[Progress]()
    quick(folders, judge, folder=tmp_path / "out")
    more_of_them = (*METHODS, "tsv:rank=1")
    quick(folders, judge, folder=tmp_path / "out", methods=more_of_them, progress=events.append)
    total = 2 * len(TASKS) + 6 * len(more_of_them)
    assert [(event.done, event.total) for event in events] == [
        (place, total) for place in range(total - 5, total + 1)
    ]
