"""Folders of a study: merges that are there already stay while they are as they were written."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, final

from riemerge.errors import may_pass
from riemerge.formats.files.staging import check_output, exchange, writing
from riemerge.formats.files.text import show
from riemerge.merging.inputs import folders_of
from riemerge.merging.plan import Plan
from riemerge.merging.sinks import write
from riemerge.merging.written_before import is_record_of, read_record, why_not_as_written
from riemerge.records.run_record import RunRecord

_log = logging.getLogger(__name__)


@contextmanager
def study_folder(
    root: Path, parts: Collection[str], describe: Callable[[list[str]], str], start: str
) -> Iterator[None]:
    """Make the folder of a study; on a fault remove it if it is new and empty, else note what it holds.

    Args:
        root: The folder, which may be there already.
        parts: Names of what the study keeps in it.
        describe: Returns in words what some of these parts are.
        start: From where the same command goes on, in a word.
    """
    new = not os.path.lexists(root)
    with writing(root):
        root.mkdir(exist_ok=True)
    try:
        yield
    except BaseException as fault:
        with suppress(OSError):  # it is not empty, which is as it should be
            if new:
                root.rmdir()
        if there := [name for name in parts if (root / name).exists()]:
            note = f"{root}: {describe(there)}"
            if may_pass(fault):
                note += f": the same command goes on from {start}"
            fault.add_note(note)
        raise


@contextmanager
def workplace(root: Path) -> Iterator[Path]:
    """Make an empty hidden folder inside a folder, for as long as it is worked in."""
    with writing(root):
        made = TemporaryDirectory(prefix=".riemerge-", dir=root, ignore_cleanup_errors=True)
    with made as work:
        yield Path(work)


@final
class KeptMerge(NamedTuple):
    """The record of a merge that is there now, and whether it was made just now."""

    record: RunRecord
    new: bool


def why_again(planned: Plan, target: Path, record: RunRecord) -> str | None:
    """Return why a merge that is there is made again by this plan; None where it stays."""
    if not is_record_of(planned, record):
        return "its recipe, or what it reads, is another now"
    return why_not_as_written(target, record)


def keep_merge(planned: Plan, target: Path, table: Path, *, replace: bool = False) -> KeptMerge:
    """Return the record of a merge that is there as this version wrote it; merge it where it is not.

    Law: a merge of this recipe that is not as it was written stays until the new one is whole; the log says
    why it is made again, and the table, which may speak of what was there, goes first. Anything else that is
    there is no merge of this study, and is never touched.

    Args:
        planned: What to merge, and how.
        target: The folder of the merge.
        table: The file of the study that speaks of its merges.
        replace: Whether a merge of another recipe gives way to this one.

    Raises:
        OutputError: Something else is there.
    """
    record = read_record(target)
    same = record is not None and is_record_of(planned, record)
    if record is None or not (same or replace):
        check_output(target, folders_of(planned.recipe))
        return KeptMerge(write(planned, target).record, True)
    if same:
        why = why_not_as_written(target, record)
        if why is None:
            return KeptMerge(record, False)
        _log.warning("%s: is made again: %s", show(str(target)), show(why))
    with workplace(target.parent) as work:
        new = work / "new"
        record = write(planned, new).record
        with writing(target):
            table.unlink(missing_ok=True)
        exchange(new, target, work / "old")
    return KeptMerge(record, True)
