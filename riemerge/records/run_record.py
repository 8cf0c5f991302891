"""Run records: what was done, as data that can be written, read again, and shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, final

from pydantic import BaseModel, ConfigDict

OutType: TypeAlias = Literal["adapter", "delta", "checkpoint"]
Determined: TypeAlias = Literal["yes", "partly", "no", "open"]

# Up to how far apart several starts may end, as a share of the merged update, where inputs determine their
# mean (yes), and where they do so in part.
SPREAD_YES = 0.01
SPREAD_PARTLY = 0.1

_FROZEN = ConfigDict(frozen=True, extra="forbid")


@final
class Overlap(BaseModel):
    """How far the inputs of one module share their subspaces, mean over all pairs of inputs.

    Attributes:
        left: RMS cosine of the principal angles between the column spaces, 1 for equal spaces.
        right: The same between the row spaces.
        left_random: The RMS cosine expected of uniformly random spaces: sqrt(max(rᵢ, rⱼ) / m).
        right_random: The same on the right: sqrt(max(rᵢ, rⱼ) / n).
        share: 0 for random, 1 for equal subspaces: (c² - E²) / (1 - E²) on the side that shares less.
        weakest: The same of the smallest cosine in place of the RMS, on the side where it is larger: at most
            0 where some direction of the inputs is private on both sides.
        cosine: Cosine of the angle between the updates as vectors: 1 for updates that are multiples of each
            other.
    """

    model_config = _FROZEN
    left: float
    right: float
    left_random: float
    right_random: float
    share: float
    weakest: float
    cosine: float


@final
class InputRow(BaseModel):
    """One adapter that went in, in the order asked for.

    Attributes:
        name: The name of its folder; never a path of the machine.
        weight: As asked for; None where it differs between modules.
        share: As used, mean over modules: divided by the sum where the method does so; 0 where it was left
            out unread.
        sha256: Of each file that enters the updates, by its name; None where it was not read.
        ranks: The ranks of its modules, each once, ascending.
        dtype: As stored.
    """

    model_config = _FROZEN
    name: str
    weight: float | None
    share: float
    sha256: dict[str, str] | None = None
    ranks: tuple[int, ...] = ()
    dtype: str | None = None


@final
class ModuleRow(BaseModel):
    """One merged module. Distances and cost are of the mean before the scale λ, norms are of dW.

    Attributes:
        module: Its name in the base model.
        shape: (m, n), outputs by inputs; of a tensor of a full checkpoint, its own.
        input_ranks: Ranks of the T updates as stored; none of full checkpoints.
        numerical_ranks: Their numerical ranks as merged, where the method depends on them: an update of 0 is
            all zero and was left out here, the others were all truncated to the least.
        rank: Rank of the merged update; None where it is dense. It may be written with more columns, of zero.
        status: Name of the outcome; EXACT for a closed form.
        cost: F = 1/2 Σ wᵢ dᵢ² in the geometry of the method; None for a closed form.
        gradient_norm: Of F, in the metric.
        horizontality: Defect of the logs to the inputs; 0 when horizontal.
        forward_error: Largest relative error of exp(log) at the inputs; 0 when the logs are exact.
        passes: Iterations of the solver.
        distances: T distances to the inputs in the geometry of the method; None to those left out.
        norm: ‖dW‖ of the merged update, as written.
        input_norms: ‖dWᵢ‖ of the T inputs.
        relative_distances: ‖dW - dWᵢ‖ / ‖dWᵢ‖; None for an input that is all zero.
        energy_kept: Least share of a squared norm that truncation kept; None without truncation.
        overlap: Of the inputs' subspaces; None where fewer than two inputs are not all zero.
        starts: How many starts had a finite cost and were solved from; None where one was asked for.
        cost_spread: Largest relative excess of the cost of any start over the best, which was taken.
        update_spread: Largest ‖dWₐ - dW‖ / ‖dW‖ over the starts, against the best.
        determined: Whether the inputs determine their Fréchet mean: by the spread where it was measured, by
            the overlap where not, which may leave it "open".
        cancelled: Whether nothing is left of the inputs in their weighted sum but the rounding of what was
            stored (of their directions, where the method compares those).
    """

    model_config = _FROZEN
    module: str
    shape: tuple[int, ...]
    input_ranks: tuple[int, ...]
    numerical_ranks: tuple[int, ...] | None
    rank: int | None
    status: str
    cost: float | None
    gradient_norm: float | None
    horizontality: float | None
    forward_error: float | None
    passes: int
    distances: tuple[float | None, ...] | None
    norm: float
    input_norms: tuple[float, ...]
    relative_distances: tuple[float | None, ...]
    energy_kept: float | None
    overlap: Overlap | None = None
    starts: int | None
    cost_spread: float | None
    update_spread: float | None
    determined: Determined | None = None
    cancelled: bool = False


@final
class Totals(BaseModel):
    """All modules together: sum of costs, roots of sums of squares of norms, distances and the spread of the
    starts, mean overlap; `determined` is the answer of nine tenths of the modules; without one "partly", or
    "open" where the open ones may make it nine tenths.
    """

    model_config = _FROZEN
    modules: int
    parameters: int
    cost: float | None
    gradient_norm: float | None
    distances: tuple[float | None, ...] | None
    norm: float
    input_norms: tuple[float, ...]
    relative_distances: tuple[float | None, ...]
    statuses: dict[str, int]
    overlap: Overlap | None
    update_spread: float | None
    determined: Determined | None
    determined_modules: dict[str, int]


@final
class Timing(BaseModel):
    """Wall seconds: the only part of a record that differs between two equal runs.

    Attributes:
        read: Checking and hashing the inputs.
        solve: Merging all modules: reading, reducing, solving, lifting and measuring.
        modules: Solver's time that fell to each module; modules solved in one batch share its time equally.
            Several batches are solved at once where there are threads.
    """

    model_config = _FROZEN
    read: float
    solve: float
    modules: dict[str, float]


@final
class RunRecord(BaseModel):
    """What a merge was asked, and what it did: the content of `riemerge.json`.

    Law: holds names, never paths of the machine; two runs of one recipe on one machine differ in `timing`
    alone.

    Attributes:
        matched_scale: The number that `scale: matched` came to; None where no module asked for it.
        model_class: `library.Class` of the model that the result is for, or is; empty where the result is a
            checkpoint without settings.
        beside: The sha256 of each file that was read beside the inputs, by file name, under the name that the
            recipe has for its folder: `base_model`, `base_statistics`, `models[0].statistics`.
        outputs: The sha256 of each file that was written beside this record and the card, by file name; none
            of a merge that was not written.
    """

    model_config = _FROZEN
    format: Literal[1] = 1
    out_type: OutType
    recipe: dict[str, Any]
    versions: dict[str, str]
    device: str
    base_model: str | None
    model_class: str = "transformers.AutoModel"
    inputs: tuple[InputRow, ...]
    beside: dict[str, dict[str, str]] = {}
    outputs: dict[str, str] = {}
    modules: tuple[ModuleRow, ...]
    totals: Totals
    matched_scale: float | None = None
    advice: dict[str, str]
    warnings: tuple[str, ...]
    timing: Timing

    def warned(self, texts: Iterable[str]) -> RunRecord:
        """Return the record with more warnings: of what only the writing of the result showed."""
        return self.model_copy(update={"warnings": (*self.warnings, *texts)})

    def with_outputs(self, sha256: Mapping[str, str]) -> RunRecord:
        """Return the record of the same merge, written to these files."""
        return self.model_copy(update={"outputs": dict(sorted(sha256.items()))})

    def to_json(self) -> str:
        """Return the record as indented JSON, with a final line break."""
        return self.model_dump_json(indent=2) + "\n"


@final
class InspectedModule(BaseModel):
    """One module of an adapter as it stands on disk."""

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
    """One adapter as it stands on disk."""

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
        first: Name of one.
        second: Name of the other.
        distance: Quotient distance, root of the sum of squares over modules; None where some module has none.
        distances: Module to quotient distance.
        overlap: Mean over modules; None where no module has one.
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


@final
class PairedDifference(BaseModel):
    """How much better one entry of an evaluation is than another, in normalised scores on the test rows.

    Attributes:
        value: The difference.
        error: Its standard error, from rows drawn again, the same for both; None without scores of rows, and
            so all that follow.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided.
    """

    model_config = _FROZEN
    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


@final
class Look(BaseModel):
    """One multiple of a merge, scored on the dev rows: its coefficient, scores by task, normalised score."""

    model_config = _FROZEN
    coefficient: float
    dev: dict[str, float]
    normalised: float


@final
class Entry(BaseModel):
    """What an evaluation found of one method, or of one model alone.

    Attributes:
        name: As the method was asked for, with its parameters; of a model, its own.
        method: Row of the table; None for a model alone, and so all that are None below.
        parameters: Those not at their defaults.
        rank: Largest rank of a module.
        looks: On the dev rows, in their order.
        coefficient: That of the best look: ‖dW‖ as a multiple of the plain average's.
        scale: The factor λ on the method's result that this is.
        dev: Normalised score of the best look.
        test: Score by task on the test rows.
        normalised: Mean over tasks of score / score of the specialist.
        error: Its standard error; None without scores of rows.
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
    """Which method merges some adapters best, as a scorer says: the content of `evaluation.json`.

    Law: holds names, never paths of the machine; two runs that ask for the same are equal.

    Attributes:
        versions: Of what computed.
        models: By name, the sha256 of each file.
        tasks: As the scorer names them.
        specialists: By task the model that its scores are divided by; None where there is none, and the raw
            score counts.
        parts: Whether the scorer tells dev from test rows.
        rows: Test rows by task; None where it has one score alone.
        norm: ‖dW‖ of the plain average, all of its rank: what coefficient 1 is.
        coefficients: As asked for; None where they were searched.
        resamples: How often rows were drawn again.
        seed: Of these draws.
        alone: The models, each by itself.
        entries: The methods, in the order asked for.
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
        return next(one for one in self.entries if one.name == name)

    def to_json(self) -> str:
        """Return the evaluation as indented JSON, with a final line break."""
        return self.model_dump_json(indent=2) + "\n"
