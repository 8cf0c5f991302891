"""The flat geometry: updates as vectors of one space, where a mean is a formula for each module."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.frechet.status import Status
from riemerge.methods.edits import parse_edit
from riemerge.methods.method import Method
from riemerge.methods.parameters import energy_of
from riemerge.methods.reduction import in_order
from riemerge.methods.setting import Answer, FlatEdit, Mean, Setting, Stream, Survey, make_setting
from riemerge.methods.stack import Apart, Evidence, Merged, Options, Stack, constant, resolve
from riemerge.progress import Progress
from riemerge.updates import Dense, DenseSpan, JointSpan, LowRankUpdate, nearest, sum_updates


@final
@dataclass(frozen=True, slots=True)
class FlatRow:
    """A flat row of the table with its functions found: edits of all updates of a module, then a mean."""

    domain: str
    edits: tuple[FlatEdit, ...]
    mean: Mean
    survey: Survey | None
    constrained: bool = False

    @classmethod
    def of(cls, method: Method) -> FlatRow:
        """Find the functions that a row names."""
        survey = None
        if method.survey:
            survey = resolve(method.survey)
        edits = tuple(resolve(str(parse_edit(edit)[0].function)) for edit in method.edits)
        return cls(method.domain, edits, resolve(method.mean), survey, method.constrained)

    def __call__(self, x: Tensor, setting: Setting) -> Answer:
        """Return the mean of a module's updates, given in the row's domain (see `Mean`)."""
        for edit in self.edits:
            x = edit(x, setting)
        answer = self.mean(x, setting)
        if isinstance(answer, Answer):
            return answer
        return Answer(answer, Status.EXACT)

    def run_survey(self, stream: Stream) -> Mapping[str, Any]:
        """Return what the row's survey finds; a fault of it is told with the module that it was at."""
        assert self.survey is not None
        module = ""

        def watch() -> Iterator[tuple[Tensor, Setting]]:
            nonlocal module
            for x, setting in stream():
                module = setting.module
                yield x, setting

        try:
            return self.survey(watch)
        except NumericalError as fault:
            raise NumericalError([f"{module}: {problem}" for problem in fault.problems]) from None


def _weighted_mean(x: Tensor, setting: Setting) -> Tensor:
    """Return the weighted mean of T tensors, for what a row does not see."""
    total = setting.weights.sum()
    if total == 0:
        raise NumericalError("the weights add up to 0, and this tensor gets the weighted mean: choose others")
    mean: Tensor = torch.tensordot((setting.weights / total).to(x), x, dims=1)
    return mean


_PLAIN = FlatRow("entries", (), _weighted_mean, None)


def flat(method: Method, stack: Stack, options: Options) -> Iterator[tuple[str, Merged]]:
    """Return the row's mean of each module, cut to `options.rank` (the inputs' largest if None).

    Law: what is cut is the nearest update of that rank to the row's exact mean in the Frobenius norm, and the
    share of the squared norm that it kept is recorded. A module's updates of weight 0 are left out of it.
    Rows of the domains `gram`, `span` and `half` never form a dense dW of factors; `entries` has all T of one
    module on each thread. Dense updates are merged as they are, whatever the domain, and not cut; those that
    the row does not see (`Stack.plain`) get the weighted mean.

    Raises:
        NumericalError: The row has no answer for some modules: all of them are named, of a survey the first.
    """
    row = FlatRow.of(method)
    names = sorted(stack.modules)
    facts: Mapping[str, Any] = {}
    if row.survey is not None:
        seen = [name for name in names if name not in stack.plain]
        facts = row.run_survey(lambda: (_of(row, stack, options, name, {}).seen for name in seen))
    problems: list[str] = []
    merged = in_order(partial(_attempt, row, stack, options, facts), names, options.threads)
    for done, (module, one) in enumerate(zip(names, merged, strict=True), 1):
        if options.progress is not None:
            options.progress(Progress("merge", done, len(names), method.name))
        if isinstance(one, Merged):
            if not problems:
                yield module, one
        else:
            problems += [f"{module}: {problem}" for problem in one.problems]
    NumericalError.refuse(problems)


def _attempt(
    row: FlatRow, stack: Stack, options: Options, facts: Mapping[str, Any], module: str
) -> Merged | NumericalError:
    """Merge one module, or say why not, so that the faults of all modules can be told at once."""
    if module in stack.plain:
        row = _PLAIN
    try:
        there = _of(row, stack, options, module, facts)
        merged = there.merge(row, options)
    except NumericalError as fault:
        return fault
    if options.later and not there.light:
        now = replace(options, later=False)
        return replace(merged, lift=lambda: _of(row, stack, now, module, facts).merge(row, now).update)
    return merged


