"""What was written before: whether a folder holds the merge that a plan would make, as it was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from riemerge._version import __version__
from riemerge.formats.files.staging import file_sha256
from riemerge.merging.plan import Plan
from riemerge.merging.sinks import RECORD_FILE
from riemerge.records.run_record import RunRecord


def read_record(folder: Path) -> RunRecord | None:
    """Return the run record in a folder; None where there is none."""
    with suppress(OSError, ValidationError):
        return RunRecord.model_validate_json((folder / RECORD_FILE).read_bytes())
    return None


def is_record_of(plan: Plan, record: RunRecord) -> bool:
    """Return whether a run record is of this plan, and of all that it reads as it is now.

    Args:
        plan: What would be done.
        record: The run record in the folder that is there already.
    """
    inputs = plan.inputs
    sums = {entry.place: dict(entry.model.sha256) for entry in inputs.each}
    beside: dict[str, str] = {}
    if record.outputs and inputs.beside:
        beside = {name: _sha256(content) for name, content in inputs.beside.files.items()}
    return (
        record.recipe == plan.resolved
        and all(row.sha256 == sums.get(i) for i, row in enumerate(record.inputs))
        and record.beside == plan.read_beside
        and all(record.outputs.get(name) == sha256 for name, sha256 in beside.items())
    )


def _sha256(content: Path | bytes) -> str:
    """Return the sha256 of a file, or of its content."""
    if isinstance(content, Path):
        return file_sha256(content)
    return hashlib.sha256(content).hexdigest()


def why_not_as_written(folder: Path, record: RunRecord) -> str | None:
    """Return why what is in a folder is not what this version wrote with its record; None where it is.

    Law: files of other kinds may have come to it; a file of tensors may not, since it could be loaded.
    """
    if (version := record.versions.get("riemerge")) != __version__:
        return f"it was made by riemerge {version}, and this is {__version__}"
    if not record.outputs:
        return f"{RECORD_FILE} has no sha256 of the files"
    return next(find_changes(folder, record), None)


def find_changes(folder: Path, record: RunRecord) -> Iterator[str]:
    """Yield each file that is missing or not as it was written, and each file of tensors that was added."""
    for name, expected in record.outputs.items():
        try:
            if file_sha256(folder / name) != expected:
                yield f"{name} is not the file that was written"
        except FileNotFoundError:
            yield f"{name} is missing"
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror or error}"
    for path in sorted(folder.glob("*.safetensors*")):
        if path.name not in record.outputs:
            yield f"{path.name} was added"
