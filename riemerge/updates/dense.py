"""Updates as the dense tensors that they are: what a full checkpoint changed, or a result without factors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, eq=False, slots=True)
class Dense:
    """One update of any shape, kept as a float64 tensor.

    Args:
        tensor: The update itself: a matrix (m, n), a vector such as a bias, or a number (0-d).
    """

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def rank(self) -> None:
        """None: the rank of a dense update is not known."""
        return

    def norm(self) -> float:
        """Return the Frobenius norm ‖dW‖."""
        return float(torch.linalg.vector_norm(self.tensor))

    def dense(self) -> Tensor:
        """Return the tensor."""
        return self.tensor

    def blocks(self) -> Iterator[Tensor]:
        """Yield the tensor, as one block."""
        yield self.tensor

    def times(self, factor: float) -> Dense:
        """Return the update factor · dW."""
        return Dense(factor * self.tensor)

    def absorb_scale(self) -> Dense:
        """Return the update itself: its scale is in the tensor."""
        return self


@final
@dataclass(frozen=True, eq=False, slots=True)
class DenseSpan:
    """Dense updates of one module side by side. A dense update is its own span: nothing is reduced.

    Args:
        stacked: (T, ...) float64 updates.
    """

    stacked: Tensor

    @property
    def updates(self) -> tuple[Dense, ...]:
        """The T updates, as views."""
        return tuple(map(Dense, self.stacked))
