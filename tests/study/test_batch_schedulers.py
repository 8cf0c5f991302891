"""Wherever merges are made, they are the same; a worker that dies is replaced, its merge made by another."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import ResourceError
from riemerge.methods import METHODS, plugins
from riemerge.methods.plugins import load_plugin
from riemerge.study import batch_merges, batch_schedulers
from riemerge.study.batch_merges import batch
from riemerge.study.batch_schedulers import run_here, run_in_processes, run_on_cluster
from tests.folders import content, family, write_family
from tests.study import batch_faults
from tests.study.inputs import SHAPES

# A worker that answers at once, without torch: it dies of tasks called so, always or only once.
STAND_IN = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open(os.environ["STAGE"], "w").write("cleared"), sys.exit(1)))
for line in sys.stdin:
    task = json.loads(line)
    name, mark = task["name"], task["mark"]
    if name == "dies" or (name == "dies once" and not os.path.exists(mark)):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "takes long":
        open(mark, "w").close()
        time.sleep(60)
    print(json.dumps({"status": "made", "attempts": 1, "pid": os.getpid()}), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(batch_schedulers, "_WORKER", STAND_IN)
    monkeypatch.setenv("STAGE", str(tmp_path / "stage"))
    return tmp_path


def tasks_of(folder: Path, **inputs: str) -> list[dict[str, Any]]:
    return [
        {"name": name.replace("_", " "), "inputs": own, "mark": str(folder / name)}
        for name, own in inputs.items()
    ]


def test_merges_of_the_same_models_are_made_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_schedulers, "attempt", lambda task: {"status": "made"})
    tasks = [{"name": str(place), "inputs": inputs} for place, inputs in enumerate("abcabcab")]
    assert [name for name, _ in run_here(tasks)] == ["0", "3", "6", "1", "4", "7", "2", "5"]


def test_a_process_takes_models_that_no_other_has(stand_in: Path) -> None:
    tasks = tasks_of(stand_in, a="x", b="y", c="x", d="y")
    made = dict(run_in_processes(tasks, 2))
    assert made.keys() == {"a", "b", "c", "d"}
    pids = {name: outcome["pid"] for name, outcome in made.items()}
    assert os.getpid() not in pids.values()


def test_a_process_that_dies_is_started_again(stand_in: Path) -> None:
    made = dict(run_in_processes(tasks_of(stand_in, dies_once="x", b="x", dies="x", c="x"), 1))
    assert {name: outcome["status"] for name, outcome in made.items()} == {
        "dies once": "made",
        "b": "made",
        "dies": "failed",
        "c": "made",
    }
    assert made["dies once"]["attempts"] == 2
    assert made["dies"]["attempts"] == 2
    assert made["dies"]["code"] == ResourceError.exit_code
    assert "perhaps for want of memory" in made["dies"]["problems"][0]


def test_an_interrupt_ends_all_processes(stand_in: Path) -> None:
    outcomes = run_in_processes(tasks_of(stand_in, a="x", takes_long="x", b="x"), 1)
    assert next(outcomes)[0] == "a"
    while not (stand_in / "takes_long").exists():
        time.sleep(0.01)
    with pytest.raises(KeyboardInterrupt):
        outcomes.throw(KeyboardInterrupt)
    # What it staged is cleared away, as SIGTERM asks for.
    assert (stand_in / "stage").read_text() == "cleared"


def test_a_fault_of_ours_is_raised_and_awaited_by_none(stand_in: Path) -> None:
    with pytest.raises(TypeError):
        dict(run_in_processes([{"name": "a", "inputs": "x", "mark": object()}], 1))


# --- real merges --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a plan of four merges, made in this process; two go wrong elsewhere the first time."""
    root = tmp_path_factory.mktemp("batch")
    write_family(root, family("close", 2, shapes=SHAPES))
    (root / "plan.yaml").write_text("models: [a, b]\nmethods: [average, kill_once, tsv, fail_once]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS, "_entries", dict(METHODS._entries))
        patch.setattr(METHODS, "_given", {})
        patch.setattr(plugins, "LOADED", {})
        patch.setattr(batch_merges, "LOADED", plugins.LOADED)
        patch.setenv(batch_faults.FOLDER, str(root))
        for fault in ("killed", "failed"):
            (root / fault).touch()
        load_plugin(batch_faults.__name__)
        batch(root / "plan.yaml", root / "here")
        yield root


def go_wrong(merges: Path) -> None:
    for fault in ("killed", "failed"):
        (merges / fault).unlink(missing_ok=True)


def same(merges: Path, made: str) -> bool:
    here, there = content(merges / "here"), content(merges / made)
    return here.keys() == there.keys() and all(here[name] == there[name] for name in here if "/" in name)


def test_a_process_makes_the_same(merges: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_wrong(merges)
    (merges / "killed").touch()
    # One process is enough to see what passes to it; two are at work in the tests above.
    monkeypatch.setattr(
        batch_merges, "run_in_processes", lambda tasks, count: run_in_processes(tasks, count - 1)
    )
    made = batch(merges / "plan.yaml", merges / "processes", workers=2, threads=1)
    assert {entry.name: (entry.status, entry.attempts) for entry in made.merges} == {
        "all--average": ("made", 1),
        "all--kill_once": ("made", 1),
        "all--tsv": ("made", 1),
        "all--fail_once": ("made", 2),
    }
    assert same(merges, "processes")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers on this machine, in processes of their own: one cluster for all tests."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as started:
        yield started


def test_a_cluster_makes_the_same_and_survives_a_kill(merges: Path, cluster: Any) -> None:
    go_wrong(merges)
    made = batch(merges / "plan.yaml", merges / "cluster", scheduler=cluster.scheduler_address)
    assert {entry.name: (entry.status, entry.attempts) for entry in made.merges} == {
        "all--average": ("made", 1),
        "all--kill_once": ("made", 1),
        "all--tsv": ("made", 1),
        "all--fail_once": ("made", 2),
    }
    assert (merges / "killed").exists()
    assert same(merges, "cluster")


def test_workers_that_see_other_files_are_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"2 workers|workers tcp.*expected riemerge"):
        dict(run_on_cluster([], cluster.scheduler_address, tmp_path / "nowhere"))


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(batch_schedulers, "_CLUSTER_SECONDS", 0.1)
    with pytest.raises(ResourceError, match="does not answer"):
        dict(run_on_cluster([], "tcp://127.0.0.1:9", tmp_path))


def test_what_dask_needs_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ResourceError, match=r"pip install riemerge\[dask\]"):
        dict(run_on_cluster([], "tcp://127.0.0.1:9", tmp_path))
