"""Verification records: what was found right of a merge that was written before."""

from __future__ import annotations

from typing import final

from pydantic import BaseModel, ConfigDict

from riemerge.records.run_record import OutType


@final
class Verification(BaseModel):
    """What `riemerge verify` found right.

    Attributes:
        out_type: The kind of what was written.
        version: The version of riemerge that wrote it.
        files: Names of the files whose sha256 is that of the record.
        modules: Number of modules that were merged.
        errors: By module that was merged again, how far the result is from what was written, relative to it.
        tolerance: The bound that every error is within.
        lacking: Names of the inputs that were not found, for want of which nothing was merged again.
        earlier: Names of the earlier results that went in, which were not kept: nothing was merged again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    out_type: OutType
    version: str
    files: tuple[str, ...]
    modules: int
    errors: dict[str, float]
    tolerance: float
    lacking: tuple[str, ...]
    earlier: tuple[str, ...] = ()
