"""What a flat row sees of one module, and what it answers: the contract of every edit and every flat mean."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, final

import torch
from torch import Tensor

from riemerge.frechet.status import Status
from riemerge.linalg import SVD
from riemerge.updates import BlockMap, Cores


@final
@dataclass(frozen=True, slots=True)
class Setting:
    """One module as a flat row sees it, beside the T updates themselves.

    Attributes:
        module: The name of the module.
        weights: (T,) float64 on the CPU, already normalised where the row asks for it.
        values: The row's parameters by name, as resolved for this module; those that may differ between
            models are (T,) float64 tensors on the CPU.
        shape: The module's own shape, (m, n) of an update.
        places: T places of the updates among all models, the same in every module, for what a survey finds
            of each model: where a weight is 0 in some modules only, those have fewer updates.
        ranks: T ranks of the updates; None where they are full tensors.
        seeds: T seeds for the draws of each update: they depend on the user's seed, the module and the place
            of the update in order of norm, so draws are a function of the dW and not of files or gauges.
        statistics: T mappings of this module's statistics by kind (see `riemerge.statistics`), for rows that
            need data.
        base_statistics: Statistics of the base model in this module, by kind; empty where there are none.
        facts: What the row's survey found over all modules.
        names: T names of the updates, for messages.
        storage: T dtypes, below whose round-off a singular value counts as zero.
        norms: T norms ‖dWᵢ‖ of the updates as they were read.
        starts: Number of starts that a mean is sought from.
        rank: What the answer is cut to where it has more; None for no rank. For rows that seek the mean among
            matrices of that rank: an answer that has it is not changed.
    """

    module: str
    weights: Tensor
    values: Mapping[str, Any]
    shape: tuple[int, ...]
    places: tuple[int, ...] = ()
    ranks: tuple[int, ...] | None = None
    seeds: tuple[int, ...] = ()
    statistics: tuple[Mapping[str, Tensor], ...] = ()
    base_statistics: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None
    names: tuple[str, ...] = ()
    storage: tuple[torch.dtype, ...] = ()
    norms: tuple[float, ...] = ()
    starts: int = 1

    def generator(self, place: int) -> torch.Generator:
        """Return a fresh CPU generator for the draws of one update of this module."""
        return torch.Generator().manual_seed(self.seeds[place])


def make_setting(
    module: str,
    weights: Sequence[float],
    used: Sequence[int],
    values: Mapping[str, Any],
    shape: tuple[int, ...],
    *,
    norms: Sequence[float],
    seed: int,
    **more: Any,
) -> Setting:
    """Return what a row sees of one module beside the updates that count there.

    Args:
        module: The name of the module.
        weights: The weights of all models.
        used: The places of those that count.
        values: The parameters there, of all models where each has its own.
        shape: The module's own.
        norms: Norms ‖dWᵢ‖ of the updates that count.
        seed: The user's.
        more: The other fields of `Setting`.
    """
    return Setting(
        module=module,
        weights=torch.tensor([weights[place] for place in used], dtype=torch.float64),
        values=_counting(values, used),
        shape=shape,
        places=tuple(used),
        seeds=_seeds(module, norms, seed),
        norms=tuple(norms),
        **more,
    )


def _seeds(module: str, norms: Sequence[float], seed: int) -> tuple[int, ...]:
    """Return a seed for the draws of each of T updates of a module.

    Law: the k-th smallest in norm has the k-th seed: a function of the updates, of neither files nor gauges.
    """
    order = sorted(range(len(norms)), key=lambda place: norms[place])
    drawn = [
        int.from_bytes(hashlib.sha256(f"{seed}:{k}:{module}".encode()).digest()[:7], "big")
        for k in range(len(norms))
    ]
    return tuple(drawn[order.index(place)] for place in range(len(norms)))


def _counting(values: Mapping[str, Any], used: Sequence[int]) -> dict[str, Any]:
    """Return the parameters of a module as a row sees them: those per model are tensors of what counts."""
    return {
        name: torch.tensor([value[place] for place in used], dtype=torch.float64)
        if isinstance(value, tuple)
        else value
        for name, value in values.items()
    }


class Answer(NamedTuple):
    """The answer of a row that iterates; one in closed form answers with the tensor alone.

    Attributes:
        value: The mean.
        status: How the iteration ended.
        advice: What a person should do about it; empty when nothing.
        passes: Iterations.
        cost: What the row minimises, at the value; None where it says none.
        gradient_norm: Norm of the gradient of `cost`, relative to the data.
    """

    value: Tensor
    status: Status
    advice: str = ""
    passes: int = 0
    cost: float | None = None
    gradient_norm: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the value is what the row promises."""
        return self.status.ok


