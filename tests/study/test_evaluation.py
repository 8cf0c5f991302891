"""An evaluation gives all methods the same looks, chooses on dev alone, and goes on where it was."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from riemerge.cli.commands import main
from riemerge.errors import (
    AdapterError,
    NumericalError,
    OutputError,
    RecipeError,
    ResourceError,
    RiemergeError,
)
from riemerge.formats.peft import read_adapter
from riemerge.merging.verbs import merge_adapters
from riemerge.progress import Progress
from riemerge.records.evaluation_record import Evaluation, PairedDifference
from riemerge.records.run_record import RunRecord
from riemerge.study.evaluation import DEFAULT_METHODS, evaluate
from riemerge.study.norm_search import HALF_OCTAVE, NORMS, search_norms
from riemerge.study.paired_differences import compare
from riemerge.study.result_table import ResultTable
from riemerge.study.scorer import Answers, make_judge
from tests.folders import content, family, listing, write_family, write_folder

SHAPES = {"layers.0.q": (8, 6), "layers.1.q": (5, 9)}
METHODS = ("average", "tsv", "iso_c:rank=2")
TENSORS = "adapter_model.safetensors"
quick = partial(evaluate, methods=METHODS, resamples=200)
TASKS, ROWS = "abc", 7


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here takes the power away; a shared disk takes its time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return write_family(tmp_path, family("lora_like", 3, shapes=SHAPES))


def updates(folder: Path) -> torch.Tensor:
    """All dW of a folder as one vector."""
    adapter = read_adapter(folder)
    return torch.cat([adapter.update(module).dense().flatten() for module in sorted(adapter.modules)])


def average(folders: Sequence[Path]) -> torch.Tensor:
    return torch.stack([updates(folder) for folder in folders]).mean(dim=0)


class Closeness:
    """Scores of rows, by task: how near a model's answers are to those of the adapter of that name."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.own = {folder.name: updates(folder) for folder in folders}
        self.calls: list[tuple[Path, str]] = []

    def __call__(self, folder: Path, part: str) -> dict[str, list[float]]:
        self.calls.append((folder, part))
        found, answers = updates(folder), {}
        for place, (task, own) in enumerate(self.own.items()):
            draw = torch.Generator().manual_seed(2 * place + (part == "test"))
            inputs = torch.randn(ROWS, len(own), generator=draw, dtype=torch.float64)
            apart = (inputs @ (found - own)).square() / (inputs @ own).square().mean()
            answers[task] = (1 / (1 + apart)).tolist()
        return answers


# --- the protocol -------------------------------------------------------------------------------------------


def test_all_methods_have_the_same_looks_at_the_norms_of_the_average(
    folders: list[Path], tmp_path: Path
) -> None:
    seen: list[tuple[str, float]] = []
    judge = Closeness(folders)

    def scorer(folder: Path, part: str) -> dict[str, list[float]]:
        seen.append((part, float(updates(folder).norm())))
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


def test_the_search_goes_half_an_octave_either_side_of_the_best_the_first_of_equals() -> None:
    def at(*best: float) -> list[float]:
        seen: list[float] = []

        def ask(coefficient: float) -> Answers:
            seen.append(coefficient)
            return {"task": float(coefficient in best)}

        assert [look.coefficient for look in search_norms(ask, {}).looks] == seen
        return seen

    root = math.sqrt(2)
    assert at(4.0) == [1, 2, 4, 4 / root, 4 * root]
    assert at(2.0, 4.0) == [1, 2, 4, 2 / root, 2 * root]
    assert at() == [1, 2, 4, 1 / root, root]
    given = search_norms(lambda c: {"task": c}, {"task": 2.0}, (3, 1), refine=False)
    assert [look.coefficient for look in given.looks] == [3, 1]
    assert [look.normalised for look in given.looks] == [1.5, 0.5]
    assert (given.best, given.answers) == (3, {"task": 3})


def test_coefficients_that_are_asked_for_replace_the_search(folders: list[Path], tmp_path: Path) -> None:
    judge = Closeness(folders)
    made = quick(folders, judge, folder=tmp_path / "out", coefficients=[0.5, 3])
    assert made.coefficients == (0.5, 3)
    assert {tuple(look.coefficient for look in one.looks) for one in made.entries} == {(0.5, 3.0)}
    assert len(judge.calls) == 2 * 3 + len(METHODS) * (2 + 1)