def _of(row: FlatRow, stack: Stack, options: Options, module: str, facts: Mapping[str, Any]) -> _Module:
    """Read one module, and keep those of its updates that count."""
    weights = stack.weights(module)
    used = [i for i, weight in enumerate(weights) if weight != 0.0]
    if not used:
        raise NumericalError("every weight is 0 here: at least one adapter must count")
    see = partial(
        make_setting, module, weights, used, stack.values(module), seed=options.seed or 0, facts=facts
    )
    if module not in stack.plain:
        own = tuple(stack.statistics[i](module) for i in used if stack.statistics)
        see = partial(see, statistics=own, base_statistics=stack.base_statistics(module))
    updates = stack.modules[module]
    if isinstance(updates, DenseSpan):
        x = updates.stacked
        return _Whole(
            see(tuple(x.shape[1:]), norms=[float(torch.linalg.vector_norm(x[i])) for i in used]),
            x,
            used,
            row.domain,
        )
    read = _read(updates)
    span = JointSpan(read)
    # Balanced: inner products of factors would lose digits to their gauge.
    small = tuple(span.updates[i].balance() for i in used)
    setting = see(
        read[0].shape,
        norms=[update.norm() for update in small],
        ranks=tuple(read[i].rank for i in used),
        rank=_rank(row, max(read[i].rank for i in used), options),
    )
    again = (lambda: _read(stack.low_rank(module))) if options.later else None
    return _DOMAINS[row.domain](setting, span, read, used, small, again)


def _read(updates: Sequence[LowRankUpdate]) -> list[LowRankUpdate]:
    """Return updates in float64: what decides by rank or position must not see a narrower round-off."""
    return [update.to(torch.float64) for update in updates]


def _rank(row: FlatRow, largest: int, options: Options) -> int | None:
    """Return the rank of the result, of inputs whose largest is given; None for all of it."""
    if isinstance(options.rank, str) or (options.dense and not row.constrained):
        return None
    return options.rank or largest


@dataclass(frozen=True)
class _Module(ABC):
    """One module as the rows of one domain see it, and the way back from their answer.

    Attributes:
        setting: What else the row sees.
        light: Whether a merged update that waits to be lifted keeps nothing of the module's width.
    """

    setting: Setting
    light: ClassVar[bool] = False

    @property
    @abstractmethod
    def x(self) -> Tensor:
        """The updates that count, in the domain of the row."""

    @abstractmethod
    def _give_back(self, value: Tensor, options: Options, evidence: Evidence) -> Merged:
        """Turn an answer into a merged update."""

    @property
    def seen(self) -> tuple[Tensor, Setting]:
        """What a survey sees."""
        return self.x, self.setting

    def merge(self, row: FlatRow, options: Options) -> Merged:
        """Merge the module by one row."""
        started = perf_counter()
        answer = row(self.x, self.setting)
        if not bool(torch.isfinite(answer.value).all()):
            raise NumericalError("the merged update is not finite: the inputs are too large for this method")
        evidence = Evidence(
            answer.status,
            answer.advice,
            answer.cost,
            answer.gradient_norm,
            passes=answer.passes,
            seconds=perf_counter() - started,
        )
        return self._give_back(answer.value, options, evidence)


@final
@dataclass(frozen=True)
class _Whole(_Module):
    """Dense updates, which are their own span: a row of any domain sees them as they are.

    Attributes:
        stacked: (T, ...) all updates.
        used: The places of the updates that count.
        domain: The domain of the row.
    """

    stacked: Tensor
    used: Sequence[int]
    domain: str

    @property
    def x(self) -> Tensor:
        x = self._counting
        if self.domain != "gram":
            return x
        flattened = x.flatten(start_dim=1)
        return flattened @ flattened.mT

    @property
    def _counting(self) -> Tensor:
        """The updates that count, a number as a vector of one."""
        kept = self.stacked
        if len(self.used) < len(kept):
            kept = kept[self.used]
        if kept.ndim == 1:
            kept = kept.unsqueeze(-1)
        return kept

    def _give_back(self, value: Tensor, options: Options, evidence: Evidence) -> Merged:
        if self.domain == "gram":
            value = torch.tensordot(value.to(self.stacked), self._counting, dims=1)
        merged = Dense(value.reshape(self.setting.shape))
        apart = Apart(
            merged.norm(),
            tuple(Dense(update).norm() for update in self.stacked),
            tuple(float(torch.linalg.vector_norm(merged.tensor - update)) for update in self.stacked),
        )
        return Merged(constant(merged), evidence, (), None, apart)


