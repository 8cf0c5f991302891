"""How the modules of an adapter are stored: from tensors of a file to the factors of dW, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from riemerge.formats.files.tensor_file import Entry
from riemerge.updates.low_rank import LowRankUpdate


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """One module of an adapter: which stored tensors make its update, and how. A kind is a final subclass.

    Law: `factors(store(update))` is B and A of the update with its scale in them, to round-off; a dialect
    names the sides, a layer says what they hold.

    Attributes:
        entries: The stored tensors by side (`A`, `B`, ...), as the header of their file describes them.
        scale: The factor s of dW = s·B·A.
    """

    entries: Mapping[str, Entry]
    scale: float

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of dW: outputs by inputs."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """The number r of columns of B."""

    @abstractmethod
    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return B (m, r) and A (r, n), of the stored tensors by side."""

    @abstractmethod
    def store(self, update: LowRankUpdate) -> dict[str, Tensor]:
        """Return the tensors by side that hold an update of scale 1."""


@final
@dataclass(frozen=True, eq=False)
class Linear(Layer):
    """A linear layer: A is (r, n) and B is (m, r).

    Source: Hu et al. 2021 (LoRA), eq. 3.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of dW: outputs by inputs."""
        return self.entries["B"].shape[0], self.entries["A"].shape[1]

    @property
    def rank(self) -> int:
        """The number r of columns of B."""
        return self.entries["B"].shape[1]

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return B (m, r) and A (r, n): the stored tensors themselves."""
        return tensors["B"], tensors["A"]

    def store(self, update: LowRankUpdate) -> dict[str, Tensor]:
        """Return the factors of an update of scale 1 by side."""
        return {"A": update.A, "B": update.B}
