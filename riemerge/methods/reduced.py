"""Modules of one kind as rows see them: opened, merged, measured and given back side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any, ClassVar, TypeAlias, final

import torch
from torch import Tensor

from riemerge.errors import AdapterError, NumericalError, RiemergeError
from riemerge.linalg import SVD, thin_svd
from riemerge.methods.cancelling import Remainder
from riemerge.methods.method import SUMS, Domain, Method
from riemerge.methods.modules import Module, allowed_rank, count_starts
from riemerge.methods.parameters import energy_of
from riemerge.methods.setting import Setting, make_setting
from riemerge.methods.stack import Apart, Evidence, Measured, Merged, Options, Stack, constant
from riemerge.updates import LowRankUpdate
from riemerge.updates.cores import Cores
from riemerge.updates.reduction import Kind, Lift, Reduction, reduce

Faults: TypeAlias = dict[str, RiemergeError]


def open_side_by_side(
    method: Method,
    domain: Domain,
    stack: Stack,
    options: Options,
    names: Sequence[str],
    facts: Mapping[str, Any],
) -> tuple[list[Group], Faults]:
    """Read modules of one kind and reduce them together, in groups whose updates count at the same places.

    Args:
        method: The row.
        domain: What the row sees of each module: `gram`, `span` or `factors`.
        stack: What there is to merge.
        options: What the recipe asks for.
        names: The modules.
        facts: What the row's survey found.

    Returns:
        The groups, and what is wrong with the modules that are in none.
    """
    faults: Faults = {}
    used: dict[str, tuple[int, ...]] = {}
    for name in names:
        used[name] = tuple(i for i, weight in enumerate(stack.weights(name)) if weight != 0.0)
        if not used[name]:
            faults[name] = NumericalError("every weight is 0 here: at least one adapter must count")
    read: dict[str, Sequence[LowRankUpdate]] = {}
    reductions = {}
    if stack.kept is not None and (kept := stack.kept.get(tuple(names))) is not None:
        reductions = {kept.kind: (list(names), kept)}
    else:
        for name in names:
            try:
                read[name] = stack.low_rank(name)
            except AdapterError as fault:
                faults[name] = fault
        for kind in dict.fromkeys(map(Kind.of, read.values())):
            alike = [name for name in read if Kind.of(read[name]) == kind]
            reductions[kind] = (alike, reduce([read[name] for name in alike]))
            if stack.kept is not None and alike == list(names):
                stack.kept[tuple(names)] = reductions[kind][1]
    groups = []
    for alike, whole in reductions.values():
        overlaps = (options.overlaps or _measure_nothing)(whole, stack.storage)
        order = sorted((used[name], k) for k, name in enumerate(alike) if name not in faults)
        for places, several in groupby(order, key=lambda one: one[0]):
            rows = [k for _, k in several]
            groups.append(
                Group(
                    method,
                    domain,
                    stack,
                    options,
                    tuple(alike[k] for k in rows),
                    places,
                    whole.take(rows, range(len(whole.kind.ranks))),
                    {alike[k]: read[alike[k]] for k in rows if read},
                    facts,
                    [overlaps[k] for k in rows],
                )
            )
    return groups, faults


def _measure_nothing(reduction: Reduction, _: Sequence[torch.dtype]) -> Sequence[None]:
    """Return what is known of overlaps that are not asked for."""
    return [None] * len(reduction.left)


@final
class Group:
    """K modules of one kind whose updates count at the same places.

    Attributes:
        names: The modules.
        used: The places of the updates that count.
        whole: All updates, reduced.
        settings: What else the row sees of each.
        members: The modules one by one, for what works on one.
    """

    def __init__(
        self,
        method: Method,
        domain: Domain,
        stack: Stack,
        options: Options,
        names: Sequence[str],
        used: Sequence[int],
        whole: Reduction,
        read: Mapping[str, Sequence[LowRankUpdate]],
        facts: Mapping[str, Any],
        overlaps: Sequence[Any],
    ) -> None:
        self.names, self.used, self.whole, self.domain = names, used, whole, domain
        self._method, self._stack, self._options = method, stack, options
        self._read: Mapping[str, Sequence[LowRankUpdate]] = {} if options.later else read
        self.counting = whole.take(range(len(names)), used)
        self._overlaps = overlaps
        norms = whole.cores.norms.tolist()
        self.settings = [
            make_setting(
                name,
                stack.weights(name),
                used,
                stack.values(name),
                whole.kind.shape,
                norms=[norms[k][i] for i in used],
                seed=options.seed or 0,
                names=tuple(stack.names[i] for i in used),
                storage=tuple(stack.storage[i] for i in used),
                ranks=self.counting.kind.ranks,
                rank=allowed_rank(method, max(self.counting.kind.ranks), options),
                starts=count_starts(options, partial(self._overlaps.__getitem__, k)),
                statistics=tuple(stack.statistics[i](name) for i in used if stack.statistics),
                base_statistics=stack.base_statistics(name),
                facts=facts,
            )
            for k, name in enumerate(names)
        ]
        self.members = [Member(self.settings[k], domain, self, k) for k, _ in enumerate(names)]
        self._dtype = torch.float64
        if domain == "factors":
            self._dtype = stack.dtype or whole.dtype

    def lighten(self) -> None:
        """Drop what is tall and can be read again, to wait for means."""
        self._read = {}

    @cached_property
    def cores(self) -> Cores:
        """The updates that count, decomposed; those for a solver on the device of the modules."""
        cores = self.counting.cores
        if self.domain == "factors":
            svds = SVD(*(part.to(self.whole.kind.device) for part in cores.svds))
            return Cores(cores.ranks, lambda: svds)
        return cores

    @cached_property
    def products(self) -> Tensor:
        """(K, T, T) inner products of the updates that count."""
        return self.cores.inner()

    def see(self, module: int) -> Any:
        """Return what the row sees of one module."""
        if self.domain == "weights":
            return self.counting.scales.new_zeros(len(self.used), 0)
        if self.domain == "gram":
            return self.products[module]
        cores = self.cores
        one = Cores(cores.ranks, lambda: SVD(*(part[module] for part in cores.svds)))
        if self.domain == "factors":
            return one.balanced()
        if self.domain == "span":
            return one.dense()
        return one

    def give_back(
        self, modules: Sequence[int], values: Sequence[Any] | Tensor, evidence: Sequence[Evidence]
    ) -> list[Merged | NumericalError]:
        """Turn answers about some of the modules into merged updates.

        Args:
            modules: The places of the modules in the group.
            values: What the row answered about each.
            evidence: How each was found.

        Returns:
            The merged updates, or a fault for what is not finite.
        """
        whole = self.whole.take(modules, range(len(self.whole.kind.ranks)))
        svds, full, finite = self._decompose(whole, values)
        ranks = [self._rank(self.settings[k], svds.values[i]) for i, k in enumerate(modules)]
        size = svds.values.shape[-1]
        columns = [min(rank or most, most, size) for rank, most in zip(ranks, full, strict=True)]
        cut = svds.truncate(max(columns))
        if min(columns) < max(columns):
            within = torch.arange(max(columns)) < torch.tensor(columns)[:, None]
            cut = cut._replace(values=torch.where(within.to(cut.values.device), cut.values, 0.0))
        roots = cut.values.sqrt().unsqueeze(-2)
        lifts = whole.lifts(cut.left * roots, cut.right * roots, self._dtype)
        facts = self._measure(whole, modules, cut, svds.values)
        merged: list[Merged | NumericalError] = []
        for i, (k, given) in enumerate(zip(modules, evidence, strict=True)):
            (apart, kept, left, cancelled), rank = facts[i], ranks[i]
            if not (finite[i] and math.isfinite(apart.norm)):
                text = "the merged update is not finite: the inputs are too large for this method"
                merged.append(NumericalError(text))
                continue
            known = given
            if rank is not None and rank < full[i]:
                known = replace(given, energy_kept=kept)
            lift = self._lift(self.names[k], lifts[i].narrow(columns[i]))
            measured = Measured(columns[i], whole.kind.ranks, left, cancelled, self._overlaps[k])
            merged.append(Merged(lift, known, (), None, apart, measured))
        return merged

    def _lift(self, name: str, lift: Lift) -> Callable[[], LowRankUpdate]:
        """Return what lifts a merged update: at once, or later from the module, read again."""
        stack, read = self._stack, self._read.get(name)
        if self._options.later:
            return lambda: lift(stack.low_rank(name))
        return constant(lift(read or stack.low_rank(name)))

    def _decompose(
        self, whole: Reduction, values: Sequence[Any] | Tensor
    ) -> tuple[SVD, Sequence[int], Sequence[bool]]:
        """Return answers as decomposed updates, side by side, the rank that each may have, and whether it is
        finite.
        """
        count, full = len(whole.left), min(whole.left.shape[1], whole.right.shape[1])
        if isinstance(values, SVD):
            return values, [full] * count, [True] * count
        if isinstance(values, Tensor):
            svds, finite = _thin(values)
            return svds, [full] * count, finite.tolist()
        each: list[Any] = list(values)
        if isinstance(each[0], LowRankUpdate):
            svds = _align([_decompose(value, whole.left) for value in each])
            return svds, [value.rank for value in each], [True] * count
        if isinstance(each[0], SVD):
            return _align(each), [len(svd.values) for svd in each], [True] * count
        if self.domain in SUMS:
            coefficients = torch.zeros_like(whole.scales)
            coefficients[:, list(self.used)] = torch.stack([value.to(whole.scales) for value in each])
            svds, finite = _thin(whole.sum(coefficients))
            return svds, [sum(self.counting.kind.ranks)] * count, finite.tolist()
        svds, finite = _thin(torch.stack([value.to(whole.left) for value in each]))
        return svds, [full] * count, finite.tolist()

    def _rank(self, setting: Setting, values: Tensor) -> int | None:
        """Return the rank of a merged update of these singular values; None for all of it."""
        rank, asked = setting.rank, self._options.rank
        if self.domain == "factors":
            return None
        if isinstance(asked, str) and not self._options.dense and (share := energy_of(asked)) is not None:
            energy = values.square().cumsum(dim=0)
            rank = min(int((energy < share * energy[-1]).sum()) + 1, len(values))
        return rank

    def _measure(
        self, whole: Reduction, modules: Sequence[int], cut: SVD, all_values: Tensor
    ) -> list[tuple[Apart, float, Remainder, bool]]:
        """Return norms and distances of merged updates, the share of the energy that a cut kept, what is left
        of the inputs in their weighted sum, and whether that is nothing.
        """
        norms = whole.cores.norms
        energy = all_values.square().sum(dim=1)
        kept = torch.where(energy > 0.0, cut.values.square().sum(dim=1) / energy, 1.0)
        weights = torch.tensor([self._stack.weights(self.names[k]) for k in modules], dtype=torch.float64)
        weights = weights.to(norms)
        left = [_sum_up(whole, weights, norms, self._stack.stored or self._stack.storage)]
        if self._method.directions:
            shares = torch.ones_like(weights)
            if weights.shape[1] != 2 or not bool(weights.all()):
                shares = weights
            shares = torch.where(norms > 0.0, shares / norms, 0.0)
            left.append(_sum_up(whole, shares, norms, self._stack.stored or self._stack.storage))
        size = torch.linalg.vector_norm(cut.values, dim=1)
        numbers = torch.cat(
            [size[:, None], kept[:, None], *left, norms, whole.cores.distances(cut)], dim=1
        ).tolist()
        count = norms.shape[1]
        return [
            (
                Apart(row[0], tuple(row[-2 * count : -count]), tuple(row[-count:])),
                row[1],
                Remainder(*row[2:5]),
                Remainder(*row[-2 * count - 3 : -2 * count]).cancels,
            )
            for row in numbers
        ]


def _sum_up(whole: Reduction, shares: Tensor, norms: Tensor, stored: Sequence[torch.dtype]) -> Tensor:
    """Return what is left of the weighted sum of the updates of each module: (K, 3), as `Remainder` says."""
    total = torch.linalg.matrix_norm(whole.sum(shares))
    noise = torch.linalg.vector_norm(shares * whole.rounding(stored), dim=1)
    return torch.stack([total, noise, (shares.abs() * norms).sum(dim=1)], dim=1)


def _thin(matrices: Tensor) -> tuple[SVD, Tensor]:
    """Return thin SVDs of matrices (K, p, q), of zeros for what is not finite, and which are finite."""
    finite = torch.isfinite(matrices).flatten(1).all(dim=1)
    return thin_svd(torch.where(finite[:, None, None], matrices, 0.0)), finite


def _decompose(value: LowRankUpdate, like: Tensor) -> SVD:
    """Return a small update, decomposed."""
    left, right = value.scale * value.B.to(like), value.A.mT.to(like)
    return Cores.of_factors(left, right, [value.rank]).svds


def _align(svds: Sequence[SVD]) -> SVD:
    """Return decompositions side by side, with columns of zero where one has fewer."""
    size = max(len(svd.values) for svd in svds)
    pad = torch.nn.functional.pad
    padded = [SVD(*(pad(part, (0, size - part.shape[-1])) for part in svd)) for svd in svds]
    return SVD(*(torch.stack(part) for part in zip(*padded, strict=True)))


@final
@dataclass(frozen=True)
class Member(Module):
    """One module of a group.

    Attributes:
        group: The group.
        place: The place of the module in it.
    """

    group: Group
    place: int
    light: ClassVar[bool] = True

    @property
    def x(self) -> Any:
        """The updates that count, in the domain of the row."""
        return self.group.see(self.place)

    @property
    def width(self) -> int:
        """How many numbers it keeps while it waits for a mean."""
        small = self.group.whole
        return small.left[0].numel() + small.right[0].numel()

    def give_back(self, value: Any, options: Options, evidence: Evidence) -> Merged:
        """Turn an answer into a merged update."""
        (merged,) = self.group.give_back([self.place], [value], [evidence])
        if isinstance(merged, NumericalError):
            raise merged
        return merged
