"""The quotient geometry: updates U B Vᵀ of one rank, on (Stiefel × SPD × Stiefel)/O(r)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast, final

import torch
from torch import Tensor

from riemerge.errors import AdapterError, NumericalError
from riemerge.frechet.status import Status
from riemerge.manifolds.base import Reduction
from riemerge.manifolds.low_rank.factors import FixedRank
from riemerge.manifolds.low_rank.orthogonal import Orthogonal
from riemerge.methods.geodesic.batches import SEVERAL, ModuleMean, Size, solve
from riemerge.methods.geodesic.truncate import truncate
from riemerge.methods.method import Method
from riemerge.methods.reduction import Reduced, in_order, reduce_module
from riemerge.methods.stack import Edit, Evidence, Merged, Options, Stack, constant
from riemerge.progress import Progress
from riemerge.updates.low_rank import LowRankUpdate

_Value = TypeVar("_Value")


@final
@dataclass(frozen=True, slots=True)
class _Module:
    """What the first stream keeps of a module.

    Attributes:
        name: Name of the module.
        reduced: The module in its joint span, without what is tall of it.
        weights: T weights.
        ranks: T ranks of the updates as edited.
        numerical: T numerical ranks.
        kept: Least share of a squared norm that edits and truncation kept; None where nothing was cut.
        problems: Reasons why the module cannot be merged.
        task: Points to solve for; None where there is nothing to solve.
        starts: Number of starts to solve from.
    """

    name: str
    reduced: Reduced
    weights: tuple[float, ...]
    ranks: tuple[int, ...]
    numerical: tuple[int, ...]
    kept: float | None
    problems: tuple[str, ...]
    task: _Task | None
    starts: int

    @property
    def used(self) -> tuple[int, ...]:
        """Places of the updates that count: neither all zero nor of weight 0."""
        counts = zip(self.numerical, self.weights, strict=True)
        return tuple(place for place, (rank, weight) in enumerate(counts) if rank > 0 and weight > 0)

    def only_used(self, values: Sequence[_Value], other: _Value) -> list[_Value]:
        """Return T values, another one in place of those of the updates that do not count."""
        return [value if place in self.used else other for place, value in enumerate(values)]

    @property
    def rank(self) -> int:
        """Rank at which the module is merged."""
        return min((self.numerical[place] for place in self.used), default=0)


@final
@dataclass(frozen=True, slots=True)
class _Task:
    """The points of a module on the manifold on which it is solved.

    Attributes:
        points: Points (T, rows, r); those of left-out updates are copies of another.
        size: Size of that manifold.
        total: Manifold of the span of all factors.
        reduction: Reduction from `total` to the span of the updates that are merged.
    """

    points: Tensor
    size: Size
    total: FixedRank
    reduction: Reduction


def frechet(_: Method, stack: Stack, options: Options) -> Iterator[tuple[str, Merged]]:
    """Return the weighted Fréchet mean of each module: the minimiser of F = 1/2 Σ wᵢ d(x, yᵢ)².

    Law: a function of the dW alone. A module is read, reduced to the span of its factors (exact: it is
    totally geodesic) and dropped; all are solved there, in float64, in batches of one size whatever their
    widths; each is then read again and the mean lifted. An update that is all zero has no place on the
    manifold: it is left out of its module, and the weights of the others count in proportion. Where an update
    has a numerical rank below its rank, all of that module are truncated to the least numerical rank: no
    floor stands in for directions that are not there.

    Raises:
        AdapterError: The updates of a module do not have one rank.
        NumericalError: An edit has no answer, or a distance was undefined.

    Source: arXiv 2604.27155, section 3.
    """
    names = sorted(stack.modules)
    read = partial(reduce_module, stack, [cast("Edit", truncate)], options)
    modules: dict[str, _Module] = {}
    for module in in_order(partial(_prepare, read, stack, options), names, options.threads):
        modules[module.name] = module
        _report(options, "read", len(modules), len(names))
    NumericalError.refuse([problem for module in modules.values() for problem in module.problems])
    if mixed := [problem for module in modules.values() for problem in _refuse_mixed(stack, module)]:
        raise AdapterError(mixed)

    means = _solve_all(options, modules)
    undefined = [name for name, mean in means.items() if mean.evidence.status is Status.UNDEFINED]
    if undefined:
        raise NumericalError([f"{name}: {means[name].evidence.advice}" for name in undefined])
    lifted = in_order(partial(_lift, stack, options, modules, means), names, options.threads)
    yield from zip(names, lifted, strict=True)


# d² errs by the square of what is left of the gauge.
_ALIGNED = 1e-4


def distances(updates: Sequence[LowRankUpdate], others: Sequence[LowRankUpdate]) -> Tensor:
    """Return the quotient distance of each update to its partner: K modules of one shape and one common rank.

    Law: a metric on updates of that rank; computed in the joint span of both, in float64, on one thread (the
    caller sees to that).

    Returns:
        (K,) float64; NaN where no geodesic was found.

    Raises:
        NumericalError: An update has a numerical rank below its rank.
    """
    total = FixedRank(*updates[0].shape, updates[0].rank, k=len(updates), device=updates[0].device)
    reduction = total.reduce(torch.stack([_factor(total, updates), _factor(total, others)]))
    small, action = reduction.manifold, Orthogonal(total.r)
    to, point = reduction.points.double()
    element = action.nearest(small, point, to, tolerance=_ALIGNED)
    return small.dists(to, action.act(small, point, element))


def _prepare(read: Callable[[str], Reduced], stack: Stack, options: Options, name: str) -> _Module:
    """First stream: read a module and keep its points."""
    small = read(name)
    numerical = tuple(
        update.numerical_rank(storage) for update, storage in zip(small.edited, stack.storage, strict=True)
    )
    ranks = tuple(update.rank for update in small.edited)
    weights = stack.weights(name)
    light = small._replace(span=small.span.without_bases())
    starts = _count_starts(small, stack, options)
    module = _Module(name, light, weights, ranks, numerical, None, small.problems, None, starts)
    if small.problems or _refuse_mixed(stack, module) or not module.used:
        return module
    cut = [_cut(small.edited[place], module.rank) for place in module.used]
    kept = [
        min((after.norm() / before.norm()) ** 2, 1.0)
        for before, after in zip((small.inputs[place] for place in module.used), cut, strict=True)
        if after is not before
    ]
    module = replace(module, kept=min(kept, default=None))
    if len(module.used) == 1:
        return module
    return replace(module, task=_make_task(cut, module.used, len(ranks)))


def _count_starts(small: Reduced, stack: Stack, options: Options) -> int:
    """Return how many starts a module is solved from."""
    if options.starts != "auto":
        return int(options.starts or 1)
    if options.doubtful is None or options.doubtful(small.inputs, small.span.shape, stack.storage):
        return SEVERAL
    return 1


def _cut(update: LowRankUpdate, rank: int) -> LowRankUpdate:
    if update.rank == rank:
        return update
    return update.truncate(rank)


def refuse_mixed(module: str, ranks: Sequence[tuple[str, int]]) -> list[str]:
    """Say what is wrong with the ranks of the updates of one module that are not all zero: they differ.

    Args:
        module: Name of the module.
        ranks: Name and rank of each update that counts.
    """
    if len({rank for _, rank in ranks}) < 2:
        return []
    named = ", ".join(f"{name} {rank}" for name, rank in ranks)
    least = min(rank for _, rank in ranks)
    advice = f"geomerge needs one rank: truncate all with --rank {least}, or use method average"
    return [f"{module}: the ranks differ ({named}): {advice}"]


def _refuse_mixed(stack: Stack, module: _Module) -> list[str]:
    """Refuse updates of several ranks, by name."""
    return refuse_mixed(module.name, [(stack.names[place], module.ranks[place]) for place in module.used])


def _factor(total: FixedRank, updates: Sequence[LowRankUpdate]) -> Tensor:
    """Return the points (K, rows, r) of K updates of one shape and rank."""
    return total.factor(
        torch.stack([update.B * update.scale for update in updates]),
        torch.stack([update.A.mT for update in updates]),
    )


def _make_task(updates: Sequence[LowRankUpdate], used: Sequence[int], count: int) -> _Task:
    """Return the points of a module's updates that are not all zero, on the manifold of their span.

    It is that of every other module of as many updates, whatever its width, unless the module is smaller than
    the span: its frames are not padded, since nothing would keep a mean in the module's own rows.
    """
    r = updates[0].rank
    total = FixedRank(*updates[0].shape, r, k=len(updates), device=updates[0].device)
    points = _factor(total, updates).unsqueeze(1)
    total = total.with_modules(1)
    reduction = total.reduce(points)
    own = reduction.manifold
    assert isinstance(own, FixedRank)
    order = dict(zip(used, range(len(used)), strict=True))
    every = reduction.points.squeeze(1)[[order.get(place, 0) for place in range(count)]]
    return _Task(every, Size(own.m, own.n, r), total, reduction)


def _solve_all(options: Options, modules: Mapping[str, _Module]) -> dict[str, ModuleMean]:
    """Solve all modules that have something to solve, those of one size and as many starts together."""
    groups: dict[tuple[Size, int], dict[str, tuple[Tensor, Sequence[float]]]] = defaultdict(dict)
    for module in modules.values():
        if module.task is not None:
            weights = module.only_used(module.weights, 0.0)
            groups[module.task.size, module.starts][module.name] = (module.task.points, weights)
    done = len(modules) - sum(map(len, groups.values()))
    return solve(dict(sorted(groups.items())), options, done=done)


def _lift(
    stack: Stack,
    options: Options,
    modules: Mapping[str, _Module],
    means: Mapping[str, ModuleMean],
    name: str,
) -> Merged:
    """Second stream: read a module again and give the mean its width, now or when it is asked for."""
    module = modules[name]
    given = module.reduced
    if module.task is not None:
        small, evidence = _as_update(module.task, means[name].point), means[name].evidence
    elif module.used:
        (place,) = module.used
        small = given.edited[place].truncate(module.rank)
        apart = (0.0,) * len(module.ranks)
        evidence = Evidence(Status.EXACT, cost=0.0, gradient_norm=0.0, distances=apart)
    else:
        zero = given.inputs[0].truncate(min(module.ranks)).times(0.0)
        small, evidence = zero.absorb_scale(), Evidence(Status.EXACT)
    evidence = replace(
        evidence,
        # A left-out update stood in as a copy of another.
        distances=evidence.distances and tuple(module.only_used(evidence.distances, None)),
        numerical_ranks=module.numerical,
        energy_kept=module.kept,
    )

    def lift() -> LowRankUpdate:
        return given.span.lift(small, stack.low_rank(name))

    return Merged(lift if options.later else constant(lift()), evidence, given.inputs, small)


def _as_update(task: _Task, point: Tensor) -> LowRankUpdate:
    """Return the update of a mean (rows, r), in the bases of its module's span."""
    lifted = task.reduction.lift(point.unsqueeze(0))
    u, core, v = task.total.split(lifted.squeeze(0))
    return LowRankUpdate(u @ core, v.mT.contiguous()).balance()


def _report(options: Options, stage: str, done: int, total: int) -> None:
    if options.progress is not None:
        options.progress(Progress(stage, done, total, ""))
