"""What is merged: an update dW of one module, whatever it is kept as."""

from __future__ import annotations

from typing import Protocol, Self

from torch import Tensor


class Update(Protocol):
    """What a model adds to one module: `LowRankUpdate` (factors s·B·A) or `Dense` (the tensor itself).

    Law: every number is a function of dW alone.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of dW: (m, n) outputs by inputs of a linear module, any other of a tensor."""
        ...

    @property
    def rank(self) -> int | None:
        """An upper bound of the rank of dW; None where it is not known."""
        ...

    def norm(self) -> float:
        """Return the Frobenius norm ‖dW‖, in the units of the weights."""
        ...

    def dense(self) -> Tensor:
        """Return dW itself, in float64."""
        ...

    def times(self, factor: float) -> Self:
        """Return the update factor · dW."""
        ...

    def absorb_scale(self) -> Self:
        """Return the same dW with scale 1."""
        ...
