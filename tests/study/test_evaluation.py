"""An evaluation chooses on dev alone, goes on where it was, and writes the best."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from riemerge.errors import (
    AdapterError,
    OutputError,
    RecipeError,
    ResourceError,
    RiemergeError,
)
from riemerge.merging.verbs import merge_adapters
from riemerge.records.evaluation_record import Evaluation, PairedDifference
from riemerge.records.run_record import RunRecord
from riemerge.study.evaluation import DEFAULT_METHODS, evaluate
from riemerge.study.norm_search import HALF_OCTAVE
from riemerge.study.result_table import ResultTable
from tests.folders import content, family, listing, write_family, write_folder
from tests.merging.test_heads import head, make
from tests.study.inputs import (
    METHODS,
    ROWS,
    SHAPES,
    TENSORS,
    BrokenOffError,
    Closeness,
    average,
    flat_updates,
    python,
    quick,
    run,
    said_again,
)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return write_family(tmp_path, family("lora_like", 3, shapes=SHAPES))


def test_the_method_is_chosen_on_dev_alone(folders: list[Path], tmp_path: Path) -> None:
    whole = average(folders)

    def scorer(folder: Path, part: str) -> float:
        found = flat_updates(folder)
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
    front = yaml.safe_load((tmp_path / "out" / "best" / "README.md").read_text().split("---")[1])
    (index,) = front["model-index"]
    told = {one["task"]["name"]: one["metrics"][0]["value"] for one in index["results"]}
    assert told == best.test


def test_a_choice_at_an_end_of_what_was_tried_is_said(folders: list[Path], tmp_path: Path) -> None:
    made = evaluate(
        folders,
        lambda folder, part: float(flat_updates(folder).norm()),
        folder=tmp_path / "out",
        methods=METHODS,
    )
    assert {one.coefficient for one in made.entries} == {4 * HALF_OCTAVE}
    assert any(note.startswith(f"{', '.join(METHODS)}: best at the least or") for note in made.notes)


def test_the_plain_average_is_tried_in_any_case(folders: list[Path], tmp_path: Path) -> None:
    made = evaluate(folders, Closeness(folders), folder=tmp_path / "out", methods=("tsv",), resamples=50)
    assert [one.name for one in made.entries] == ["average", "tsv"]


def test_the_default_methods_merge_adapters_like_these(folders: list[Path], tmp_path: Path) -> None:
    made = evaluate(folders, Closeness(folders), folder=tmp_path / "out", coefficients=[1], resamples=50)
    assert [one.name for one in made.entries] == list(DEFAULT_METHODS)
    assert made.refused == {}


def test_differences_are_paired(folders: list[Path], tmp_path: Path) -> None:
    made = evaluate(folders, Closeness(folders), folder=tmp_path / "out", methods=METHODS)
    nothing = PairedDifference(value=0, error=0, low=0, high=0, p=1)
    assert made.entry(made.average).to_average == made.entry(made.best).to_best == nothing
    for one in [*made.alone, *made.entries]:
        assert one.to_average.value == pytest.approx(one.normalised - made.entry("average").normalised)
    other = made.entry("tsv").to_average
    assert other.error is not None
    assert other.error > 0


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


def test_what_a_killed_run_leaves_before_its_first_result_is_no_obstacle(
    folders: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "out" / ".riemerge-abc" / "adapter").mkdir(parents=True)
    (tmp_path / "out" / ".results.jsonl.partial").write_text("{")
    made = quick(folders, Closeness(folders), folder=tmp_path / "out")
    assert made == quick(folders, Closeness(folders), folder=tmp_path / "whole")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".config").touch()  # of somebody
    with pytest.raises(OutputError, match="is no evaluation"):
        quick(folders, Closeness(folders), folder=tmp_path / "full")


FAULTS = [f"riemerge.study.{name}" for name in ("evaluation.write_atomically", "kept_merges.write")]


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
        found = flat_updates(folder)
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
        assert said_again(caplog) == [f"{path}: line 4: cannot be read as a result: it is passed over"]
    else:
        assert len(said_again(caplog)) == 1 + len(METHODS)
        assert all("another version of riemerge" in text for text in said_again(caplog))


def test_what_an_evaluation_keeps_when_it_fails_is_said(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run("evaluate", *folders, "-o", out, "--scorer", python(FAILS_LATE), "--methods", "average,tsv")
    assert ran.exit_code == 7
    assert f"{out}: keeps what was measured so far" in ran.stderr
    assert list(ResultTable(out / "results.jsonl").rows) == ["models"]


# It scores the models alone, and fails at the first merge, which lies in a hidden folder of ours.
FAILS_LATE = 'import sys; "riemerge-" in sys.argv[1] and sys.exit(9); print(1)'


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


def test_heads_are_merged_as_asked_for(tmp_path: Path) -> None:
    said = {"modules_to_save": ["classifier"], "task_type": None}
    models = [make(tmp_path / name, i, head(i + 1.0), **said) for i, name in enumerate("ab")]
    scores: dict[str, Any] = {"methods": ["average"], "coefficients": [1.0]}
    with pytest.raises(AdapterError, match="--heads average"):
        evaluate(models, lambda folder, part: 1.0, folder=tmp_path / "none", **scores)
    evaluate(models, lambda folder, part: 1.0, folder=tmp_path / "out", heads="average", **scores)
    best = load_file(tmp_path / "out" / "best" / "adapter_model.safetensors")
    assert torch.equal(best["base_model.model.classifier.weight"], head(1.5)["classifier.weight"])
