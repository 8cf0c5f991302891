"""Tensors that are too large to be held in float64: runs of rows, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, final

import torch
from torch import Tensor

from riemerge.updates.dense import DenseSpan


class BlockMap(Protocol):
    """What changes the blocks of one pass over them; it may count what it has seen of them."""

    def __call__(self, block: Tensor, /) -> Tensor:
        """Return the changed block."""
        ...


@final
@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """Tensors of T updates, or of one, that are read a block at a time, anew in each pass.

    Args:
        source: Starts a pass: float64 blocks, runs of the rows in order, (T, rows, ...) of T updates and
            (rows, ...) of one.
        changes: Each starts what changes the blocks of a pass, one after the other.
    """

    source: Callable[[], Iterator[Tensor]]
    changes: tuple[Callable[[], BlockMap], ...] = ()

    def stream(self) -> Iterator[Tensor]:
        """Start a pass."""
        return (block for _, block in self.pairs())

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Start a pass that yields each block as it was read, and as it is after all changes."""
        started = [start() for start in self.changes]
        for block in self.source():
            yield block, reduce(_apply, started, block)

    def change(self, start: Callable[[], BlockMap]) -> Blocks:
        """Return the changed blocks.

        Args:
            start: Called once for each pass; what it returns is called with the blocks of it in order.
        """
        return Blocks(self.source, (*self.changes, start))

    def each(self, change: BlockMap) -> Blocks:
        """Return the blocks changed each by itself."""
        return self.change(lambda: change)

    def gram(self) -> Tensor:
        """Return the (T, T) inner products of the updates."""
        total: Tensor | None = None
        for block in self.stream():
            flattened = block.flatten(start_dim=1)
            products = flattened @ flattened.mT
            total = products if total is None else total + products
        assert total is not None
        return total

    def combine(self, coefficients: Tensor) -> Blocks:
        """Return Σ cᵢ xᵢ."""
        return self.each(lambda block: torch.tensordot(coefficients.to(block), block, dims=1))


def _apply(block: Tensor, change: BlockMap) -> Tensor:
    return change(block)


@final
@dataclass(frozen=True, eq=False, slots=True)
class DenseRows:
    """Dense updates of one module side by side, read by rows: too many numbers to be held at once.

    Args:
        count: The number T of updates.
        shape: The shape of the module, of two axes or more.
        read: Reads rows of the first axis: (T, rows, ...) float64.
        rows: The number of rows of a block.
    """

    count: int
    shape: tuple[int, ...]
    read: Callable[[range], Tensor]
    rows: int

    def whole(self) -> DenseSpan:
        """Return the updates as they are, all of them in memory."""
        return DenseSpan(self.read(range(self.shape[0])))

    def blocks(self) -> Blocks:
        """Return the updates, a block at a time."""
        starts = range(0, self.shape[0], self.rows)
        runs = [range(start, min(start + self.rows, self.shape[0])) for start in starts]
        return Blocks(lambda: map(self.read, runs))


@final
@dataclass(frozen=True, eq=False, slots=True)
class DenseBlocks:
    """One update that is computed by rows whenever it is asked for.

    Args:
        shape: The shape of the update, of two axes or more.
        stream: Starts a pass over the blocks of the update: (rows, ...) float64.
    """

    shape: tuple[int, ...]
    stream: Callable[[], Iterator[Tensor]]

    @property
    def rank(self) -> None:
        """None: the rank of a dense update is not known."""
        return

    def norm(self) -> float:
        """Return the Frobenius norm ‖dW‖."""
        return math.hypot(*(float(torch.linalg.vector_norm(block)) for block in self.blocks()))

    def dense(self) -> Tensor:
        """Return the whole tensor."""
        return torch.cat([*self.blocks()])

    def blocks(self) -> Iterator[Tensor]:
        """Yield the tensor in runs of its rows."""
        return self.stream()

    def times(self, factor: float) -> DenseBlocks:
        """Return the update factor · dW."""
        return DenseBlocks(self.shape, lambda: (factor * block for block in self.stream()))

    def absorb_scale(self) -> DenseBlocks:
        """Return the update itself: its scale is in the tensor."""
        return self
