"""Where the merges of a batch are made: in this process, in processes of this machine, on a dask cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Queue
from threading import Lock, Thread
from typing import IO, Any, TypeAlias, final

from riemerge._version import __version__
from riemerge.errors import ResourceError
from riemerge.formats.files.text import list_names
from riemerge.study.batch_worker import TRIES, attempt

Task: TypeAlias = Mapping[str, Any]
"""What `batch_worker.attempt` takes, with the `name` of the merge and its `inputs`, by which tasks share."""

Outcome: TypeAlias = tuple[str, Mapping[str, Any]]
"""The name of a merge and what became of it."""

_END_SECONDS = 10.0
_CLUSTER_SECONDS = 60.0
_WORKER = "import sys; from riemerge.study.batch_worker import serve; serve(int(sys.argv[1]))"


def run_here(tasks: Sequence[Task]) -> Generator[Outcome]:
    """Make merges one after the other in this process, those of the same models in a row."""
    shelf = _Shelf(tasks)
    inputs: str | None = None
    while (task := shelf.take(inputs)) is not None:
        inputs = task["inputs"]
        yield task["name"], attempt(task)


def run_in_processes(tasks: Sequence[Task], count: int) -> Generator[Outcome]:
    """Make merges in several processes of this machine.

    Law: a process that dies is started again, and its merge is tried once more. When the iterator is closed,
    all processes end, and what they staged is cleared away.

    Args:
        tasks: The merges.
        count: How many processes work at once.
    """
    shelf, results = _Shelf(tasks), Queue[Outcome | BaseException | None]()
    crew = [_Process() for _ in range(min(count, len(tasks)))]

    def work(process: _Process) -> None:
        inputs: str | None = None
        try:
            while (task := shelf.take(inputs)) is not None:
                inputs = task["inputs"]
                results.put((task["name"], process.attempt(task)))
        except BaseException as fault:  # noqa: BLE001 - raised where the results are awaited
            results.put(fault)
        results.put(None)

    threads = [Thread(target=work, args=(process,), daemon=True) for process in crew]
    try:
        for thread in threads:
            thread.start()
        busy = len(threads)
        while busy:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                busy -= 1
            else:
                yield result
    finally:
        shelf.close()
        for process in crew:
            process.end()
        for thread, process in zip(threads, crew, strict=True):
            process.wait()
            thread.join()
            process.close()


@final
class _Shelf:
    """Tasks that wait; those of the same models go to whoever had such a task before."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._groups: dict[str, deque[Task]] = {}
        for task in tasks:
            self._groups.setdefault(task["inputs"], deque()).append(task)
        self._new, self._lock = deque(self._groups), Lock()

    def take(self, inputs: str | None) -> Task | None:
        """Return the next task for a worker that has read some models; None where none is left.

        Law: first one of these models, then one of models that no worker has, then any.
        """
        with self._lock:
            if inputs not in self._groups:
                if not self._groups:
                    return None
                inputs = self._new.popleft() if self._new else next(iter(self._groups))
            group = self._groups[inputs]
            task = group.popleft()
            if not group:
                del self._groups[inputs]
            return task

    def close(self) -> None:
        """Give no more tasks."""
        with self._lock:
            self._groups.clear()
            self._new.clear()


