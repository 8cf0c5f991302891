"""Plan records: what a merge will do, as data, before a tensor is read."""

from __future__ import annotations

from typing import Any, final

from pydantic import BaseModel, ConfigDict

from riemerge.records.run_record import OutType

_FROZEN = ConfigDict(frozen=True, extra="forbid")


@final
class PlannedInput(BaseModel):
    """One model that counts in a merge.

    Attributes:
        name: The name of its folder, or its id on the hub.
        weight: The weight asked for; None where it differs between modules.
        modules: Number of modules of an adapter, or of tensors of a checkpoint.
        ranks: The ranks of its modules, each once, ascending; none of a checkpoint.
        dtype: The dtype in which it is stored.
    """

    model_config = _FROZEN
    name: str
    weight: float | None
    modules: int
    ranks: tuple[int, ...]
    dtype: str


@final
class PlannedModule(BaseModel):
    """One module that will be merged.

    Attributes:
        module: The name of the module in the base model.
        shape: (m, n), outputs by inputs; of a tensor of a full checkpoint, its own.
        input_ranks: Ranks of the inputs as stored; none of full checkpoints.
        rank: The rank that will be written, columns of zero included, or a bound of it where
            `PlanRecord.exact` is false; None for a result without rank.
    """

    model_config = _FROZEN
    module: str
    shape: tuple[int, ...]
    input_ranks: tuple[int, ...]
    rank: int | None


@final
class PlanRecord(BaseModel):
    """What a merge will do: the answer of `riemerge merge --dry-run`.

    Attributes:
        out_type: The kind of what is written.
        out_dtype: The dtype that is written; None where each tensor keeps that of the inputs.
        recipe: The completed recipe, as the record of the merge will have it.
        base_model: The base model that the result will name.
        inputs: The models that count, in the order asked for.
        modules: All that is merged.
        copied: Number of tensors of integers that are copied from a checkpoint.
        exact: Whether ranks and bytes are what will be written, rather than bounds: a rank that follows from
            the values is not known yet.
        disk_bytes: Bytes of the tensors that are written.
        memory_bytes: Estimated peak of the memory of the process.
        changes: What is read otherwise than it is written, dropped or renamed.
        warnings: What the merge will warn of, as far as it does not depend on tensors.
    """

    model_config = _FROZEN
    out_type: OutType
    out_dtype: str | None
    recipe: dict[str, Any]
    base_model: str | None
    inputs: tuple[PlannedInput, ...]
    modules: tuple[PlannedModule, ...]
    copied: int
    exact: bool
    disk_bytes: int
    memory_bytes: int
    changes: tuple[str, ...]
    warnings: tuple[str, ...]
