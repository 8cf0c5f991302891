"""A merge that is there is gone on with only if it is the one asked for, as this version wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from riemerge.merging.plan import plan
from riemerge.merging.verbs import merge_into
from riemerge.merging.written_before import is_record_of, read_record, why_not_as_written
from tests.folders import family, write_family
from tests.merging.merges import ONE, RECORD, TENSORS, World, merge, recipe_of


def test_a_record_is_of_its_plan_and_of_no_other(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 3))
    record = merge(tmp_path / "out", "average", folders[:2]).record
    assert read_record(tmp_path / "out") == record
    assert is_record_of(plan(recipe_of("average", folders[:2])), record)
    for other in (
        recipe_of("average", folders[1::-1]),
        recipe_of("average", folders),
        recipe_of("ties", folders[:2]),
        recipe_of("average", folders[:2], scale=0.5),
        recipe_of("average", folders[:2], out_type="delta"),
    ):
        assert not is_record_of(plan(other), record)


def test_inputs_that_changed_are_other_inputs(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 3))
    record = merge(tmp_path / "out", "average", folders[:2]).record
    (folders[1] / TENSORS).write_bytes((folders[2] / TENSORS).read_bytes())
    assert not is_record_of(plan(recipe_of("average", folders[:2])), record)


def test_what_is_read_and_copied_of_a_base_counts(world: World, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in world.base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    recipe = recipe_of("average", world.models[:2], base=base)
    record = merge_into(recipe, tmp_path / "out").record
    assert is_record_of(plan(recipe), record)
    changed = {
        "config.json": b"{}",
        ONE: (world.models[2] / ONE).read_bytes(),
    }
    for name, other in changed.items():
        before = (base / name).read_bytes()
        (base / name).write_bytes(other)
        assert not is_record_of(plan(recipe), record)
        (base / name).write_bytes(before)
    assert is_record_of(plan(recipe), record)


def test_what_is_not_as_it_was_written_is_said(tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = merge(out, "average", write_family(tmp_path, family("close", 2))).record
    assert why_not_as_written(out, record) is None
    (out / "notes.txt").write_text("mine")  # not a file that could be loaded
    assert why_not_as_written(out, record) is None
    older = record.model_copy(update={"versions": {"riemerge": "0.0.1"}})
    assert "it was made by riemerge 0.0.1, and this is" in str(why_not_as_written(out, older))
    unknown = record.model_copy(update={"outputs": {}})
    assert why_not_as_written(out, unknown) == f"{RECORD} has no sha256 of the files"
    (out / "more.safetensors").write_bytes(b"")
    assert why_not_as_written(out, record) == "more.safetensors was added"
    (out / TENSORS).write_bytes(b"other")
    assert why_not_as_written(out, record) == f"{TENSORS} is not the file that was written"
    (out / TENSORS).unlink()
    assert why_not_as_written(out, record) == f"{TENSORS} is missing"
    (out / TENSORS).mkdir()
    assert str(why_not_as_written(out, record)).startswith(f"{TENSORS} cannot be read: ")


@pytest.mark.parametrize("text", [None, "{}", "no record"])
def test_no_record_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / RECORD).write_text(text)
    assert read_record(tmp_path) is None
