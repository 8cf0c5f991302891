"""What passes between a merge and a method: a stack of modules in, a merged update with its evidence out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast, final

if TYPE_CHECKING:
    import torch

    from riemerge.frechet.status import Status
    from riemerge.methods.cancelling import Remainder
    from riemerge.progress import Listener
    from riemerge.updates import Dense, DenseBlocks, DenseRows, DenseSpan, LowRankUpdate
    from riemerge.updates.reduction import Kind, Reduction


_Value = TypeVar("_Value")


SEVERAL = 10
"""Starts that tell whether a module's inputs determine its mean (`benchmarks.verdict`)."""


def _nothing(_: str) -> Mapping[str, Any]:
    """Return what a module has where nothing was given."""
    return {}


@final
@dataclass(frozen=True, slots=True)
class Stack:
    """The updates that a method merges: T adapters in one order, for each of several modules.

    Attributes:
        names: T names of the adapters, for messages.
        modules: Module name to its T updates, all of the shape of that module, on one device: with factors,
            or dense and side by side. They are read from disk at each access, so that only what a method
            keeps takes memory.
        weights: Module name to T weights, already normalised where the method asks for it; 0 is absence.
        storage: T dtypes, below whose round-off a singular value counts as zero.
        values: Module name to the method's own parameters there; one that may differ between models has T.
        statistics: T times module name to the statistics of that model there, by kind.
        base_statistics: Module name to those of the base model.
        plain: Names of modules that the row does not see, which get the weighted mean; of dense updates only.
        dtype: The dtype of results that are solved for; that of the factors if None.
        stored: T dtypes in which the factors were stored; those of `storage` where there are none.
        kinds: Module name to its kind, which says what is reduced together; None where it has no factors. By
            default it is asked of the updates.
        kept: Reductions by the names of their modules. What a merge reduces is put there, and what is there
            is not read again but to lift a result: for several merges of the same inputs. The default keeps
            nothing.
    """

    names: tuple[str, ...]
    modules: Mapping[str, tuple[LowRankUpdate, ...] | DenseSpan | DenseRows]
    weights: Callable[[str], tuple[float, ...]]
    storage: tuple[torch.dtype, ...]
    values: Callable[[str], Mapping[str, Any]] = _nothing
    statistics: tuple[Callable[[str], Mapping[str, torch.Tensor]], ...] = ()
    base_statistics: Callable[[str], Mapping[str, torch.Tensor]] = _nothing
    plain: frozenset[str] = frozenset()
    dtype: torch.dtype | None = None
    stored: tuple[torch.dtype, ...] = ()
    kinds: Callable[[str], Kind | None] | None = None
    kept: MutableMapping[tuple[str, ...], Reduction] | None = None

    def low_rank(self, module: str) -> tuple[LowRankUpdate, ...]:
        """Return the T updates of a module as factors, for a method that takes no others."""
        updates = self.modules[module]
        assert isinstance(updates, tuple)
        return updates


@final
@dataclass(frozen=True, slots=True)
class Options:
    """What the recipe asks of a method, and what the machine offers; None means that the method decides.

    Attributes:
        rank: Rank R to truncate to (of the inputs or of the result: the method's row says); `sum` keeps all
            of an exact result; `auto` or a share such as `95%` the least that keeps so much of its energy.
        dense: Whether the whole result is wanted, as a dense matrix where it has no factors, and not cut.
        later: Whether merged updates are asked for only after all modules have been merged, as a scale that
            depends on all of them needs it: a result then keeps nothing that is as wide as its module.
        solver: Name of a solver, or a Pymanopt Optimizer.
        form: Form of a quotient mean: the alignments are variables beside it (`joint`), or found anew for
            each cost (`nested`).
        tol: Bound on the gradient norm of each module.
        cost_tol: Bound on the relative decrease of the cost.
        max_passes: Budget of the solver.
        max_seconds: Budget of all solves together, in wall seconds.
        starts: How many starts to solve from; `auto` means several where `doubtful` says so.
        seed: Random seed of the starts and of every draw.
        threads: How many threads may work at once; they change no bit.
        progress: Called now and then with the numbers of modules that are through a stage.
        overlaps: Called as `overlaps(reduction, storage)` with K modules and T dtypes: what is known of the
            overlap of the inputs of each, for the record. None measures nothing.
        doubtful: Called with what `overlaps` said of one module: whether only a measurement can tell that its
            inputs determine their mean.
    """

    rank: int | str | None = None
    dense: bool = False
    later: bool = False
    solver: Any = None
    form: str | None = None
    tol: float | None = None
    cost_tol: float | None = None
    max_passes: int | None = None
    max_seconds: float | None = None
    starts: int | str | None = None
    seed: int | None = None
    threads: int = 1
    progress: Listener | None = None
    overlaps: Callable[[Reduction, Sequence[torch.dtype]], Sequence[Any]] | None = None
    doubtful: Callable[[Any], bool] | None = None