def test_the_coefficient_is_chosen_on_dev_alone(folders: list[Path], tmp_path: Path) -> None:
    unit = float(average(folders).norm())
    alone = {float(updates(folder).norm()) for folder in folders}

    def scorer(folder: Path, part: str) -> float:
        norm = float(updates(folder).norm())
        # On test the least norm would be best, and on dev twice the average's.
        return 1.0 if norm in alone else 10 - abs(norm / unit - 2 * (part == "dev"))

    made = evaluate(folders, scorer, folder=tmp_path / "out", methods=METHODS)
    for entry in made.entries:
        assert entry.coefficient == 2
        assert entry.normalised == pytest.approx(8)


def test_the_method_is_chosen_on_dev_alone(folders: list[Path], tmp_path: Path) -> None:
    whole = average(folders)

    def scorer(folder: Path, part: str) -> float:
        found = updates(folder)
        near = float(found @ whole / (found.norm() * whole.norm()))
        return 2 + (near if part == "test" else -near)

    made = evaluate(folders, scorer, folder=tmp_path / "out", methods=("average:rank=sum", "tsv"))
    assert made.average == "average:rank=sum"
    assert made.best == "tsv"
    best, other = made.entry("tsv"), made.entry("average:rank=sum")
    apart = best.normalised - other.normalised
    assert apart < 0
    assert [best.to_average.value, best.to_best.value] == pytest.approx([apart, 0])
    assert [other.to_average.value, other.to_best.value] == pytest.approx([0, -apart])
    record = RunRecord.model_validate_json((tmp_path / "out" / "best" / "riemerge.json").read_text())
    assert record.recipe["merge_method"] == "tsv"


def test_scores_are_divided_by_the_specialist_s(folders: list[Path], tmp_path: Path) -> None:
    def scorer(folder: Path, part: str) -> dict[str, float]:
        size = float(updates(folder).norm())
        return {"a": size, "b": 2 * size if part == "test" else size, "other": 3.0}

    made = evaluate(
        folders, scorer, folder=tmp_path / "out", methods=METHODS, specialists={"b": "c", "other": None}
    )
    assert made.specialists == {"a": "a", "b": "c", "other": None}
    a, _, c = (float(updates(folder).norm()) for folder in folders)
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


def test_a_choice_at_an_end_of_what_was_tried_is_said(folders: list[Path], tmp_path: Path) -> None:
    made = evaluate(
        folders, lambda folder, part: float(updates(folder).norm()), folder=tmp_path / "out", methods=METHODS
    )
    assert {one.coefficient for one in made.entries} == {4 * HALF_OCTAVE}
    assert any(note.startswith(f"{', '.join(METHODS)}: best at the least or") for note in made.notes)


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


def test_the_plain_average_is_tried_in_any_case(folders: list[Path], tmp_path: Path) -> None:
    made = evaluate(folders, Closeness(folders), folder=tmp_path / "out", methods=("tsv",), resamples=50)
    assert [one.name for one in made.entries] == ["average", "tsv"]


def test_the_default_methods_merge_adapters_like_these(folders: list[Path], tmp_path: Path) -> None:
    made = evaluate(folders, Closeness(folders), folder=tmp_path / "out", coefficients=[1], resamples=50)
    assert [one.name for one in made.entries] == list(DEFAULT_METHODS)
    assert made.refused == {}


# --- errors -------------------------------------------------------------------------------------------------


def test_differences_are_paired(folders: list[Path], tmp_path: Path) -> None:
    made = evaluate(folders, Closeness(folders), folder=tmp_path / "out", methods=METHODS)
    nothing = PairedDifference(value=0, error=0, low=0, high=0, p=1)
    assert made.entry(made.average).to_average == made.entry(made.best).to_best == nothing
    for one in [*made.alone, *made.entries]:
        assert one.to_average.value == pytest.approx(one.normalised - made.entry("average").normalised)
    other = made.entry("tsv").to_average
    assert other.error is not None
    assert other.error > 0


