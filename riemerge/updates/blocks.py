"""Tensors that are too large to be held in float64: runs of rows, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, final

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.updates.dense import DenseSpan
from riemerge.updates.low_rank import LowRankUpdate

# Numbers of a block of products and of the panel that it is cut from, of all updates together: a block is
# worked on in cache, and a panel is high enough for BLAS.
_BLOCK = 3 * 2**16
_PANEL = 2**20
_LEAST_ROWS = 8
_MOST_ROWS = 64


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

    def whole(self, shape: tuple[int, ...]) -> Tensor:
        """Return one update of a shape as it is, all of it in memory.

        Raises:
            NumericalError: The update is not finite.
        """
        tensor: Tensor | None = None
        start = 0
        for block in self.stream():
            if tensor is None:
                tensor = block.new_empty(shape)
            tensor[start : start + len(block)] = block
            start += len(block)
            if not bool(torch.isfinite(block.sum())):
                raise NumericalError(
                    "the merged update is not finite: the inputs are too large for this method"
                )
        assert tensor is not None
        return tensor

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
        return Blocks(lambda: map(self.read, _runs(self.shape[0], self.rows)))


def blocks_of(updates: Sequence[LowRankUpdate], rows: int | None = None) -> Blocks:
    """Return updates with factors as dense ones that are computed anew in each pass, a block at a time.

    Law: those of `LowRankUpdate.dense` to round-off. They are computed in panels whose height follows from
    the shapes alone, so that no bit depends on how many rows a block has.

    Args:
        updates: At least one, all of one shape and device.
        rows: The number of rows of a block; what stays in cache if there is none.

    Cost: 2 r operations an entry in each pass, and a panel of 8 MiB; of many updates 8 rows of all of them.
        Panels are reused: a block is what it was until the next is asked for.
    """
    (m, n), count = updates[0].shape, len(updates)
    high = min(max(_PANEL // max(count * n, 1), _LEAST_ROWS), _MOST_ROWS)
    least = min(max(_BLOCK // max(count * n, 1), 1), high)
    factors = [(one.scale * one.B.to(torch.float64), one.A.to(torch.float64)) for one in updates]
    runs = _runs(m, rows or -(-high // (high // least)))

    def source() -> Iterator[Tensor]:
        panel, held = factors[0][0].new_empty(count, high, n), -1
        for run in runs:
            parts = []
            for start in range(run.start // high * high, run.stop, high):
                here = slice(start, min(start + high, m))
                if start != held:
                    for place, (left, right) in zip(panel, factors, strict=True):
                        torch.mm(left[here], right, out=place[: here.stop - start])
                    held = start
                part = panel[:, max(run.start - start, 0) : min(run.stop, here.stop) - start]
                parts.append(part if run.stop <= here.stop else part.clone())
            yield parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    return Blocks(source)


def _runs(length: int, rows: int) -> list[range]:
    return [range(start, min(start + rows, length)) for start in range(0, length, rows)]


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