@final
@dataclass(frozen=True, slots=True)
class Evidence:
    """How well one module was merged, in the geometry of its method.

    Attributes:
        status: How the mean was found; `EXACT` for a closed form.
        advice: What a person should do about it; empty when nothing.
        cost: F = 1/2 Σ wᵢ dᵢ² at the result; None where nothing was minimised.
        gradient_norm: Norm of the gradient of F at the result.
        horizontality: How far the logs to the inputs are from horizontal.
        forward_error: Largest relative error of exp(log) at the inputs, from the result.
        distances: T distances dᵢ from the result to the inputs, None to those that were left out; None where
            the geometry has none.
        energy_kept: Share of the squared norm that truncation kept (the least over the inputs); None without
            truncation.
        numerical_ranks: T numerical ranks of the updates as merged, where the geometry depends on them: 0 was
            left out, and all others were truncated to the least. None where it does not.
        starts: How many starts had a finite cost and were solved from; None where one was asked for.
        cost_spread: Largest relative excess of the cost of any start over the best.
        update_spread: Largest ‖dWₐ - dW‖ / ‖dW‖ over the starts, against the best.
        passes: Iterations of the solver.
        seconds: Solve time that falls to this module.
    """

    status: Status
    advice: str = ""
    cost: float | None = None
    gradient_norm: float | None = None
    horizontality: float | None = None
    forward_error: float | None = None
    distances: tuple[float | None, ...] | None = None
    energy_kept: float | None = None
    numerical_ranks: tuple[int, ...] | None = None
    starts: int | None = None
    cost_spread: float | None = None
    update_spread: float | None = None
    passes: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the update is what the method promises."""
        return self.status.ok


class Apart(NamedTuple):
    """How far a merged update that has no factors is from its inputs.

    Attributes:
        norm: ‖dW‖ of the merged update.
        inputs: ‖dWᵢ‖ of the T inputs.
        distances: ‖dW − dWᵢ‖ to each of them.
    """

    norm: float
    inputs: tuple[float, ...]
    distances: tuple[float, ...]

    def times(self, scale: float) -> Apart:
        """Return what is true of λ dW: ‖λ dW − dWᵢ‖² = λ ‖dW − dWᵢ‖² + (λ − 1) (λ ‖dW‖² − ‖dWᵢ‖²)."""
        unit = max(self.norm, *self.inputs)
        if scale == 1.0 or unit == 0.0:
            return self
        # In units of the largest: the square of a float may be none.
        own = scale * (self.norm / unit) ** 2
        squares = [
            scale * (apart / unit) ** 2 + (scale - 1.0) * (own - (size / unit) ** 2)
            for apart, size in zip(self.distances, self.inputs, strict=True)
        ]
        distances = tuple(unit * math.sqrt(max(0.0, square)) for square in squares)
        return Apart(abs(scale) * self.norm, self.inputs, distances)


class Measured(NamedTuple):
    """What is known of a module that was merged with others of its kind.

    Attributes:
        rank: Rank of the merged update.
        input_ranks: Ranks of the T updates.
        left: What is left of the updates in their weighted sum.
        cancelled: Whether that is nothing; of their directions, where the row compares those.
        overlap: What `Options.overlaps` said.
    """

    rank: int
    input_ranks: tuple[int, ...]
    left: Remainder
    cancelled: bool
    overlap: Any = None


@final
@dataclass(frozen=True, slots=True)
class Merged:
    """One merged module, before the scale λ.

    Attributes:
        lift: Returns the merged update, of the shape of its module: factors in the canonical gauge of
            `LowRankUpdate.balance`, or dense where the inputs are, or where `Options.dense` asked for a
            result that has no factors. With `Options.later` it reads the module again.
        evidence: How well it was merged.
        inputs: The T updates before any edit, in orthonormal bases of their joint span or of one that holds
            the merged update too: everything measured is an invariant of such isometries, and costs nothing
            of the module's width there. Empty where the inputs are dense.
        small: The merged update in the same bases; None where it is dense.
        apart: Norms and distances of a dense one, or what returns them: of an update in blocks, after a pass
            over them. None where `small` and `inputs` say them.
        measured: What was measured of modules of one kind together; None of others.
    """

    lift: Callable[[], LowRankUpdate | Dense | DenseBlocks]
    evidence: Evidence
    inputs: tuple[LowRankUpdate, ...]
    small: LowRankUpdate | None
    apart: Apart | Callable[[], Apart] | None = None
    measured: Measured | None = None

    @property
    def update(self) -> LowRankUpdate | Dense | DenseBlocks:
        """The merged update: see `lift`."""
        return self.lift()

    @property
    def norms(self) -> tuple[float, tuple[float, ...]]:
        """‖dW‖ of the merged update, and ‖dWᵢ‖ of the T inputs."""
        if (apart := self._dense_apart()) is not None:
            return apart.norm, apart.inputs
        assert self.small is not None
        return self.small.norm(), tuple(update.norm() for update in self.inputs)

    def measure(self, scale: float) -> Apart:
        """Return the norms and distances of the merged update times λ."""
        if (apart := self._dense_apart()) is not None:
            return apart.times(scale)
        assert self.small is not None
        small = self.small.times(scale)
        norms = tuple(update.norm() for update in self.inputs)
        return Apart(small.norm(), norms, tuple(small.distance(update) for update in self.inputs))

    def _dense_apart(self) -> Apart | None:
        """Return the norms and distances of a dense update."""
        if callable(self.apart):
            return self.apart()
        return self.apart


def constant(value: _Value) -> Callable[[], _Value]:
    """Return a function that returns a value."""
    return lambda: value


def resolve(dotted: str | Callable[..., Any]) -> Callable[..., Any]:
    """Return what `package.module:name` names; a function itself."""
    if callable(dotted):
        return dotted
    module, _, name = dotted.partition(":")
    return cast("Callable[..., Any]", getattr(import_module(module), name))
