"""Inspections: what is in adapters and how far apart they are, as data that can be written and shown."""

from __future__ import annotations

from typing import final

from pydantic import BaseModel, ConfigDict

from riemerge.records.run_record import Determined, Overlap

_FROZEN = ConfigDict(frozen=True, extra="forbid")


@final
class InspectedModule(BaseModel):
    """One module of an adapter as it stands on disk.

    Attributes:
        module: Name of the module in the base model.
        shape: (m, n), outputs by inputs.
        rank: Rank as stored: the columns of B.
        numerical_rank: Number of singular values above the rounding of the stored dtype.
        scale: Factor s of dW = s·B·A.
        norm: ‖dW‖.
        singular_values: Singular values of dW, descending; at most min(m, n) of them.
    """

    model_config = _FROZEN
    module: str
    shape: tuple[int, int]
    rank: int
    numerical_rank: int
    scale: float
    norm: float
    singular_values: tuple[float, ...]


@final
class InspectedAdapter(BaseModel):
    """One adapter as it stands on disk.

    Attributes:
        name: Name of its folder; never a path of the machine.
        sha256: The sha256 of each file that enters the updates, by file name.
        dtype: Dtype of the stored factors.
        base_model: Base model that its config names.
        norm: ‖dW‖, all modules together.
        modules: The modules of the adapter, in the order of their names in the file.
    """

    model_config = _FROZEN
    name: str
    sha256: dict[str, str]
    dtype: str
    base_model: str | None
    norm: float
    modules: tuple[InspectedModule, ...]


@final
class InspectedPair(BaseModel):
    """Two adapters compared on the modules that both have.

    Attributes:
        first: Name of the first adapter.
        second: Name of the second adapter.
        distance: Quotient distance, root of the sum of squares over modules; None where some module has none,
            or it was not asked for.
        distances: Quotient distance by module, for modules that have one.
        overlap: Mean overlap over modules, its cosine that of all modules together; None where no module has
            one.
        determined: Whether the two determine their Fréchet mean, judged by the overlap of each module.
        notes: Why a distance is missing.
    """

    model_config = _FROZEN
    first: str
    second: str
    distance: float | None
    distances: dict[str, float]
    overlap: Overlap | None
    determined: Determined | None
    notes: tuple[str, ...]


@final
class Inspection(BaseModel):
    """What `riemerge inspect` found."""

    model_config = _FROZEN
    adapters: tuple[InspectedAdapter, ...]
    pairs: tuple[InspectedPair, ...]

    def to_json(self) -> str:
        """Return the inspection as indented JSON, with a final line break."""
        return self.model_dump_json(indent=2) + "\n"
