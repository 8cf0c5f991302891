"""T updates of one module in common bases, as their singular value decompositions side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from riemerge.linalg import SVD, canonical_signs, thin_svd
from riemerge.updates.low_rank import LowRankUpdate

# Columns of factors whose products with all others are formed at once.
_BLOCK = 512

# Numbers of factors that are at work at once: what a cache holds.
_NUMBERS = 2**19


@final
class Cores:
    """T updates of one module, (p, q) each, in orthonormal bases of spaces that hold them: without a stack.

    Update t is xₜ = Uₜ Sₜ Vₜᵀ. The columns of all Uₜ stand side by side, and so do the singular values and
    the Vₜ: R = Σ rₜ columns, rₜ the number of singular values of update t, descending. Leading axes are
    modules side by side, whose updates have the same ranks. Dense updates are decomposed when that is asked.

    Law: what is said of the updates is to round-off what the stack of them, `dense()`, says.

    Args:
        ranks: T numbers rₜ.
        find: Returns the decompositions: left (..., p, R), values (..., R), right (..., q, R), float64.
        stack: The updates (..., T, p, q), if they are dense.
    """

    def __init__(self, ranks: Sequence[int], find: Callable[[], SVD], stack: Tensor | None = None) -> None:
        self.ranks = tuple(ranks)
        self._find, self._stack = find, stack

    @classmethod
    def of_factors(cls, left: Tensor, right: Tensor, ranks: Sequence[int]) -> Cores:
        """Return the updates xₜ = Lₜ Rₜᵀ of factors in any gauge.

        Args:
            left: Factors Lₜ side by side (..., p, R), float64, R = Σ rₜ.
            right: Factors Rₜ side by side (..., q, R).
            ranks: T numbers rₜ of columns, each at least 1. Of more than min(p, q) as many are kept.

        Cost: T thin QRs of either side, and T SVDs (rₜ, rₜ), in one batch for each rank that there is.
        """
        kept = [min(rank, left.shape[-2], right.shape[-2]) for rank in ranks]
        svds = _decompose(left, right, tuple(ranks))
        return cls(kept, lambda: svds)

    @classmethod
    def of(cls, updates: Sequence[LowRankUpdate]) -> Cores:
        """Return updates that are given in common bases."""
        left = torch.cat([update.scale * update.B.to(torch.float64) for update in updates], dim=1)
        right = torch.cat([update.A.to(torch.float64).mT for update in updates], dim=1)
        return cls.of_factors(left, right, [update.rank for update in updates])

    @classmethod
    def of_stack(cls, stack: Tensor) -> Cores:
        """Return dense updates (..., T, p, q), which are their own bases."""
        ranks = [min(stack.shape[-2:])] * stack.shape[-3]
        return cls(ranks, lambda: _side_by_side(thin_svd(stack)), stack)

    @cached_property
    def svds(self) -> SVD:
        """The decompositions: left (..., p, R), values (..., R), right (..., q, R)."""
        return self._find()

    @property
    def count(self) -> int:
        """The number T of updates."""
        return len(self.ranks)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (p, q) of an update."""
        if self._stack is not None:
            return self._stack.shape[-2], self._stack.shape[-1]
        return self.svds.left.shape[-2], self.svds.right.shape[-2]

    @cached_property
    def places(self) -> Tensor:
        """The place of each column among those of its update, (R,)."""
        return self._columns([place for rank in self.ranks for place in range(rank)])

    @cached_property
    def _owners(self) -> Tensor:
        """The update that each column belongs to, (R,)."""
        return self._columns([t for t, rank in enumerate(self.ranks) for _ in range(rank)])

    @cached_property
    def norms(self) -> Tensor:
        """The norms ‖xₜ‖, (..., T)."""
        if self._stack is not None:
            sizes: Tensor = torch.linalg.matrix_norm(self._stack)
        else:
            sizes = torch.linalg.vector_norm(self.spread(self.svds.values), dim=-1)
        return sizes

    def alone(self) -> Cores:
        """Return one module as K = 1 modules side by side."""
        stack = self._stack
        if stack is not None:
            stack = stack.unsqueeze(0)
        return Cores(self.ranks, lambda: SVD(*(part.unsqueeze(0) for part in self.svds)), stack)

    def each(self, numbers: Tensor) -> Tensor:
        """Return for each column the number of its update: (..., R) of (..., T)."""
        return numbers.to(self.svds.values)[..., self._owners]

    def spread(self, columns: Tensor) -> Tensor:
        """Return what columns hold by update: (..., T, r) of (..., R), zero where an update has fewer."""
        widest, width = max(self.ranks), sum(self.ranks)
        if widest * self.count == width:
            split: Tensor = columns.unflatten(-1, (self.count, widest))
            return split
        starts = torch.tensor(self.ranks).cumsum(dim=0) - torch.tensor(self.ranks)
        slots = torch.arange(widest) + starts[:, None]
        slots[torch.arange(widest) >= torch.tensor(self.ranks)[:, None]] = width
        return torch.nn.functional.pad(columns, (0, 1))[..., slots.to(columns.device)]

    def combine(self, weights: Tensor, values: Tensor | None = None) -> Tensor:
        """Return Σ wₜ xₜ, (..., p, q).

        Args:
            weights: T numbers wₜ (..., T), on any device.
            values: What stands for the singular values, (..., R).
        """
        if values is None and self._stack is not None:
            return torch.einsum("...t,...tpq->...pq", weights.to(self._stack), self._stack)
        left, sigma, right = self.svds
        if values is not None:
            sigma = values
        return (left * (self.each(weights) * sigma).unsqueeze(-2)) @ right.mT

    def inner(self) -> Tensor:
        """Return the inner products ⟨xₛ, xₜ⟩, (..., T, T), exactly symmetric.

        Cost: O(R² (p + q)) time; a block of columns after the other, O(R) memory.
        """
        if self._stack is not None:
            flat = self._stack.flatten(-2)
            return flat @ flat.mT
        left, right = self._factors()
        rows = []
        for first, last, start, end in self._blocks():
            products = left[..., start:end].mT @ left[..., start:]
            products *= right[..., start:end].mT @ right[..., start:]
            products = _sum_runs(products, self.ranks[first:], -1)
            products = _sum_runs(products, self.ranks[first:last], -2)
            rows.append(torch.nn.functional.pad(products, (first, 0)))
        above = torch.cat(rows, dim=-2).triu()
        return above + above.triu(1).mT

    def distances(self, other: SVD) -> Tensor:
        """Return the distances ‖X − xₜ‖, (..., T), of a matrix X (..., p, q), decomposed.

        Law: right to round-off of the norms, also where the two nearly agree: differences are of vectors. By
        factors where X has few columns, which is linear in the width; a block of updates after the other.
        """
        sizes = []
        left, right = (self.spread(side).movedim(-2, -3) for side in self._factors())
        columns = other.values.shape[-1] + left.shape[-1]
        step = max(1, _NUMBERS // (sum(self.shape) * columns * other.values[..., 0].numel()))
        whole = other.matrix().unsqueeze(-3)
        mine, rows = other.left * other.values.unsqueeze(-2), other.right
        for b, a in zip(left.split(step, dim=-3), right.split(step, dim=-3), strict=True):
            if columns < min(self.shape):
                both = torch.cat([rows.unsqueeze(-3).expand(*a.shape[:-1], -1), a], dim=-1)
                upper = torch.linalg.qr(both, mode="r").R
                apart = torch.cat([mine.unsqueeze(-3).expand(*b.shape[:-1], -1), -b], dim=-1) @ upper.mT
            else:
                apart = whole - b @ a.mT
            sizes.append(torch.linalg.matrix_norm(apart))
        return torch.cat(sizes, dim=-1)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Return all Uₜ Sₜ and all Vₜ, side by side."""
        return self.svds.left * self.svds.values.unsqueeze(-2), self.svds.right

    def within(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the updates Lᵀ xₜ R (..., T, a, b), seen in L (..., p, a) and R (..., q, b)."""
        columns, rows = (
            self.spread(side.mT @ own).movedim(-2, -3)
            for side, own in zip((left, right), self._factors(), strict=True)
        )
        return columns @ rows.mT

    def dense(self) -> Tensor:
        """Return the stack of all updates, (..., T, p, q): T p q numbers."""
        if self._stack is not None:
            return self._stack
        left, right = (self.spread(side).movedim(-2, -3) for side in self._factors())
        return left @ right.mT

    def one_by_one(self) -> Iterator[Tensor]:
        """Yield the updates of one module, (p, q) each."""
        if self._stack is not None:
            yield from self._stack
            return
        left, sigma, right = (part.split(self.ranks, dim=-1) for part in self.svds)
        for columns, values, rows in zip(left, sigma, right, strict=True):
            yield (columns * values) @ rows.mT

    def narrow(self, ranks: Sequence[int]) -> Cores:
        """Return the nearest updates of at most T ranks: so many leading columns of each."""
        kept = tuple(min(pair) for pair in zip(ranks, self.ranks, strict=True))
        starts = torch.tensor(self.ranks).cumsum(dim=0) - torch.tensor(self.ranks)
        pairs = zip(starts.tolist(), kept, strict=True)
        columns = self._columns([start + place for start, rank in pairs for place in range(rank)])
        return Cores(kept, lambda: SVD(*(part[..., columns] for part in self.svds)))

    def balanced(self) -> tuple[LowRankUpdate, ...]:
        """Return the updates of one module in the gauge of `LowRankUpdate.balance`."""
        roots = canonical_signs(self.svds.left) * self.svds.values.sqrt()
        sides = ((side * roots).split(self.ranks, dim=1) for side in (self.svds.left, self.svds.right))
        return tuple(LowRankUpdate(b, a.mT) for b, a in zip(*sides, strict=True))

    def _blocks(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield runs of updates, [first, last) and their columns [start, end)."""
        first = start = end = 0
        for last, rank in enumerate(self.ranks, 1):
            end += rank
            if end - start >= _BLOCK or last == self.count:
                yield first, last, start, end
                first, start = last, end

    def _columns(self, numbers: Sequence[int]) -> Tensor:
        """Return whole numbers, on the device of the updates."""
        return torch.tensor(numbers, dtype=torch.int64).to(self.svds.values.device)


def _decompose(left: Tensor, right: Tensor, ranks: tuple[int, ...]) -> SVD:
    """Return the thin SVDs of updates Lₜ Rₜᵀ side by side, those of one rank in one batch."""
    if len(set(ranks)) == 1:
        sides = (side.unflatten(-1, (len(ranks), ranks[0])).movedim(-2, -3) for side in (left, right))
        return _side_by_side(_thin(*sides))
    parts = (left.split(ranks, dim=-1), right.split(ranks, dim=-1))
    columns: list[SVD | None] = [None] * len(ranks)
    for rank in sorted(set(ranks)):
        places = [place for place, own in enumerate(ranks) if own == rank]
        svds = _thin(*(torch.stack([side[place] for place in places], dim=-3) for side in parts))
        for i, place in enumerate(places):
            columns[place] = SVD(svds.left[..., i, :, :], svds.values[..., i, :], svds.right[..., i, :, :])
    return SVD(*(torch.cat(side, dim=-1) for side in zip(*filter(None, columns), strict=True)))


def _thin(left: Tensor, right: Tensor) -> SVD:
    """Return the thin SVDs of products L Rᵀ of (..., p, r) and (..., q, r)."""
    columns, upper = torch.linalg.qr(left)
    rows, other = torch.linalg.qr(right)
    svd = thin_svd(upper @ other.mT)
    return SVD(columns @ svd.left, svd.values, rows @ svd.right)


def _side_by_side(svds: SVD) -> SVD:
    """Return decompositions (..., T, p, r) as columns (..., p, T r)."""
    left, right = (side.movedim(-3, -2).flatten(-2) for side in (svds.left, svds.right))
    return SVD(left, svds.values.flatten(-2), right)


def _sum_runs(numbers: Tensor, lengths: Sequence[int], dim: int) -> Tensor:
    """Return the sums over runs of numbers along one of the last two axes."""
    if len(set(lengths)) == 1:
        split: Tensor = numbers.unflatten(dim, (len(lengths), lengths[0]))
        return split.sum(dim=dim)
    return torch.stack([part.sum(dim=dim) for part in numbers.split(list(lengths), dim=dim)], dim=dim)
