"""Evaluations: which method merges adapters best, as data that can be written, read again, and shown."""

from __future__ import annotations

from typing import Any, Literal, final

from pydantic import BaseModel, ConfigDict

_FROZEN = ConfigDict(frozen=True, extra="forbid")


@final
class PairedDifference(BaseModel):
    """How much better one entry of an evaluation is than another, in normalised scores on the test rows.

    Attributes:
        value: The difference on the rows as they are.
        error: Standard error of the difference, from rows drawn again, the same for both; None without scores
            of rows, and so are `low`, `high` and `p`.
        low: Lower end of the 95 % interval, by percentiles.
        high: Upper end of the 95 % interval.
        p: Two-sided p-value: how often the sign is not that of the value, doubled; at least
            2 / (resamples + 1).
    """

    model_config = _FROZEN
    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


@final
class Look(BaseModel):
    """One multiple of a merge, scored on the dev rows.

    Attributes:
        coefficient: ‖dW‖ of the multiple, divided by that of the plain average.
        dev: Score by task on the dev rows.
        normalised: Mean over tasks of score / score of the specialist.
    """

    model_config = _FROZEN
    coefficient: float
    dev: dict[str, float]
    normalised: float


@final
class Entry(BaseModel):
    """What an evaluation found of one method, or of one model alone.

    Attributes:
        name: Name of the model, or the method with its parameters as it was asked for.
        method: Row of the table; None for a model alone, and so are `rank`, `coefficient`, `scale` and `dev`.
        parameters: Parameters that are not at their defaults.
        rank: Largest rank of a module.
        looks: Looks on the dev rows, in their order.
        coefficient: Coefficient of the best look: ‖dW‖ as a multiple of the plain average's.
        scale: Factor λ that brings the method's result to this coefficient.
        dev: Normalised score of the best look.
        test: Score by task on the test rows.
        normalised: Mean over tasks of score / score of the specialist.
        error: Standard error of the normalised score; None without scores of rows.
        to_average: Difference to the plain average.
        to_best: Difference to the method that was best on dev.
    """

    model_config = _FROZEN
    name: str
    method: str | None = None
    parameters: dict[str, Any] = {}
    rank: int | None = None
    looks: tuple[Look, ...] = ()
    coefficient: float | None = None
    scale: float | None = None
    dev: float | None = None
    test: dict[str, float]
    normalised: float
    error: float | None
    to_average: PairedDifference
    to_best: PairedDifference


@final
class Evaluation(BaseModel):
    """The method that merges some adapters best, as a scorer says: the content of `evaluation.json`.

    Law: holds names, never paths of the machine; two runs that ask for the same are equal.

    Attributes:
        format: Version of this layout.
        versions: Versions of riemerge, Python, torch, pymanopt and numpy.
        models: The sha256 of each file of a model, by the model's name and the file's.
        tasks: Names of the tasks, as the scorer has them.
        specialists: By task the model that its scores are divided by; None where there is none, and the raw
            score counts.
        parts: Whether the scorer tells dev from test rows.
        rows: Number of test rows by task; None where the task has one score alone.
        norm: ‖dW‖ of the plain average at its full rank: what coefficient 1 is.
        coefficients: Coefficients that were asked for; None where they were searched.
        resamples: Number of times that rows were drawn again.
        seed: Random seed of the resamples.
        alone: Entries of the models, each by itself.
        entries: Entries of the methods, in the order asked for.
        refused: By method why it does not merge these adapters.
        average: Name of the entry that all are compared with.
        best: Name of the entry that is best on dev.
        notes: What a person should know before trusting this.
    """

    model_config = _FROZEN
    format: Literal[1] = 1
    versions: dict[str, str]
    models: dict[str, dict[str, str]]
    tasks: tuple[str, ...]
    specialists: dict[str, str | None]
    parts: bool
    rows: dict[str, int | None]
    norm: float
    coefficients: tuple[float, ...] | None
    resamples: int
    seed: int
    alone: tuple[Entry, ...]
    entries: tuple[Entry, ...]
    refused: dict[str, tuple[str, ...]]
    average: str
    best: str
    notes: tuple[str, ...]

    def entry(self, name: str) -> Entry:
        """Return the entry of a method."""
        return next(entry for entry in self.entries if entry.name == name)

    def to_json(self) -> str:
        """Return the evaluation as indented JSON, with a final line break."""
        return self.model_dump_json(indent=2) + "\n"
