"""A batch is merges: each as it would be by itself; what is there stays, and what fails stops no other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import OutputError, RecipeError
from riemerge.formats.adapter import Adapter
from riemerge.formats.peft.adapter_reader import read_peft
from riemerge.merging.shared_inputs import SharedInputs
from riemerge.merging.verbs import merge_into
from riemerge.progress import Progress
from riemerge.records.batch_record import BatchRecord
from riemerge.study.batch_merges import batch, list_batch
from riemerge.study.batch_plan import read_batch_plan
from tests.folders import content, listing
from tests.study.inputs import TENSORS, opposite

PLAN = """
models: [a, b, c]
each: pairs
methods: [average, tsv]
merges: [{name: own, merge_method: ties, models: ["a:0.5", c]}]
"""


def plan_of(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def statuses(made: BatchRecord) -> dict[str, str]:
    return {entry.name: entry.status for entry in made.merges}


def test_every_merge_is_what_it_would_be_by_itself(folders: list[Path], tmp_path: Path) -> None:
    plan, events = plan_of(tmp_path, PLAN), list[Progress]()
    made = batch(plan, tmp_path / "out", progress=events.append)
    assert set(statuses(made).values()) == {"made"}
    assert made.exit_code == 0
    assert [(event.stage, event.done, event.total) for event in events] == [
        ("batch", i, 7) for i in range(1, 8)
    ]
    assert BatchRecord.model_validate_json((tmp_path / "out" / "batch.json").read_text()) == made
    for name, recipe in read_batch_plan(plan):
        written = merge_into(recipe, tmp_path / name)
        assert content(tmp_path / name) == content(tmp_path / "out" / name)
        (entry,) = (entry for entry in made.merges if entry.name == name)
        assert entry.norm == written.record.totals.norm
    own = made.merges[-1]
    assert (own.method, own.models, own.attempts) == ("ties", ("a", "c"), 1)
    assert list_batch(plan).count("new") == list_batch(plan, tmp_path / "out").count("kept") == 7


def test_models_are_opened_once_for_all_merges(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def watch(path: Path) -> Adapter:
        read.append(path.name)
        return read_peft(path)

    monkeypatch.setattr("riemerge.formats.dialects.read_peft", watch)
    monkeypatch.setattr("riemerge.study.batch_worker._SHARED", SharedInputs())
    batch(plan_of(tmp_path, PLAN), tmp_path / "out")
    assert [name for name in read if name in "abc"] == ["a", "b", "c"]


def test_a_batch_that_was_broken_off_goes_on(folders: list[Path], tmp_path: Path) -> None:
    plan, out = plan_of(tmp_path, PLAN), tmp_path / "out"

    def interrupt(event: Progress) -> None:
        if event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        batch(plan, out, progress=interrupt)
    (note,) = caught.value.__notes__
    assert "holds 3 of 7 merges (" in note
    assert note.endswith(": the same command goes on from them")
    half = BatchRecord.model_validate_json((out / "batch.json").read_text())
    assert (half.count("made"), half.count("waiting")) == (3, 4)
    assert not [path for path in listing(out) if path.name.startswith(".")]
    there = [entry.name for entry in half.merges if entry.status == "made"]
    made_at = {name: (out / name / TENSORS).stat().st_mtime_ns for name in there}
    (out / there[0] / TENSORS).write_bytes(b"broken")
    made = statuses(batch(plan, out))
    assert made == {name: "kept" if name in there[1:] else "made" for name in made}
    assert all((out / name / TENSORS).stat().st_mtime_ns == made_at[name] for name in there[1:])


def test_an_interrupt_before_the_first_merge_leaves_nothing(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("riemerge.study.batch_schedulers.attempt", interrupt)
    with pytest.raises(KeyboardInterrupt):
        batch(plan_of(tmp_path, PLAN), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merge_that_fails_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    opposite(tmp_path)
    gone = "{name: gone, merge_method: ties, models: [x, a]}"
    text = f"models: [a, b]\nmethods: [karcher, average]\nmerges: [{gone}]"
    plan, out = plan_of(tmp_path, text), tmp_path / "out"
    made = batch(plan, out)
    assert statuses(made) == {"all--karcher": "failed", "all--average": "made", "gone": "failed"}
    karcher, _, absent = made.merges
    # The kinds of fault: no mean, no such model.
    assert (karcher.code, absent.code) == (5, 4)
    assert made.exit_code == 5
    assert statuses(batch(plan, out)) == {"all--karcher": "failed", "all--average": "kept", "gone": "failed"}


def test_what_changed_is_made_again(folders: list[Path], tmp_path: Path) -> None:
    text = "models: [a, b, c]\neach: pairs\nmethods: [average]\nrecipe: {parameters: {scale: SCALE}}"
    plan, out = plan_of(tmp_path, text.replace("SCALE", "1.0")), tmp_path / "out"
    names = [entry.name for entry in batch(plan, out).merges]
    shutil.copyfile(tmp_path / "b" / TENSORS, tmp_path / "c" / TENSORS)
    (out / names[0] / TENSORS).unlink()
    before = content(out)
    assert [*statuses(list_batch(plan, out)).values()] == ["changed"] * 3
    assert content(out) == before
    assert [*statuses(batch(plan, out)).values()] == ["made"] * 3
    plan_of(tmp_path, text.replace("SCALE", "0.5"))
    assert [*statuses(list_batch(plan, out)).values()] == ["changed"] * 3
    made = batch(plan, out)
    assert [(entry.status, entry.attempts) for entry in made.merges] == [("made", 1)] * 3
    for name, recipe in read_batch_plan(plan):
        merge_into(recipe, tmp_path / name)
        assert content(tmp_path / name) == content(out / name)
    assert [*statuses(list_batch(plan, out)).values()] == ["kept"] * 3
    (tmp_path / "a" / TENSORS).unlink()
    assert [*statuses(list_batch(plan, out)).values()] == ["failed", "failed", "kept"]


def test_what_is_no_merge_is_never_replaced(folders: list[Path], tmp_path: Path) -> None:
    plan, out = plan_of(tmp_path, "models: [a, b]\nmethods: [average, tsv]"), tmp_path / "out"
    names = [name for name, _ in read_batch_plan(plan)]
    (out / names[1]).mkdir(parents=True)
    (out / names[1] / "mine").write_text("of a person")
    for run in (batch, list_batch):
        with pytest.raises(OutputError, match=f"{names[1]}: exists already and is no merge"):
            run(plan, out)
    assert [path.name for path in listing(out)] == [names[1], "mine"]


def test_what_is_no_batch_is_refused(folders: list[Path], tmp_path: Path) -> None:
    plan = plan_of(tmp_path, PLAN)
    with pytest.raises(OutputError, match="inside the input"):
        batch(plan, tmp_path / "a" / "out")
    with pytest.raises(OutputError, match="create it first"):
        batch(plan, tmp_path / "x" / "out")
    for asked in ({"workers": 0}, {"workers": 2, "scheduler": "tcp://nowhere:1"}):
        with pytest.raises(RecipeError, match="workers: "):
            batch(plan, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()
