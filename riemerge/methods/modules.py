"""One module as a row sees it, by the row's domain, and the way back from the row's answer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.linalg import SVD
from riemerge.methods.method import SUMS, Domain, Method
from riemerge.methods.parameters import energy_of
from riemerge.methods.setting import Setting, make_setting
from riemerge.methods.stack import SEVERAL, Apart, Evidence, Merged, Options, Stack, constant
from riemerge.updates import (
    Blocks,
    Cores,
    Dense,
    DenseBlocks,
    DenseRows,
    DenseSpan,
    JointSpan,
    LowRankUpdate,
    blocks_of,
    nearest,
)
from riemerge.updates.reduction import Reduction


def open_module(
    method: Method,
    domain: Domain,
    stack: Stack,
    options: Options,
    name: str,
    *,
    by_rows: bool = False,
    **facts: Any,
) -> Module:
    """Read one module, and keep those of its updates that count.

    Args:
        method: The row.
        domain: What the row sees of it.
        stack: What there is to merge.
        options: What the recipe asks for.
        name: The module.
        by_rows: Whether the row can merge dense updates a run of rows at a time, and those of factors so.
        facts: Other fields of its `Setting`.

    Raises:
        NumericalError: No update counts.
    """
    weights = stack.weights(name)
    used = [i for i, weight in enumerate(weights) if weight != 0.0]
    if not used:
        raise NumericalError("every weight is 0 here: at least one adapter must count")
    own: dict[str, Any] = {}
    if name not in stack.plain:
        own = {
            "statistics": tuple(stack.statistics[i](name) for i in used if stack.statistics),
            "base_statistics": stack.base_statistics(name),
        }

    def see(shape: tuple[int, ...], norms: Sequence[float], **more: Any) -> Setting:
        return make_setting(
            name,
            weights,
            used,
            stack.values(name),
            shape,
            norms=norms,
            seed=options.seed or 0,
            names=tuple(stack.names[i] for i in used),
            storage=tuple(stack.storage[i] for i in used),
            **own,
            **facts,
            **more,
        )

    updates = stack.modules[name]
    if isinstance(updates, DenseRows):
        if by_rows:
            blocks = updates.blocks()
            sizes = _norms(blocks)
            setting = see(updates.shape, [sizes[i] for i in used])
            return _ByRows(setting, domain, blocks, used, sizes)
        updates = updates.whole()
    if isinstance(updates, DenseSpan):
        x = updates.stacked
        norms = [float(torch.linalg.vector_norm(x[i])) for i in used]
        return _Whole(see(tuple(x.shape[1:]), norms), domain, x, used)
    # What decides by rank or position must not see a narrower round-off.
    each = [update.to(torch.float64) for update in stack.low_rank(name)]
    span = JointSpan(each)
    cores = Cores.of([span.updates[i] for i in used])
    setting = see(
        each[0].shape,
        norms=cores.norms.tolist(),
        ranks=tuple(each[i].rank for i in used),
        rank=allowed_rank(method, max(each[i].rank for i in used), options),
        starts=count_starts(options, partial(_overlap, span, stack, options)),
    )
    module = _DOMAINS[domain](setting, domain, span, each, used)
    if by_rows and isinstance(module, _Entries):
        return replace(module, by_rows=True)
    return module


def allowed_rank(method: Method, largest: int, options: Options) -> int | None:
    """Return the rank of the result, of inputs whose largest is given; None for all of it."""
    if isinstance(options.rank, str):
        return None
    if method.truncates_inputs:
        return options.rank
    if options.dense and not method.constrained:
        return None
    return options.rank or largest


def count_starts(options: Options, overlap: Callable[[], Any]) -> int:
    """Return how many starts a module is solved from."""
    if options.starts != "auto":
        return int(options.starts or 1)
    if options.doubtful is None or options.doubtful(overlap()):
        return SEVERAL
    return 1


def _overlap(span: JointSpan, stack: Stack, options: Options) -> Any:
    """Return what is known of the overlap of updates in common bases."""
    assert options.overlaps is not None
    return options.overlaps(Reduction.of(span.updates, span.shape), stack.storage)[0]


@dataclass(frozen=True)
class Module(ABC):
    """One module as the rows of one domain see it, and the way back from their answer. Abstract.

    Attributes:
        setting: What else the row sees.
        domain: The domain of the row.
        light: Whether a merged update that waits to be lifted keeps nothing of the module's width.
    """

    setting: Setting
    domain: Domain
    light: ClassVar[bool] = False

    @property
    @abstractmethod
    def x(self) -> Any:
        """The updates that count, in the domain of the row."""

    @abstractmethod
    def give_back(self, value: Any, options: Options, evidence: Evidence) -> Merged:
        """Turn an answer into a merged update."""

    @property
    @abstractmethod
    def width(self) -> int:
        """How many numbers it keeps while it waits for a mean."""


@final
@dataclass(frozen=True)
class _Whole(Module):
    """Dense updates, which are their own span: a row of any domain sees them as they are.

    Attributes:
        stacked: (T, ...) all updates.
        used: The places of the updates that count.
    """

    stacked: Tensor
    used: Sequence[int]

    @property
    def width(self) -> int:
        return self.stacked.numel()

    @property
    def x(self) -> Any:
        return _see(self._counting, self.domain, len(self.used))

    @property
    def _counting(self) -> Tensor:
        """The updates that count, a number as a vector of one."""
        kept = self.stacked
        if len(self.used) < len(kept):
            kept = kept[self.used]
        if kept.ndim == 1:
            kept = kept.unsqueeze(-1)
        return kept

    def give_back(self, value: Any, options: Options, evidence: Evidence) -> Merged:
        merged = Dense(_dense_of(value, self._counting, self.domain).reshape(self.setting.shape))
        apart = Apart(
            merged.norm(),
            tuple(Dense(update).norm() for update in self.stacked),
            tuple(float(torch.linalg.vector_norm(merged.tensor - update)) for update in self.stacked),
        )
        return Merged(constant(merged), evidence, (), None, apart)


@final
@dataclass(frozen=True)
class _ByRows(Module):
    """Dense updates that are read by rows: rows of the table see blocks of them, or their inner products.

    Attributes:
        blocks: (T, rows, ...) all updates.
        used: The places of the updates that count.
        norms: T norms of all updates.
    """

    blocks: Blocks
    used: Sequence[int]
    norms: tuple[float, ...]
    light: ClassVar[bool] = True

    @property
    def width(self) -> int:
        return 0

    @property
    def x(self) -> Any:
        return _see(self._counting, self.domain, len(self.used))

    @property
    def _counting(self) -> Blocks:
        """The updates that count."""
        if len(self.used) == len(self.norms):
            return self.blocks
        return self.blocks.each(lambda block: block[self.used])

    def give_back(self, value: Any, options: Options, evidence: Evidence) -> Merged:
        content = value
        if self.domain in SUMS:
            content = self._counting.combine(value)
        measured = _Measured(content, self.norms)
        return Merged(
            constant(DenseBlocks(self.setting.shape, measured.stream)), evidence, (), None, measured
        )


@final
class _Measured:
    """An update that is measured in the first pass over it, and the norms and distances of it."""

    def __init__(self, content: Blocks, norms: tuple[float, ...]) -> None:
        self._content, self._norms = content, norms
        self._apart: Apart | None = None

    def stream(self) -> Iterator[Tensor]:
        """Start a pass."""
        norm, distances = 0.0, (0.0,) * len(self._norms)
        for updates, merged in self._content.pairs():
            yield merged
            if self._apart is None:
                norm = math.hypot(norm, _norm(merged))
                distances = tuple(
                    math.hypot(d, _norm(merged - x)) for d, x in zip(distances, updates, strict=True)
                )
        self._apart = self._apart or Apart(norm, self._norms, distances)

    def __call__(self) -> Apart:
        if self._apart is None:
            deque(self.stream(), maxlen=0)
        assert self._apart is not None
        return self._apart


def _norms(blocks: Blocks) -> tuple[float, ...]:
    """Return the norms of T updates."""
    found: tuple[float, ...] = ()
    for block in blocks.stream():
        here = [_norm(update) for update in block]
        found = tuple(map(math.hypot, here, found or [0.0] * len(here)))
    return found


def _norm(update: Tensor) -> float:
    return float(torch.linalg.vector_norm(update))


@dataclass(frozen=True)
class _Factored(Module, ABC):
    """Updates with factors, reduced to their joint span.

    Attributes:
        span: The joint span of all updates of the module.
        read: All updates of the module.
        used: The places of the updates that count.
    """

    span: JointSpan
    read: Sequence[LowRankUpdate]
    used: Sequence[int]

    @abstractmethod
    def _singular_values(self, value: Any) -> Tensor:
        """Return the singular values of the update that an answer means."""

    @abstractmethod
    def _cut(self, value: Any, rank: int | None, options: Options, evidence: Evidence) -> Merged:
        """Give an answer its factors, cut to a rank if there is one; or leave it dense where it has none."""

    def give_back(self, value: Any, options: Options, evidence: Evidence) -> Merged:
        if isinstance(value, Blocks):
            value = value.whole(self.setting.shape)
        rank = self.setting.rank
        if isinstance(options.rank, str) and not options.dense:
            share = energy_of(options.rank)
            if share is not None:
                rank = _least_rank(self._singular_values(value), share)
        return self._cut(value, rank, options, evidence)

    @property
    def width(self) -> int:
        return sum(update.A.numel() + update.B.numel() for update in self.read)


@final
class _Half(_Factored):
    """Updates in a basis of the joint column space in, such an update out."""

    @property
    def x(self) -> Tensor:
        halves = self._halves()
        return torch.stack([halves[i].dense() for i in self.used])

    def _halves(self) -> list[LowRankUpdate]:
        """Return all updates, reduced on the left alone: (p, n)."""
        both = zip(self.span.updates, self.read, strict=True)
        return [LowRankUpdate(small.B, update.A, update.scale) for small, update in both]

    def _singular_values(self, value: Tensor) -> Tensor:
        return _singular_values(value)

    def _cut(self, value: Tensor, rank: int | None, options: Options, evidence: Evidence) -> Merged:
        half, evidence = _truncate(as_factors(value), rank, evidence)
        small, *inputs = JointSpan([half, *self._halves()]).updates
        return Merged(constant(self.span.lift_left(half)), evidence, tuple(inputs), small)


@final
@dataclass(frozen=True)
class _Entries(_Factored):
    """Dense updates in, a dense update out.

    Attributes:
        by_rows: Whether the row sees blocks of them.
    """

    by_rows: bool = False

    @property
    def x(self) -> Tensor | Blocks:
        updates = [self.read[i] for i in self.used]
        return blocks_of(updates) if self.by_rows else torch.stack([update.dense() for update in updates])

    def _singular_values(self, value: Tensor) -> Tensor:
        return _singular_values(value)

    def _cut(self, value: Tensor, rank: int | None, options: Options, evidence: Evidence) -> Merged:
        if options.dense:
            return Merged(constant(Dense(value)), evidence, self.span.updates, None, self._apart(value))
        rows = torch.cat([update.A for update in self.read])
        update, kept = nearest(value, rank or min(value.shape), rows)
        update = update.to(self.read[0].dtype)
        small, *inputs = JointSpan([update, *self.read]).updates
        if rank is not None:
            evidence = replace(evidence, energy_kept=kept)
        return Merged(constant(update), evidence, tuple(inputs), small)

    def _apart(self, value: Tensor) -> Apart:
        """Distances from inner products, so good to half of the digits: enough to be read."""
        norm, norms = Dense(value).norm(), [update.norm() for update in self.span.updates]
        inner = (
            update.scale * float(((value.mT @ update.B.to(value)) * update.A.mT.to(value)).sum())
            for update in self.read
        )
        squares = (norm**2 - 2 * i + own**2 for i, own in zip(inner, norms, strict=True))
        return Apart(norm, tuple(norms), tuple(math.sqrt(max(square, 0.0)) for square in squares))


_DOMAINS: dict[str, type[_Factored]] = {
    "half": _Half,
    "entries": _Entries,
}


@final
@dataclass(frozen=True)
class Edited(Module):
    """A module whose updates were edited entry by entry before a geometry sees them.

    Attributes:
        dense: The module as the edits see it.
        edited: (T, ...) its updates after them, or blocks of them.
    """

    dense: Module
    edited: Tensor | Blocks

    @property
    def width(self) -> int:
        """How many numbers it keeps while it waits for a mean."""
        if isinstance(self.edited, Blocks):
            return 0
        return self.edited.numel() + self.dense.width

    @cached_property
    def _span(self) -> JointSpan:
        """The nearest updates of the ranks that there were, in their joint span."""
        ranks = self.setting.ranks
        assert ranks is not None
        assert isinstance(self.edited, Tensor)
        each = zip(self.edited, ranks, strict=True)
        return JointSpan([nearest(update, rank)[0] for update, rank in each])

    @property
    def x(self) -> Any:
        """The edited updates, in the domain of the row."""
        if self.domain == "factors":
            return [update.balance() for update in self._span.updates]
        return _see(self.edited, self.domain, len(self.setting.weights))

    def give_back(self, value: Any, options: Options, evidence: Evidence) -> Merged:
        """Turn an answer into a merged update."""
        dense = self.dense
        if self.domain == "factors":
            update = self._span.lift(value)
            dense = replace(dense, setting=replace(dense.setting, rank=update.rank))
            value = update.dense()
        elif isinstance(self.edited, Tensor):
            value = _dense_of(value, self.edited, self.domain)
        elif self.domain in SUMS:
            value = self.edited.combine(value)
        return dense.give_back(value, options, evidence)


def _see(x: Tensor | Blocks, domain: Domain, count: int) -> Tensor | Blocks | Cores:
    """Return T dense updates as they are, or what a domain sees of them."""
    if domain == "weights":
        return torch.zeros(count, 0, dtype=torch.float64)
    if isinstance(x, Blocks):
        return x.gram() if domain == "gram" else x
    if domain == "gram":
        flattened = x.flatten(start_dim=1)
        return flattened @ flattened.mT
    return Cores.of_stack(x) if domain == "cores" else x


def _dense_of(value: Any, updates: Tensor, domain: Domain) -> Tensor:
    """Return the dense update that an answer about T dense updates means."""
    dense: Tensor = value
    if domain in SUMS:
        dense = torch.tensordot(value.to(updates), updates, dims=1)
    elif isinstance(value, SVD):
        dense = value.matrix()
    return dense


def _singular_values(value: Tensor) -> Tensor:
    sigma: Tensor = torch.linalg.svdvals(value)
    return sigma


def _least_rank(sigma: Tensor, share: float) -> int:
    """Return the least number, at least 1, of leading singular values that keep a share of the energy."""
    energy = sigma.square().cumsum(dim=0)
    return min(int((energy < share * energy[-1]).sum()) + 1, len(sigma))


def as_factors(matrix: Tensor) -> LowRankUpdate:
    """Return a (p, q) matrix as an update of min(p, q) columns, by no arithmetic."""
    p, q = matrix.shape
    eye = torch.eye(min(p, q), dtype=matrix.dtype, device=matrix.device)
    if p <= q:
        return LowRankUpdate(eye, matrix)
    return LowRankUpdate(matrix, eye)


def _truncate(total: LowRankUpdate, rank: int | None, evidence: Evidence) -> tuple[LowRankUpdate, Evidence]:
    if rank is None or rank >= total.rank:
        return total.balance(), evidence
    return total.truncate(rank), replace(evidence, energy_kept=total.energy_kept(rank))