class Mean(Protocol):
    """A flat mean of T updates of one module. What `x` is, the row's domain says.

    `gram`: (T, T) Frobenius inner products; the answer is (T,) coefficients cᵢ of Σ cᵢ dWᵢ. The result is
    exact in factors and works for tensors of any shape.
    `weights`: (T, 0), nothing of the updates: for combinations whose coefficients the weights alone say. The
    answer is that of `gram`.
    `span`: (T, p, q) updates in orthonormal bases of their joint column and row spaces; the answer is (p, q).
    Law: f(L x Rᵀ) = L f(x) Rᵀ for L, R of orthonormal columns (square or tall).
    `cores`: the same as `riemerge.updates.Cores`, T decompositions side by side and no stack, whose size
    grows with T³; the answer is (p, q), or an `SVD` of it, whose cut to a rank costs nothing.
    `half`: (T, p, n), reduced on the left alone; the answer is (p, n). Law: f(L x) = L f(x).
    `entries`: (T, ...) dense, of any shape; the answer has the shape of one.
    `factors`: T `LowRankUpdate` in bases of the joint span; the answer is one. No formula has it.

    `x` is float64 on any device, and the answer lives there; no numpy. Raises a NumericalError with the bare
    fact (no module's name) when there is no answer.
    """

    def __call__(self, x: Any, at: Setting, /) -> Tensor | SVD | Answer:
        """Return the mean."""
        ...


class Together(Protocol):
    """A flat mean of T updates for K modules of one shape side by side, whose updates have the same ranks.

    Law: that of the row's `Mean` module by module, to round-off. Nothing of the modules is asked on the way
    but whether all of them are well conditioned, or one has no answer: a few synchronisations for all.
    """

    def __call__(self, x: Cores, at: Sequence[Setting], /) -> Tensor | SVD:
        """Return the means: (K, p, q), or an `SVD` of them.

        Raises:
            NumericalError: One of them has no answer; the mean of each module by itself says which.
        """
        ...


class FlatEdit(Protocol):
    """Changes the T updates of one module before the mean, in the row's domain: (T, ...) to (T, ...)."""

    def __call__(self, x: Tensor, at: Setting, /) -> Tensor:
        """Return the changed updates."""
        ...


class Look(Protocol):
    """Looks at all rows of one module, for an edit or a mean that needs more of it than a run of rows.

    Called with a function that starts a pass over blocks (T, rows, ...), runs of the module's rows in order,
    as often as it is called; nothing of them should be kept but numbers.
    """

    def __call__(self, stream: Callable[[], Iterator[Tensor]], at: Setting, /) -> Callable[[], BlockMap]:
        """Return what starts the edit, or the mean, on the blocks of a pass.

        Law: the blocks that it makes, one after the other, are the edit or mean of the whole updates, and how
            rows were cut into blocks changes no bit.
        """
        ...


Stream: TypeAlias = Callable[[], Iterator[tuple[Any, Setting]]]


class Survey(Protocol):
    """Looks at all modules before the first is merged, for rows whose decisions are global.

    Called with a function that starts a stream of (x, setting) over all modules, in the order of their names,
    as often as it is called; nothing of it should be kept but numbers. A row that merges runs of rows apart
    is surveyed in runs of rows.
    """

    def __call__(self, stream: Stream, /) -> Mapping[str, Any]:
        """Return the facts that `Setting.facts` will hold in every module."""
        ...