@dataclass(frozen=True)
class _Factored(_Module, ABC):
    """Updates with factors, reduced to their joint span.

    Attributes:
        span: The joint span of all updates of the module.
        read: All updates of the module.
        used: The places of the updates that count.
        small: The updates that count, in the bases of `span`, balanced.
        again: Reads all its updates once more, where the merged one is lifted later; None where it is now.
    """

    span: JointSpan
    read: Sequence[LowRankUpdate]
    used: Sequence[int]
    small: Sequence[LowRankUpdate]
    again: Callable[[], Sequence[LowRankUpdate]] | None

    @abstractmethod
    def _singular_values(self, value: Tensor) -> Tensor:
        """Return the singular values of the update that an answer means."""

    @abstractmethod
    def _cut(self, value: Tensor, rank: int | None, dense: bool, evidence: Evidence) -> Merged:
        """Give an answer its factors, cut to a rank if there is one; or leave it dense where it has none."""

    def _give_back(self, value: Tensor, options: Options, evidence: Evidence) -> Merged:
        rank = self.setting.rank
        if isinstance(options.rank, str) and not options.dense:
            share = energy_of(options.rank)
            if share is not None:
                rank = _least_rank(self._singular_values(value), share)
        return self._cut(value, rank, options.dense, evidence)

    def _in_span(self, total: LowRankUpdate, rank: int | None, evidence: Evidence) -> Merged:
        small, evidence = _truncate(total, rank, evidence)
        return Merged(self._lifting(small), evidence, self.span.updates, small)

    def _lifting(self, small: LowRankUpdate) -> Callable[[], LowRankUpdate]:
        """Return what lifts an update of the span: by its bases now, or by the factors, read again."""
        if self.again is None:
            return constant(self.span.lift(small))
        light, again = self.span.without_bases(), self.again
        return lambda: light.lift(small, again())


@final
class _Gram(_Factored):
    """Inner products in, coefficients out."""

    light = True

    @property
    def x(self) -> Tensor:
        ranks = [update.rank for update in self.small]
        left = torch.cat([update.B * update.scale for update in self.small], dim=1)
        right = torch.cat([update.A.mT for update in self.small], dim=1)
        products = (left.mT @ left) * (right.mT @ right)
        rows = torch.stack([block.sum(dim=0) for block in products.split(ranks)])
        return torch.stack([block.sum(dim=1) for block in rows.split(ranks, dim=1)], dim=1)

    def _singular_values(self, value: Tensor) -> Tensor:
        return sum_updates(self.small, value.tolist()).singular_values()

    def _cut(self, value: Tensor, rank: int | None, dense: bool, evidence: Evidence) -> Merged:
        return self._in_span(sum_updates(self.small, value.tolist()), rank, evidence)


@final
class _Span(_Factored):
    """Cores in bases of the joint span in, a core out."""

    light = True

    @property
    def x(self) -> Tensor:
        return torch.stack([update.dense() for update in self.small])

    def _singular_values(self, value: Tensor) -> Tensor:
        return _singular_values(value)

    def _cut(self, value: Tensor, rank: int | None, dense: bool, evidence: Evidence) -> Merged:
        return self._in_span(as_factors(value), rank, evidence)


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

    def _cut(self, value: Tensor, rank: int | None, dense: bool, evidence: Evidence) -> Merged:
        half, evidence = _truncate(as_factors(value), rank, evidence)
        small, *inputs = JointSpan([half, *self._halves()]).updates
        return Merged(constant(self.span.lift_left(half)), evidence, tuple(inputs), small)


@final
class _Entries(_Factored):
    """Dense updates in, a dense update out."""

    @property
    def x(self) -> Tensor:
        return torch.stack([self.read[i].dense() for i in self.used])

    def _singular_values(self, value: Tensor) -> Tensor:
        return _singular_values(value)

    def _cut(self, value: Tensor, rank: int | None, dense: bool, evidence: Evidence) -> Merged:
        if dense:
            return Merged(constant(Dense(value)), evidence, self.span.updates, None, self._apart(value))
        update, kept = nearest(value, rank or min(value.shape))
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


_DOMAINS: dict[str, type[_Factored]] = {"gram": _Gram, "span": _Span, "half": _Half, "entries": _Entries}


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
