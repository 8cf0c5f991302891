"""Batches: many merges from one plan, each in a folder of its own; one that fails stops no other."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any, final

from riemerge._version import __version__
from riemerge.errors import OutputError, RecipeError, RiemergeError, explain
from riemerge.formats.files.staging import check_output, overlaps, write_atomically
from riemerge.formats.files.text import list_names
from riemerge.merging.inputs import counting, display_names, folders_of
from riemerge.merging.machine import find_device, find_threads
from riemerge.merging.shared_inputs import SharedInputs
from riemerge.merging.sinks import RECORD_FILE
from riemerge.merging.written_before import read_record
from riemerge.methods.plugins import LOADED
from riemerge.progress import Listener, Progress
from riemerge.records.batch_record import BatchEntry, BatchRecord
from riemerge.study.batch_plan import NamedRecipe, name_keys, read_batch_plan
from riemerge.study.batch_schedulers import Outcome, Task, run_here, run_in_processes, run_on_cluster
from riemerge.study.kept_merges import study_folder, why_again

BATCH_FILE = "batch.json"

_SECONDS = 1.0  # the least between two writings of the table


def batch(
    plan: str | Path,
    folder: str | Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: Listener | None = None,
) -> BatchRecord:
    """Make all merges of a plan, each in a folder of its own, beside a `batch.json`.

    Law: each folder is what `merge_into` makes of its recipe, whole or not at all; neither the scheduler nor
    the number of workers changes a bit of it. A merge that fails stops no other. A batch that was broken off
    goes on: a merge of the same recipe and models stays while its files are those that this version of
    riemerge wrote; where its recipe, a model or its files are others now, it is made again, and what is there
    stays until the new one is whole. One that failed is tried again. What lies under the name of a merge and
    is none is never touched: the batch is refused before it begins.

    Args:
        plan: File of the plan (see `riemerge.study.batch_plan.BatchPlan`).
        folder: The folder around all merges, or that of an earlier run.
        workers: How many processes merge at once on this machine; with 1 this process itself. A merge whose
            process is killed is tried once more in another.
        scheduler: Address of a dask.distributed scheduler whose workers merge, in place of processes of this
            machine; they must see the same file system, and have the same version of riemerge.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: Number of threads that work at once on each merge; all CPUs, shared among the workers, if not
            given; those of each worker on a cluster.
        progress: Called after each merge.

    Returns:
        The content of `batch.json`, with what became of each merge.

    Raises:
        RecipeError: The plan makes no sense, or both workers and a scheduler are asked for.
        AdapterError: The atlas that the plan names cannot be read.
        OutputError: The folder cannot be written, overlaps a model, or has something else under the name of
            a merge.
        ResourceError: The cluster is not there.
    """
    if workers < 1 or (scheduler and workers > 1):
        raise RecipeError(
            f"workers: {workers}: expected at least 1, and no number beside a scheduler, which has its own"
        )
    root = Path(folder).absolute()
    merges = read_batch_plan(plan)
    _check_folder(root, merges)
    where = find_device(device)
    if not scheduler:
        threads = threads or max(1, find_threads(None, where) // workers)
    tasks = [_task(merge, root, device, threads) for merge in merges]
    table = _Table(root / BATCH_FILE, Path(plan).name, merges)

    def describe(names: list[str]) -> str:
        return f"holds {len(names)} of {len(merges)} merges ({list_names(names)})"

    with study_folder(root, [name for name, _ in merges], describe, "them"):
        try:
            with closing(_outcomes(tasks, root, workers, scheduler)) as outcomes:
                for done, (name, outcome) in enumerate(outcomes, 1):
                    text = table.put(name, outcome)
                    table.write(_SECONDS)
                    if progress is not None:
                        progress(Progress("batch", done, len(merges), text))
        finally:
            table.write()
    return table.record


def list_batch(plan: str | Path, folder: str | Path | None = None) -> BatchRecord:
    """Return what a batch would do: each merge as `new`, `kept` or `changed`, or why it would fail.

    Law: writes nothing. Without a folder only the plan is read; with one, the models of each merge that is
    there, and its files, are compared with its record.

    Args:
        plan: File of the plan.
        folder: The folder of the batch, if there is one.

    Raises:
        RecipeError: The plan makes no sense.
        AdapterError: The atlas that the plan names cannot be read.
        OutputError: What `batch` would refuse of the folder.
    """
    merges = read_batch_plan(plan)
    table, shared = _Table(Path(BATCH_FILE), Path(plan).name, merges), SharedInputs()
    if folder is not None:
        _check_folder(Path(folder).absolute(), merges)
    for name, recipe in merges:
        outcome: dict[str, Any] = {"status": "new"}
        if folder is not None and (record := read_record(Path(folder, name))) is not None:
            try:
                again = why_again(shared.plan(recipe), Path(folder, name), record)
            except RiemergeError as fault:
                _, code, problems = explain(fault)
                outcome = {"status": "failed", "problems": tuple(map(name_keys, problems)), "code": code}
            else:
                outcome = {"status": "changed" if again else "kept"}
        table.put(name, outcome)
    return table.record


def _check_folder(root: Path, merges: Sequence[NamedRecipe]) -> None:
    """Refuse a folder for a batch that overlaps a model, or has what is no merge under the name of one."""
    models = dict.fromkeys(path for _, recipe in merges for path in folders_of(recipe))
    if not os.path.lexists(root):
        check_output(root, models)
        return
    paths = [root / name for name, _ in merges]
    foreign = [path for path in paths if os.path.lexists(path) and read_record(path) is None]
    OutputError.refuse(
        [
            *overlaps(root, models),
            *(
                f"{path}: exists already and is no merge, which has a {RECORD_FILE}: choose another folder "
                "or remove it"
                for path in foreign
            ),
        ]
    )


def _task(merge: NamedRecipe, root: Path, device: str, threads: int | None) -> Task:
    """Return a merge as plain data."""
    return {
        "name": merge.name,
        "inputs": "\n".join(sorted(folders_of(merge.recipe))),
        "recipe": merge.recipe.model_dump(mode="json"),
        "folder": str(root / merge.name),
        "table": str(root / BATCH_FILE),
        "device": device,
        "threads": threads,
        "plugins": [*LOADED],
    }


def _outcomes(tasks: Sequence[Task], root: Path, workers: int, scheduler: str | None) -> Generator[Outcome]:
    """Make merges where they are to be made."""
    if scheduler is not None:
        return run_on_cluster(tasks, scheduler, root)
    if workers > 1:
        return run_in_processes(tasks, workers)
    return run_here(tasks)


@final
class _Table:
    """The table of a batch, which is written now and then, and in the end, whatever happens."""

    def __init__(self, path: Path, plan: str, merges: Sequence[NamedRecipe]) -> None:
        self._path, self._plan, self._since = path, plan, monotonic()
        self._entries: dict[str, BatchEntry] = {}
        for name, recipe in merges:
            models = display_names([entry.model for entry in recipe.models])
            self._entries[name] = BatchEntry(
                name=name,
                method=recipe.merge_method,
                models=tuple(models[place] for place in counting(recipe)),
                parameters=dict(recipe.parameters),
            )

    @property
    def record(self) -> BatchRecord:
        """The table as it stands."""
        return BatchRecord(plan=self._plan, version=__version__, merges=tuple(self._entries.values()))

    def put(self, name: str, outcome: Mapping[str, Any]) -> str:
        """Note what became of a merge, and return it in words."""
        made = BatchEntry.model_validate({**self._entries[name].model_dump(), **outcome})
        self._entries[name] = made
        return ": ".join([name, made.status, *made.problems[:1]])

    def write(self, seconds: float = 0.0) -> None:
        """Write the table, if the last time is so many seconds ago and there is something to tell."""
        told = any(entry.status != "waiting" for entry in self._entries.values())
        if told and monotonic() - self._since >= seconds:
            self._since = monotonic()
            write_atomically(self._path, self.record.to_json().encode())
