"""One merge of a batch: a fault that may pass is tried once more, one that may not is told at once."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import NumericalError, OutputError
from riemerge.methods import plugins
from riemerge.recipes.recipe import Recipe, read_recipe
from riemerge.study import batch_worker
from riemerge.study.batch_worker import attempt, serve
from riemerge.study.kept_merges import keep_merge


def task_of(folders: list[Path], tmp_path: Path) -> dict[str, Any]:
    recipe = read_recipe([(str(folder), 1.0) for folder in folders])
    return {
        "recipe": recipe.model_dump(mode="json"),
        "folder": str(tmp_path / "out"),
        "table": str(tmp_path / "batch.json"),
        "device": "cpu",
        "threads": 1,
        "plugins": [],
    }


@pytest.mark.parametrize(
    ("faults", "status", "attempts", "code"),
    [
        ([], "made", 1, 0),
        ([OSError(errno.ENOSPC, "no space left", "x")], "made", 2, 0),
        ([MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], "failed", 2, 7),
        ([KeyError("what"), OSError(errno.ENOSPC, "no space left", "x")], "failed", 2, 6),
        ([KeyError("what"), KeyError("what")], "failed", 2, 1),
        ([NumericalError("no mean: give --geometry")], "failed", 1, 5),
        ([OutputError("exists already")], "failed", 1, 6),
    ],
)
def test_what_becomes_of_a_merge(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faults: list[Exception],
    status: str,
    attempts: int,
    code: int,
) -> None:
    left = list(faults)

    def keep(*args: Any, **asked: Any) -> Any:
        if left:
            raise left.pop(0)
        return keep_merge(*args, **asked)

    monkeypatch.setattr(batch_worker, "keep_merge", keep)
    outcome = attempt(task_of(folders, tmp_path))
    assert (outcome["status"], outcome["attempts"], outcome.get("code", 0)) == (status, attempts, code)
    assert (tmp_path / "out").exists() == (status == "made")
    problems = outcome.get("problems", ())
    assert bool(problems) == (status == "failed")
    assert all("is recipe.geometry" in problem for problem in problems if "--geometry" in problem)


def test_an_interrupt_is_no_outcome(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_worker, "keep_merge", keep)
    with pytest.raises(KeyboardInterrupt):
        attempt(task_of(folders, tmp_path))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("seconds", [0.01, 60.0], ids=["at work", "as it answers"])
def test_a_worker_ends_with_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    begun, killed, ended, said = (tmp_path / name for name in ("begun", "killed", "ended", "said"))
    (tasks, asked), (answered, answers) = os.pipe(), os.pipe()

    def attempt(_: Any) -> dict[str, Any]:
        begun.touch()
        wait_for(killed)
        time.sleep(20 * (seconds < 1))  # the watch has to end this, not the answer
        return {}

    def work() -> None:
        os.close(answered)
        os.dup2(answers, 1)
        sys.stdin = os.fdopen(tasks)
        with said.open("w") as sys.stderr:
            os.dup2(sys.stderr.fileno(), 2)
            try:
                serve(os.getppid())
            except Exception:  # noqa: BLE001 - as the process would tell it
                traceback.print_exc()
            finally:
                ended.touch()

    def ask() -> None:
        forks.Process(target=work).start()
        time.sleep(20)

    monkeypatch.setattr(batch_worker, "attempt", attempt)
    monkeypatch.setattr(batch_worker, "_WATCH_SECONDS", seconds)
    forks = multiprocessing.get_context("fork")
    parent = forks.Process(target=ask)
    parent.start()
    os.close(answered)
    os.write(asked, b"{}\n")
    wait_for(begun)
    parent.kill()
    parent.join()
    killed.touch()
    wait_for(ended)
    for end in (tasks, asked, answers):
        os.close(end)
    assert said.read_text() == ""


def wait_for(path: Path) -> None:
    until = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < until, path.name
        time.sleep(0.005)


def test_a_recipe_passes_as_plain_data(folders: list[Path]) -> None:
    said = {"merge_method": "ties", "density": [0.1, 1 / 3], "rename": {"x": "y"}, "edits": ["trim"]}
    recipe = read_recipe([(str(folder), 0.1) for folder in folders[:2]], said)
    assert Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe


def test_a_plug_in_that_this_process_has_is_not_sought_again(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "LOADED", {"lab_of_another_folder": None})
    asked = {**task_of(folders, tmp_path), "plugins": ["lab_of_another_folder"]}
    assert attempt(asked)["status"] == "made"
    monkeypatch.setattr(plugins, "LOADED", {})
    (told,) = attempt(asked)["problems"]
    assert "lab_of_another_folder: it cannot be imported" in told