@final
class _Process:
    """A process that makes merges, started with the first of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._ended, self._lock = False, Lock()

    def attempt(self, task: Task) -> Mapping[str, Any]:
        """Return what became of a merge; try it again where the process dies."""
        for deaths in range(TRIES):
            if answer := self._ask(json.dumps(task)):
                outcome: dict[str, Any] = json.loads(answer)
                return {**outcome, "attempts": outcome["attempts"] + deaths}
        return _give_up("its process ended without an answer", TRIES)

    def _ask(self, task: str) -> str:
        """Return the answer to a task; nothing where the process ended before it."""
        process = self._start()
        answer = ""
        if process is not None:
            with suppress(OSError):
                _stream(process.stdin).write(f"{task}\n")
                _stream(process.stdin).flush()
                answer = _stream(process.stdout).readline()
            if not answer:
                self.close()
        return answer

    def _start(self) -> subprocess.Popen[str] | None:
        """Return the process, a new one where there is none; None after `end`."""
        with self._lock:
            if self._ended:
                return None
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _WORKER, str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    encoding="utf-8",
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    start_new_session=True,  # an interrupt is ours to pass on
                )
            return self._process

    def end(self) -> None:
        """Ask the process to end, which clears away what it staged."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.terminate()

    def wait(self) -> None:
        """Wait until the process has ended, and kill it if that takes long."""
        if self._process is not None:
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def close(self) -> None:
        """Close the streams of the process, and wait until it has ended."""
        if self._process is not None:
            with suppress(OSError), self._process:  # what was not sent cannot be
                pass


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _give_up(how: str, times: int) -> Mapping[str, Any]:
    """Return the outcome of a merge that killed whoever made it."""
    text = f"{how}, {times} times: killed, perhaps for want of memory: give it more, or fewer workers"
    return {"status": "failed", "problems": (text,), "code": ResourceError.exit_code, "attempts": times}


# --- dask ---------------------------------------------------------------------------------------------------


def run_on_cluster(tasks: Sequence[Task], address: str, root: Path) -> Generator[Outcome]:
    """Make merges on the workers of a dask cluster, each with its own threads, one merge at a time on each.

    Law: the merge of a worker that dies is made by another, as often as the scheduler allows. When the
    iterator is closed, what has not begun is cancelled; what has begun is finished by its worker.

    Args:
        tasks: The merges.
        address: The address of the scheduler, such as `tcp://host:8786`.
        root: The folder of the batch, which all workers must see.

    Raises:
        ResourceError: dask.distributed is not installed, the scheduler does not answer or has no workers, a
            worker does not see the folder or has another version of riemerge.
    """
    try:
        import distributed
    except ImportError:
        raise ResourceError(
            "dask.distributed is not installed, which --scheduler needs: pip install riemerge[dask]"
        ) from None
    cluster: Any = distributed
    try:
        client = cluster.Client(address, timeout=_CLUSTER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as fault:
        raise ResourceError(
            f"scheduler: {address}: does not answer ({fault}): start one with `dask scheduler`"
        ) from None
    names: dict[Any, str] = {}
    try:
        _check_workers(client, address, root)
        for task in tasks:
            key = f"riemerge-{task['name']}-{uuid.uuid4().hex}"
            names[client.submit(attempt_on_worker, task, key=key, pure=False)] = task["name"]
        for future in cluster.as_completed(list(names), loop=client.loop):
            if future.status == "finished":
                yield names[future], future.result()
            else:
                yield names[future], _give_up(f"the cluster gave it up ({future.exception()})", 1)
    finally:
        client.cancel(list(names), force=True)
        client.close()


def _check_workers(client: Any, address: str, root: Path) -> None:
    """Refuse a cluster whose workers cannot do what this process would."""
    try:
        client.wait_for_workers(1, timeout=_CLUSTER_SECONDS)
    except TimeoutError:
        raise ResourceError(f"scheduler: {address}: has no workers: start some with `dask worker`") from None
    seen = client.run(look_around, str(root), on_error="return")
    if unlike := [name for name, answer in seen.items() if answer != (__version__, True)]:
        raise ResourceError(
            f"scheduler: {address}: workers {list_names(unlike)}: {seen[unlike[0]]}: expected riemerge "
            f"{__version__}, and a file system on which {root} is the folder of this batch"
        )


def look_around(root: str) -> tuple[str, bool]:
    """Return the version of riemerge on a worker, and whether it sees a folder."""
    return __version__, Path(root).is_dir()


def attempt_on_worker(task: Task) -> dict[str, Any]:
    """Make one merge on a worker of a cluster, by default with all of its threads."""
    from distributed import get_worker

    threads = task["threads"] or get_worker().state.nthreads
    return attempt({**task, "threads": threads})
