"""Differences: what `riemerge apply` added to a base model, or `riemerge extract` found added to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

from pydantic import BaseModel, ConfigDict

_FROZEN = ConfigDict(frozen=True, extra="forbid")


@final
class DifferenceInput(BaseModel):
    """A model that was read.

    Attributes:
        name: The name of its folder; never a path of the machine.
        sha256: The sha256 of each file that entered the result, by file name.
    """

    model_config = _FROZEN
    name: str
    sha256: dict[str, str]


@final
class DifferenceModule(BaseModel):
    """One module whose weight is the base model's and a difference dW.

    Attributes:
        module: The name of the module in the base model.
        shape: The shape of dW, outputs by inputs.
        rank: The rank r of the adapter in this module; None where dW is a whole tensor.
        norm: ‖dW‖.
        error: ‖written − dW‖ / ‖dW‖ to about two digits: what the rank and the rounding left out.
        energy_kept: The share of ‖dW‖² that the rank keeps; None where nothing was cut to a rank.
    """

    model_config = _FROZEN
    module: str
    shape: tuple[int, ...]
    rank: int | None
    norm: float
    error: float
    energy_kept: float | None = None


@final
class DifferenceRecord(BaseModel):
    """The content of `riemerge.json` beside an applied or extracted adapter.

    Law: holds names, never paths of the machine; two equal runs on one machine have equal records.

    Attributes:
        verb: What was done: `apply` or `extract`.
        base: The base model.
        other: The adapter that was applied, or the fine-tuned model that was extracted from.
        settings: What else was asked: the values of each option, by its name.
        model_class: `library.Class` of the full model; empty where it has no settings.
        versions: The versions of what computed, by package.
        modules: The modules whose weights differ from those of the base model.
        warnings: What a person should know before using the result.
        outputs: The sha256 of each file that was written beside this record and the card, by file name.
    """

    model_config = _FROZEN
    format: Literal[1] = 1
    verb: Literal["apply", "extract"]
    base: DifferenceInput
    other: DifferenceInput
    settings: dict[str, list[str]]
    model_class: str
    versions: dict[str, str]
    modules: tuple[DifferenceModule, ...]
    warnings: tuple[str, ...] = ()
    outputs: dict[str, str] = {}

    def with_outputs(self, sha256: Mapping[str, str]) -> DifferenceRecord:
        """Return the record of what was written to these files."""
        return self.model_copy(update={"outputs": dict(sorted(sha256.items()))})

    def to_json(self) -> str:
        """Return the record as indented JSON, with a final line break."""
        return self.model_dump_json(indent=2) + "\n"
