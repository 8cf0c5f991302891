"""One merge of a batch in whatever process it falls to: models stay open between merges, faults are told."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from time import perf_counter, sleep
from typing import Any, NoReturn

from riemerge.errors import AdapterError, OutputError, explain, may_pass
from riemerge.formats.files.text import show
from riemerge.merging.shared_inputs import SharedInputs
from riemerge.methods import plugins
from riemerge.recipes.recipe import Recipe
from riemerge.study.batch_plan import name_keys
from riemerge.study.kept_merges import KeptMerge, keep_merge

TRIES = 2
"""How often a merge is tried whose fault may pass: a full disk, memory, a worker that was killed."""

_WATCH_SECONDS = 0.5

_log = logging.getLogger(__name__)

# Merges set the number of threads of torch, which is one for the process.
_ALONE = Lock()
_SHARED = SharedInputs()


def attempt(task: Mapping[str, Any]) -> dict[str, Any]:
    """Make one merge of a batch, or keep what is there; try once more after a fault that may pass.

    Args:
        task: Plain data: the `recipe`, the `folder` of the merge, the `table` of the batch, `device`,
            `threads`, and the modules of `plugins`.

    Returns:
        Plain data: what a `BatchEntry` says of the run, by field. Faults are told, never raised.
    """
    with _ALONE:
        attempts, outcome = 1, _try(task)
        while outcome.pop("may_pass") and attempts < TRIES:
            _log.warning("%s: is tried again: %s", show(task["folder"]), show(outcome["problems"][0]))
            attempts, outcome = attempts + 1, _try(task)
    return {**outcome, "attempts": attempts}


def _try(task: Mapping[str, Any]) -> dict[str, Any]:
    """Make a merge, or say why it failed and whether that may pass."""
    began = perf_counter()
    try:
        record, new = _merge(task)
    except Exception as fault:  # noqa: BLE001 - one merge that fails must not end the others
        _SHARED.clear()
        _, code, problems = explain(fault)
        # Of outputs, only what the file system said may pass: what is in the way stays there.
        passing = may_pass(fault) and not (isinstance(fault, OutputError) and fault.__cause__ is None)
        problems = tuple(map(name_keys, problems))
        outcome = {"status": "failed", "problems": problems, "code": code, "may_pass": passing}
    else:
        outcome = {"status": ("kept", "made")[new], "norm": record.totals.norm, "may_pass": False}
    return {**outcome, "seconds": perf_counter() - began}


def _merge(task: Mapping[str, Any]) -> KeptMerge:
    for module in task["plugins"]:
        if module not in plugins.LOADED:  # as it is where this process was asked for it
            plugins.load_plugin(module)
    recipe = Recipe.model_validate(task["recipe"])
    asked = {"device": task["device"], "threads": task["threads"]}
    try:
        planned = _SHARED.plan(recipe, **asked)
    except AdapterError:
        if not _SHARED.opened:
            raise
        _SHARED.clear()  # a model may have changed since it was opened
        planned = _SHARED.plan(recipe, **asked)
    return keep_merge(planned, Path(task["folder"]), Path(task["table"]), replace=True)


def serve(parent: int) -> None:
    """Answer tasks on stdin, a line of JSON each, by their outcomes on stdout, until stdin ends.

    Law: SIGTERM ends it as an interrupt does, and so does, within half a second, the end of its parent: what
    is staged is cleared away.

    Args:
        parent: The id of the process that asks.
    """
    answers = os.fdopen(os.dup(1), "wb", buffering=0)  # with nothing left to be sent to nobody
    os.dup2(2, 1)  # what a plug-in prints is no answer
    signal.signal(signal.SIGTERM, _end)
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    with suppress(BrokenPipeError):  # there is nobody to be told
        for line in sys.stdin:
            answers.write(f"{json.dumps(attempt(json.loads(line)))}\n".encode())


def _end_with(parent: int) -> None:
    """End this process when its parent has ended."""
    while os.getppid() == parent:
        sleep(_WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _end(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)