def test_an_error_is_that_of_the_mean_of_paired_differences() -> None:
    generator = np.random.default_rng(4)
    rows = 200
    base = generator.random(rows)
    answers: list[Answers] = [
        {"t": tuple(base + shift + 0.1 * generator.standard_normal(rows)), "u": tuple(base)}
        for shift in (0.0, 0.05)
    ]
    found = compare(answers, {}, 0, 1, groups={}, resamples=4000, seed=1)
    apart = np.array(answers[1]["t"]) - np.array(answers[0]["t"])
    ours = found[1].to_average
    assert ours.value == pytest.approx(apart.mean() / 2)
    # A standard deviation of 4,000 draws is good to 1.1 %: four times that.
    assert ours.error == pytest.approx(apart.std() / math.sqrt(rows) / 2, rel=0.045)
    # Rows differ more than the methods do.
    assert found[0].error > 2 * ours.error  # type: ignore[operator]


def test_groups_are_drawn_as_one(folders: list[Path], tmp_path: Path) -> None:
    judge, out = Closeness(folders), tmp_path / "out"
    made = quick(folders, judge, folder=out)
    singles = quick(folders, judge, folder=out, groups={"a": range(ROWS)})
    assert [one.error for one in singles.alone] == pytest.approx([one.error for one in made.alone])
    pairs = quick(folders, judge, folder=out, groups={"a": [0, 0, 1, 1, 2, 2, 2]})
    assert pairs.entry("tsv").error != made.entry("tsv").error
    assert pairs.entry("tsv").normalised == made.entry("tsv").normalised
    for groups in ({"a": [0]}, {"d": [0]}):
        with pytest.raises(RecipeError, match="groups"):
            quick(folders, judge, folder=out, groups=groups)


# --- goes on, and the same bits -----------------------------------------------------------------------------


