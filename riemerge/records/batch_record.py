"""Batches: what became of each of many merges, as data that can be written and shown."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, final

from pydantic import BaseModel, ConfigDict

MergeStatus: TypeAlias = Literal["made", "kept", "failed", "waiting", "new", "changed"]

_FROZEN = ConfigDict(frozen=True, extra="forbid")


@final
class BatchEntry(BaseModel):
    """One merge of a batch.

    Attributes:
        name: Name of its folder.
        method: Row of the table that merges the models.
        models: Names of the models whose weight is not 0.
        parameters: The parameters that its recipe gives.
        status: `made` by this run, `kept` as an earlier run wrote it, `failed`, or `waiting` where the run
            ended before. What a dry run finds is `kept`, `failed`, `new`, or `changed` where it is there and
            would be made again.
        seconds: Wall seconds that this run spent on it; None where it waits.
        norm: ‖dW‖ of the merge, all modules together; None where there is no merge.
        problems: Why it failed; empty where it did not.
        code: Exit code of the kind of its fault; 0 where it did not fail.
        attempts: How often it was tried in this run.
    """

    model_config = _FROZEN
    name: str
    method: str
    models: tuple[str, ...]
    parameters: dict[str, Any]
    status: MergeStatus = "waiting"
    seconds: float | None = None
    norm: float | None = None
    problems: tuple[str, ...] = ()
    code: int = 0
    attempts: int = 0


@final
class BatchRecord(BaseModel):
    """The content of `batch.json`.

    Attributes:
        plan: Name of the file of the plan.
        version: Version of riemerge.
        merges: The merges, in the order of the plan.
    """

    model_config = _FROZEN
    plan: str
    version: str
    merges: tuple[BatchEntry, ...]

    def count(self, status: MergeStatus) -> int:
        """Return how many merges have a status."""
        return sum(entry.status == status for entry in self.merges)

    @property
    def exit_code(self) -> int:
        """0 where no merge failed, else the exit code of the first that did."""
        return next((entry.code for entry in self.merges if entry.status == "failed"), 0)

    def to_json(self) -> str:
        """Return the record as indented JSON, with a final line break."""
        return self.model_dump_json(indent=2) + "\n"
