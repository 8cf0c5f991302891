"""What passes between a merge and a method: a stack of modules in, a merged update with its evidence out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

if TYPE_CHECKING:
    from riemerge.updates import LowRankUpdate


@final
@dataclass(frozen=True, slots=True)
class Stack:
    """The updates that a method merges: T adapters in one order, for each of several modules.

    Attributes:
        names: T names of the adapters, for messages.
        weights: T weights, already normalised where the method asks for it.
        modules: Module name to its T updates, all (m, n) of that module, on one device.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    modules: Mapping[str, tuple[LowRankUpdate, ...]]


@final
@dataclass(frozen=True, slots=True)
class Options:
    """What the recipe asks of a method; None means that the method decides.

    Attributes:
        rank: Rank R to truncate to (of the inputs or of the result: the method's row says).
        solver: Name of a solver, or a Pymanopt Optimizer.
        tol: Bound on the gradient norm of each module.
        cost_tol: Bound on the relative decrease of the cost.
        max_passes: Budget of the solver.
        progress: Called as `progress(done, total, text)` with numbers of modules.
    """

    rank: int | None = None
    solver: Any = None
    tol: float | None = None
    cost_tol: float | None = None
    max_passes: int | None = None
    progress: Callable[[int, int, str], None] | None = None


@final
@dataclass(frozen=True, slots=True)
class Evidence:
    """How well one module was merged, in the geometry of its method.

    Attributes:
        status: Name of the outcome; `EXACT` for a closed form.
        advice: What a person should do about it; empty when nothing.
        ok: Whether the update is what the method promises.
        cost: F = 1/2 Σ wᵢ dᵢ² at the result; None where nothing was minimised.
        gradient_norm: Norm of the gradient of F at the result.
        horizontality: How far the logs to the inputs are from horizontal.
        distances: T distances dᵢ from the result to the inputs; None where the geometry has none.
        energy_kept: Share of the squared norm that truncation kept (the least over the inputs); None without
            truncation.
        passes: Iterations of the solver.
        seconds: Solve time that falls to this module.
    """

    status: str
    advice: str = ""
    ok: bool = True
    cost: float | None = None
    gradient_norm: float | None = None
    horizontality: float | None = None
    distances: tuple[float, ...] | None = None
    energy_kept: float | None = None
    passes: int = 0
    seconds: float = 0.0


@final
@dataclass(frozen=True, slots=True)
class Merged:
    """One merged module: its update, before the scale λ, and the evidence for it."""

    update: LowRankUpdate
    evidence: Evidence


class Geometry(Protocol):
    """Says what *near* means and returns the mean: one `Merged` for each module of the stack.

    Law: a function of the updates' dW and the weights; the order of the adapters does not matter.
    """

    def __call__(self, stack: Stack, options: Options, /) -> dict[str, Merged]:
        """Merge every module of the stack."""
        ...


class Edit(Protocol):
    """Changes one update before the mean; raises a NumericalError with the bare fact when it cannot."""

    def __call__(self, update: LowRankUpdate, options: Options, /) -> LowRankUpdate:
        """Return the changed update."""
        ...
