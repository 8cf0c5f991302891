"""Losses: how the distance of a mean to each point is punished."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeAlias, final

from torch import Tensor

from riemerge.registry import Registry


class Loss(ABC):
    """A function ρ of the distance; a Fréchet mean minimises F = Σ wᵢ ρ(dᵢ). Abstract.

    Attributes:
        smooth: Whether F is differentiable wherever the distances are; where it is not, it may have its
            minimum at one of the points.
    """

    smooth: ClassVar[bool] = True

    @abstractmethod
    def cost(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return F of each module, (K,), from weights and squared distances (T, K); 0 where a weight is."""

    @abstractmethod
    def pull(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return wᵢ ρ'(dᵢ)/dᵢ, (T, K): the weights of the logarithms in minus the gradient of F."""


@final
class Square(Loss):
    """ρ(d) = d²/2: the Fréchet mean itself (Fréchet 1948; Karcher 1977)."""

    def cost(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return Σ wᵢ dᵢ²/2."""
        return (weights * squared).sum(dim=0) / 2

    def pull(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return the weights themselves."""
        return weights


LossLike: TypeAlias = Loss | str

LOSSES: Registry[Loss] = Registry("loss", {"square": Square})
"""The losses by name, the default first."""


def as_loss(loss: LossLike) -> Loss:
    """Return a loss given as itself or by name."""
    return LOSSES.make(loss) if isinstance(loss, str) else loss