def test_equal_runs_write_equal_bytes(folders: list[Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        quick(folders, Closeness(folders), folder=tmp_path / name)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert set(content(tmp_path / "one")) == {
        "evaluation.json",
        "best/adapter_config.json",
        "best/adapter_model.safetensors",
        "results.jsonl",
    }
    assert list(ResultTable(tmp_path / "one" / "results.jsonl").rows) == ["models", *METHODS]


class BrokenOffError(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 4, 6, 11, 20])
def test_a_run_that_was_broken_off_goes_on_to_the_same_bytes(
    folders: list[Path], tmp_path: Path, after: int
) -> None:
    judge, calls = Closeness(folders), 0

    def scorer(folder: Path, part: str) -> dict[str, list[float]]:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise BrokenOffError
        return judge(folder, part)

    out = tmp_path / "out"
    before = listing(tmp_path)
    with pytest.raises(BrokenOffError):
        quick(folders, scorer, folder=out)
    if after < 6:
        assert listing(tmp_path) == before
    else:
        done = 1 + (after - 6) // 6
        assert [path.name for path in out.iterdir()] == ["results.jsonl"]  # whole rows, and nothing else
        assert len((out / "results.jsonl").read_text().splitlines()) == done
    calls = after + 1
    made = quick(folders, scorer, folder=out)
    repeated = (after - 6) % 6 if after >= 6 else after
    assert len(judge.calls) == 6 + 6 * len(METHODS) + repeated
    assert calls - after - 1 == 6 + 6 * len(METHODS) - (after - repeated)
    quick(folders, scorer, folder=tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")
    assert Evaluation.model_validate_json((out / "evaluation.json").read_text()) == made


FAULTS = [f"riemerge.study.{name}" for name in ("evaluation.write_atomically", "kept_merges.exchange")]


@pytest.mark.parametrize("name", [*FAULTS, "riemerge.study.evaluation.compare"])
def test_a_fault_while_the_best_is_written_leaves_all_or_nothing_of_it(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    judge, out = Closeness(folders), tmp_path / "out"

    def fail(*_: Any, **__: Any) -> None:
        raise BrokenOffError

    with monkeypatch.context() as patch:
        patch.setattr(name, fail)
        with pytest.raises(BrokenOffError):
            quick(folders, judge, folder=out)
    left = {path.name for path in out.iterdir()}
    assert left == {"results.jsonl"} | ({"best"} if name.endswith("write_atomically") else set())
    before = len(judge.calls)
    quick(folders, judge, folder=out)
    assert len(judge.calls) == before
    quick(folders, judge, folder=tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_a_result_is_in_its_file_whole_or_not_at_all(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, text: bytes) -> None:
        path.write_bytes(text[: len(text) // 2])
        if b'"tsv"' in text:
            raise BrokenOffError
        path.write_bytes(text)

    with monkeypatch.context() as patch:
        patch.setattr("riemerge.formats.files.staging.write_synced", half)
        with pytest.raises(BrokenOffError):
            quick(folders, Closeness(folders), folder=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.jsonl"}
    assert list(ResultTable(tmp_path / "out" / "results.jsonl").rows) == ["models", "average"]


def test_another_version_measures_anew(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Closeness(folders)
    evaluate(folders, judge, folder=tmp_path / "out", methods=("average",))
    monkeypatch.setattr("riemerge.study.method_trials.__version__", "0.0.0")
    evaluate(folders, judge, folder=tmp_path / "out", methods=("average",))
    assert len(judge.calls) == 2 * (6 + 6)


def other_scorer(folders: list[Path], given: dict[str, Any]) -> int:
    judge = given["scorer"]
    given["scorer"] = lambda folder, part: judge(folder, part)
    return 6 + 18


def other_coefficients(folders: list[Path], given: dict[str, Any]) -> int:
    given["coefficients"] = (1,)
    return 3 * 2


def other_dtype(folders: list[Path], given: dict[str, Any]) -> int:
    given["out_dtype"] = "float32"
    return 6 + 18


def other_files(folders: list[Path], given: dict[str, Any]) -> int:
    shutil.rmtree(folders[0])
    write_folder(folders[0], family("lora_like", 1, seed=5, shapes=SHAPES)[0])
    return 6 + 18


def other_specialists(folders: list[Path], given: dict[str, Any]) -> int:
    given["specialists"] = {"a": "b"}
    return 5 + 18  # a is a specialist no more


def more_methods(folders: list[Path], given: dict[str, Any]) -> int:
    given["methods"] = (*METHODS, "tsv:rank=1")
    return 6


def damaged(folders: list[Path], given: dict[str, Any]) -> int:
    path = given["folder"] / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    return 6  # the last of the methods


def other_errors(folders: list[Path], given: dict[str, Any]) -> int:
    given["seed"], given["resamples"] = 3, 100
    return 0


def no_best(folders: list[Path], given: dict[str, Any]) -> int:
    shutil.rmtree(given["folder"] / "best")
    return 0


OTHERS = (
    *(other_scorer, other_coefficients, other_dtype, other_files, other_specialists, more_methods, damaged),
    *(other_errors, no_best),
)


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: change.__name__)
def test_only_what_is_new_is_measured(
    folders: list[Path], tmp_path: Path, change: Callable[[list[Path], dict[str, Any]], int]
) -> None:
    judge = Closeness(folders)
    given: dict[str, Any] = {
        "scorer": judge,
        "folder": tmp_path / "out",
        "methods": METHODS,
        "resamples": 200,
    }
    evaluate(folders, **given)
    expected = change(folders, given)
    before = len(judge.calls)
    made = evaluate(folders, **given)
    assert len(judge.calls) - before == expected
    afresh = evaluate(folders, **{**given, "folder": tmp_path / "whole"})
    assert made == afresh
    assert content(tmp_path / "out" / "best") == content(tmp_path / "whole" / "best")


# --- the best -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_best_is_what_was_scored_and_what_its_record_asks_for(tmp_path: Path, dtype: str) -> None:
    folders = write_family(tmp_path, family("close", 3, shapes=SHAPES), dtype=getattr(torch, dtype))
    judge, scored = Closeness(folders), set()

    def scorer(folder: Path, part: str) -> dict[str, list[float]]:
        if part == "test":
            scored.add((folder / TENSORS).read_bytes())
        return judge(folder, part)

    for method in ("average", "iso_c", "geomerge", "spectrum"):  # the last has a scale of its own
        out = tmp_path / method
        made = evaluate(folders, scorer, folder=out, methods=[method], resamples=50)
        best = made.entry(made.best)
        assert (out / "best" / TENSORS).read_bytes() in scored
        assert best.scale is not None
        again = merge_adapters(folders, method=str(best.method), scale=best.scale, **best.parameters)
        again.save_pretrained(tmp_path / f"{method} again")
        assert content(out / "best") == content(tmp_path / f"{method} again")
        record = RunRecord.model_validate_json((out / "best" / "riemerge.json").read_text())
        assert record.totals.norm == pytest.approx(best.coefficient * made.norm, rel=1e-12)  # type: ignore[operator]
        assert {row.name: row.sha256 for row in record.inputs} == made.models


def test_a_better_best_takes_the_place_of_the_other(folders: list[Path], tmp_path: Path) -> None:
    whole, out = average(folders), tmp_path / "out"

    def scorer(folder: Path, part: str) -> float:
        found = updates(folder)
        return 2 - float(found @ whole / (found.norm() * whole.norm()))

    first = evaluate(folders, scorer, folder=out, methods=("average",), coefficients=[1])
    (inode,) = {(out / "best").stat().st_ino}
    assert evaluate(folders, scorer, folder=out, methods=("average",), coefficients=[1]) == first
    assert (out / "best").stat().st_ino == inode  # it stays
    second = evaluate(folders, scorer, folder=out, methods=("tsv",), coefficients=[1])
    assert (first.best, second.best) == ("average", "tsv")
    record = RunRecord.model_validate_json((out / "best" / "riemerge.json").read_text())
    assert record.recipe["merge_method"] == "tsv"
    assert {path.name for path in out.iterdir()} == {"results.jsonl", "best", "evaluation.json"}


def test_a_killed_exchange_never_leaves_an_evaluation_of_another_best(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    evaluate(folders, lambda folder, part: 1.0, folder=out, methods=("average",), coefficients=[1])
    seen: list[set[str]] = []
    rename = Path.rename

    def watched(path: Path, target: Any) -> Path:
        seen.append({one.name for one in out.iterdir() if not one.name.startswith(".")})
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    evaluate(folders, lambda folder, part: 1.0, folder=out, methods=("average",), coefficients=[2])
    assert seen[-2:] == [{"results.jsonl", "best"}, {"results.jsonl"}]


def said_again(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("riemerge.")]


@pytest.mark.parametrize("damage", ["missing", "swapped"])
def test_the_best_is_made_again_where_its_weights_are_not_as_written(
    folders: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    judge, out = Closeness(folders), tmp_path / "out"
    quick(folders, judge, folder=out)
    before, calls = content(out), len(judge.calls)
    if damage == "missing":
        (out / "best" / TENSORS).unlink()
    else:
        # A sound adapter of the same shapes, which only its bytes tell from the best.
        write_folder(tmp_path / "other", family("lora_like", 1, seed=5, shapes=SHAPES)[0])
        shutil.copyfile(tmp_path / "other" / TENSORS, out / "best" / TENSORS)
    quick(folders, judge, folder=out)
    assert content(out) == before
    assert len(judge.calls) == calls
    why = "is missing" if damage == "missing" else "is not the file that was written"
    assert said_again(caplog) == [f"{out / 'best'}: is made again: {TENSORS} {why}"]


@pytest.mark.parametrize("change", ["torn", "version"])
def test_what_is_measured_again_is_said_with_its_reason(
    folders: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    out = tmp_path / "out"
    quick(folders, Closeness(folders), folder=out)
    assert said_again(caplog) == []
    path = out / "results.jsonl"
    if change == "torn":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        monkeypatch.setattr("riemerge.study.method_trials.__version__", "0.0.0")
    quick(folders, Closeness(folders), folder=out)
    if change == "torn":
        assert said_again(caplog) == [f"{path}: line 4: cannot be read as a result: it is measured again"]
    else:
        assert len(said_again(caplog)) == 1 + len(METHODS)
        assert all("another version of riemerge" in text for text in said_again(caplog))


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


def test_what_an_evaluation_keeps_when_it_fails_is_said(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run("evaluate", *folders, "-o", out, "--scorer", python(FAILS_LATE), "--methods", "average,tsv")
    assert ran.exit_code == 7
    assert f"{out}: keeps what was measured so far" in ran.stderr
    assert list(ResultTable(out / "results.jsonl").rows) == ["models"]


# It scores the models alone, and fails at the first merge, which lies in a hidden folder of ours.
FAILS_LATE = 'import sys; "riemerge-" in sys.argv[1] and sys.exit(9); print(1)'


# --- what makes no sense ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "fault", "words"),
    [
        ({"methods": ["tsvv"]}, RecipeError, "tsvv"),
        ({"methods": ["ties:density=2"]}, RecipeError, "density"),
        ({"methods": ["average:scale=2"]}, RecipeError, "scale is what is searched"),
        ({"coefficients": []}, RecipeError, "coefficients"),
        ({"coefficients": [0.0]}, RecipeError, "coefficients"),
        ({"coefficients": [1, math.nan]}, RecipeError, "coefficients"),
        ({"coefficients": [1, math.inf]}, RecipeError, "coefficients"),
        ({"coefficients": [1, 1]}, RecipeError, "none twice"),
        ({"resamples": 1}, RecipeError, "resamples"),
        ({"seed": -1}, RecipeError, "seed"),
        ({"dtype": "float8"}, RecipeError, "float8"),
        ({"device": "cuda:77"}, ResourceError, "cuda:77"),
        ({"specialists": {"a": "d"}}, RecipeError, "no model 'd'"),
        ({"scorer": 3}, RecipeError, "expected a command or a function"),
        ({"scorer": "score"}, RecipeError, "no {} in it"),
        ({"models": []}, RecipeError, "at least one"),
        ({"models": ["a", "b", "a"]}, RecipeError, "each once"),
        ({"models": ["a", "none"]}, AdapterError, "none"),
        ({"folder": "a"}, OutputError, "input"),
        ({"folder": "a/out"}, OutputError, "input"),
        ({"folder": "no/out"}, OutputError, "create it first"),
        ({"folder": "full"}, OutputError, "is no evaluation"),
        ({"folder": "full/file"}, OutputError, "is no evaluation"),
        ({"folder": "taken"}, OutputError, "best: exists already"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_score(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: dict[str, Any],
    fault: type[RiemergeError],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("of somebody")
    (tmp_path / "taken" / "best").mkdir(parents=True)
    (tmp_path / "taken" / "results.jsonl").touch()
    before = listing(tmp_path)
    given = {
        "models": folders,
        "scorer": lambda folder, part: pytest.fail("was asked for a score"),
        "folder": "out",
        **said,
    }
    with pytest.raises(fault, match=words):
        evaluate(**given)
    assert listing(tmp_path) == before


def test_a_specialist_of_no_task_is_refused_before_any_method(folders: list[Path], tmp_path: Path) -> None:
    judge = Closeness(folders)
    before = listing(tmp_path)
    with pytest.raises(RecipeError, match="specialists: x: no such task: the scorer has a, b, c"):
        evaluate(folders, judge, folder=tmp_path / "out", specialists={"x": "a"})
    assert len(judge.calls) == 3
    assert listing(tmp_path) == before


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


# --- scorers ------------------------------------------------------------------------------------------------


class Bound:
    def scorer(self, folder: Path, part: str) -> str:
        return part

    def __call__(self, folder: Path) -> str:
        return "none"


@pytest.mark.parametrize(
    ("scorer", "parts"),
    [
        (lambda folder: "none", False),
        (lambda folder, cache=None: "none", False),
        (lambda folder, part: part, True),
        (lambda folder, half: half, True),
        (lambda folder, part, /: part, True),
        (lambda folder, device="cpu", part="dev": part, True),
        (lambda folder, *, part: part, True),
        (Bound().scorer, True),
        (Bound(), False),
    ],
)
def test_a_function_is_told_the_part_if_it_asks_for_it(scorer: Any, parts: bool, tmp_path: Path) -> None:
    judge = make_judge(scorer)
    assert judge.parts == parts
    assert judge.ask(tmp_path, "test") == ("test" if parts else "none")
    assert judge.text == make_judge(scorer).text


def test_a_function_without_source_is_never_the_same(tmp_path: Path) -> None:
    made = eval("lambda folder: 1.0")
    assert make_judge(made).text != make_judge(made).text


def python(code: str, more: str = "{part}") -> str:
    return f"'{sys.executable}' -c '{code}' {{}} {more}"


def test_a_command_answers_by_task_on_its_last_line(tmp_path: Path) -> None:
    code = 'import json, sys; print("loading"); print(json.dumps({sys.argv[2]: [0, 1.5], "b": 2})); print()'
    judge = make_judge(python(code))
    assert judge.parts
    assert judge.ask(tmp_path, "dev") == {"dev": [0, 1.5], "b": 2}
    plain = make_judge(python("print(0.25)", ""))
    assert not plain.parts
    assert plain.ask(tmp_path, "dev") == 0.25


def test_a_command_is_another_when_its_script_is(tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text("print(1)")
    command = f"python '{script}' {{}}"
    before = make_judge(command).text
    assert make_judge(command).text == before != make_judge(command + " more").text
    script.write_text("print(2)")
    assert make_judge(command).text != before


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; print(1); sys.exit(3)", "exit code 3"),
        ("print([1, 2])", "expected 0 and a number, or a JSON object"),
        ("print(1, 2)", "last line '1 2'"),
        ('print("{1")', "JSON object"),
        ('print("{" * 100000)', "JSON object"),
        ('print("[" * 100000)', "JSON object"),
        ("print(chr(123) + chr(34) + chr(97) + chr(34) + chr(58))", "JSON object"),
        ('print(chr(123) + "\\"a\\": 1, \\"a\\": 2" + chr(125))', "JSON object"),
        ("", "last line ''"),
    ],
)
def test_a_command_without_scores_is_one_error(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(ResourceError, match=words) as caught:
        make_judge(python(code)).ask(tmp_path, "dev")
    (problem,) = caught.value.problems
    assert "\n" not in problem
    assert len(problem) < 1000


# --- the command line ---------------------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


# The score is of what the file of tensors holds, with rows that differ between the parts.
COUNT = (
    'import json, os, sys; size = os.path.getsize(sys.argv[1] + "/adapter_model.safetensors"); '
    'rows = [size % 7 + 1, len(sys.argv[2])]; print(json.dumps({"a": rows, "b": rows[::-1]}))'
)


def test_evaluate_as_a_command(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("evaluate", *folders[:2], "--methods", "average,ties:density=[0.3, 0.5],slerp:rank=sum")
    words += ("--coefficients", "1,2", "--scorer", python(COUNT), "--resamples", 100, "--seed", 5)
    ran = run(*words, "-o", out)
    assert ran.exit_code == 0, ran.output
    assert "average (best on dev)" in ran.stdout
    assert "That is the plain average itself" in ran.stdout
    assert "evaluate: average at 2: dev: a " in ran.stderr
    assert "evaluate:" not in ran.stdout
    record = json.loads((out / "evaluation.json").read_text())
    assert [one["name"] for one in record["entries"]] == [
        "average",
        "ties:density=[0.3, 0.5]",
        "slerp:rank=sum",
    ]
    assert (record["seed"], record["resamples"], record["coefficients"]) == (5, 100, [1, 2])
    ran = run(*words, "-o", out, "--json")
    assert json.loads(ran.stdout) == {"output": str(out), "record": record}
    assert ran.stderr == ""
    assert run(*words, "-o", out, "-q").stdout == f"{out}\n"


def test_specialists_on_the_command_line(folders: list[Path], tmp_path: Path) -> None:
    words = ("evaluate", *folders[:2], "-o", tmp_path / "out", "--methods", "average", "--coefficients", 1)
    words += ("--scorer", python(COUNT), "--json", "-q")
    ran = run(*words, "--specialist", "a=b", "--specialist", "b=")
    assert json.loads(ran.stdout)["record"]["specialists"] == {"a": "b", "b": None}
    assert run(*words, "--specialist", "a").exit_code == 2
    assert run(*words, "--coefficients", "1;2").exit_code == 2


@pytest.mark.parametrize(
    ("scorer", "code", "words"),
    [
        ("evaluate", 3, "no {} in it"),
        (python("print()"), 7, "expected 0 and a number, or a JSON object"),
        (python('print("nan")'), 5, "the score of a (test) in score is nan"),
        (python("import sys; sys.exit(9)"), 7, "exit code 9"),
        ("no-such-program {}", 7, "cannot be run"),
    ],
)
def test_faults_of_a_scorer_on_the_command_line(
    folders: list[Path], tmp_path: Path, scorer: str, code: int, words: str
) -> None:
    before = listing(tmp_path)
    ran = run("evaluate", *folders, "-o", tmp_path / "out", "--scorer", scorer)
    assert (ran.exit_code, ran.stdout) == (code, "")
    assert words in ran.stderr
    assert listing(tmp_path) == before
