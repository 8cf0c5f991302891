"""Run records: what was done, as data that can be written, read again, and shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
        right: RMS cosine of the principal angles between the row spaces.
        left_random: The RMS cosine expected of uniformly random spaces: sqrt(max(rᵢ, rⱼ) / m).
        right_random: The RMS cosine expected of uniformly random row spaces: sqrt(max(rᵢ, rⱼ) / n).
        share: 0 for random, 1 for equal subspaces: (c² - E²) / (1 - E²) on the side that shares less.
        weakest: `share` of the smallest cosine in place of the RMS, on the side where it is larger: at most
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
        weight: The weight asked for; None where it differs between modules.
        share: The weight that was used, mean over modules: divided by the sum where the method does so; 0
            where it was left out unread.
        sha256: The sha256 of each file that enters the updates, by file name; None where it was not read.
        ranks: The ranks of its modules, each once, ascending.
        dtype: The dtype in which it is stored.
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
        module: The name of the module in the base model.
        shape: (m, n), outputs by inputs; of a tensor of a full checkpoint, its own.
        input_ranks: Ranks of the T updates as stored, 0 where an adapter lacks the module; none of full
            checkpoints.
        numerical_ranks: Numerical ranks of the T updates as merged, where the method depends on them: an
            update of 0 is all zero and was left out here, the others were all truncated to the least.
        rank: Rank of the merged update; None where it is dense. It may be written with more columns, of zero.
        status: Name of the outcome; EXACT for a closed form.
        cost: F = 1/2 Σ wᵢ dᵢ² in the geometry of the method; None for a closed form.
        gradient_norm: Norm of the gradient of F, in the metric.
        horizontality: Defect of the logs to the inputs; 0 when horizontal.
        forward_error: Largest relative error of exp(log) at the inputs; 0 when the logs are exact.
        passes: Iterations of the solver.
        distances: T distances to the inputs in the geometry of the method; None to those left out.
        norm: ‖dW‖ of the merged update, as written.
        input_norms: ‖dWᵢ‖ of the T inputs.
        relative_distances: ‖dW - dWᵢ‖ / ‖dWᵢ‖; None for an input that is all zero.
        energy_kept: Least share of a squared norm that truncation kept; None without truncation.
        overlap: Overlap of the inputs' subspaces; None where fewer than two inputs are not all zero.
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
    input_ranks: tuple[int, ...] = ()
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
class MissingRow(BaseModel):
    """One module that some adapters lack.

    Attributes:
        module: The name of the module in the base model.
        inputs: The names of the adapters that lack it.
        counted: What it counts as in them: an update of `zero`, or `skip`, no part in the module.
    """

    model_config = _FROZEN
    module: str
    inputs: tuple[str, ...]
    counted: Literal["zero", "skip"]


@final
class HeadsRow(BaseModel):
    """What became of whole tensors that adapters saved beside their factors.

    Attributes:
        done: `drop`, `average`, or `from` one adapter.
        tensors: The names of the tensors in the base model.
        adapters: The names of the adapters that they were taken from; none where they were left out.
    """

    model_config = _FROZEN
    done: Literal["drop", "average", "from"]
    tensors: tuple[str, ...]
    adapters: tuple[str, ...] = ()

    @property
    def written(self) -> bool:
        """Whether whole tensors are written beside the factors."""
        return self.done != "drop" and bool(self.tensors)


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
        missing: The modules that some adapters lack.
        matched_scale: The number that `scale: matched` came to; None where no module asked for it.
        licence: The licence that the cards of all inputs name; None where one names none or another.
        model_class: `library.Class` of the model that the result is for, or is; empty where the result is a
            checkpoint without settings.
        translations: What was read as other words than those that were said, a sentence for each.
        beside: The sha256 of each file that was read beside the inputs, by file name, under the name that the
            recipe has for its folder: `base_model`, `base_statistics`, `models[0].statistics`.
        outputs: The sha256 of each file that was written beside this record and the card, by file name; none
            of a merge that was not written.
    """

    model_config = _FROZEN
    format: Literal[1] = 1
    out_type: OutType
    recipe: dict[str, Any]
    translations: tuple[str, ...] = ()
    versions: dict[str, str]
    device: str
    base_model: str | None
    licence: str | None = None
    model_class: str = "transformers.AutoModel"
    inputs: tuple[InputRow, ...]
    beside: dict[str, dict[str, str]] = {}
    outputs: dict[str, str] = {}
    modules: tuple[ModuleRow, ...]
    missing: tuple[MissingRow, ...] = ()
    heads: HeadsRow | None = None
    totals: Totals
    matched_scale: float | None = None
    advice: dict[str, str]
    warnings: tuple[str, ...]
    timing: Timing

    @property
    def documents(self) -> tuple[dict[str, Any], ...]:
        """The recipe as a file has it: a document for each earlier result, by its name, and its own last."""
        return tuple({document.get("name"): document for document in _documents(self.recipe)}.values())

    def with_warnings(self, texts: Iterable[str]) -> RunRecord:
        """Return the record with more warnings: of what only the writing of the result showed."""
        return self.model_copy(update={"warnings": (*self.warnings, *texts)})

    def with_outputs(self, sha256: Mapping[str, str]) -> RunRecord:
        """Return the record of the same merge, written to these files."""
        return self.model_copy(update={"outputs": dict(sorted(sha256.items()))})

    def to_json(self) -> str:
        """Return the record as indented JSON, with a final line break."""
        return self.model_dump_json(indent=2) + "\n"


def _documents(recipe: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the documents of a recipe in the order in which they are merged.

    Law: each slice has its models and all its parameters, which are those of the recipe in no other place.
    """
    for name, earlier in recipe.get("earlier", {}).items():
        yield from _documents({"name": name, **earlier})
    left = {"earlier"}
    if "slices" in recipe:
        left |= {"models", "parameters"}
    yield {key: value for key, value in recipe.items() if key not in left}
