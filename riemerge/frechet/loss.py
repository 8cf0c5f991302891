"""Losses: how the distance of a mean to each point is punished."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.registry import Registry

# Squared distances below this share of the largest one in their module are zero to a loss with a kink there:
# computed distances have half of the digits.
_COPY = 1e-14
# Distances that round-off makes are about this times as long at some points as at others.
_ROUND_OFF = 10
# How near to equality an optimality condition of computed distances counts as met.
_TIE = 1e-9
# Distance at which a function is differentiated in place of zero, where its slope over d is 0/0.
_NEARLY_ZERO = 1e-12


class Loss(ABC):
    """A function ρ of the distance; a Fréchet mean minimises F = Σ wᵢ ρ(dᵢ). Abstract.

    Attributes:
        smooth: Whether ρ'(0) is 0. Where it is not, F has a kink at each of the points, and its minimum may
            be one of them: there the gradient is the shortest subgradient.
        convex: Whether ρ is convex. Where it is not, F has many minima, and the one that is found depends on
            the start.
        relative: Whether ρ is a function of d / s: s is the weighted median, in each module, of the distances
            of the points to their geometric median, and F = s² Σ wᵢ ρ(dᵢ / s).
        degree: p, where F of c times the distances is cᵖ F; None where it is no such function.
    """

    smooth: ClassVar[bool] = True
    convex: ClassVar[bool] = True
    relative: bool = False
    degree: ClassVar[int | None] = None

    @abstractmethod
    def cost(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return F of each module, (K,), from weights and squared distances (T, K); 0 where a weight is."""

    @abstractmethod
    def pull(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return wᵢ ρ'(dᵢ)/dᵢ, (T, K): the weights of the logarithms in minus the gradient of F; 0 at a
        kink.
        """

    def kink(self, weights: Tensor) -> Tensor:
        """Return wᵢ ρ'(0), (T, K). Derived: zero; a loss that is not smooth states it."""
        return torch.zeros_like(weights)

    @property
    def caveat(self) -> str:
        """What the minimum of such a loss may be beside what is expected of a mean; empty for a smooth and
        convex one.
        """
        parts = {
            "F is not smooth at the data: a mean at one of them has the shortest subgradient 0.": self.smooth,
            "F has several minima, and this one depends on the start.": self.convex,
        }
        return " ".join(text for text, holds in parts.items() if not holds)


@final
@dataclass(frozen=True)
class Square(Loss):
    """ρ(d) = d²/2: the Fréchet mean itself (Fréchet 1948; Karcher 1977)."""

    degree = 2

    def cost(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return Σ wᵢ dᵢ²/2."""
        return (weights * squared).sum(dim=0) / 2

    def pull(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return the weights themselves."""
        return weights


@final
@dataclass(frozen=True)
class Absolute(Loss):
    """ρ(d) = d: the geometric median, which a minority of outliers cannot carry away.

    Law: a point of more than half of the weight is the median, wherever the others are. A point is the median
    if and only if ‖Σ wⱼ log(xⱼ)/dⱼ‖ over the others is at most its weight (on manifolds without positive
    curvature).

    Source: Weiszfeld 1937; Vardi, Zhang 2000, The multivariate L1-median, PNAS 97; Fletcher,
    Venkatasubramanian, Joshi 2009, The geometric median on Riemannian manifolds.
    """

    smooth = False
    degree = 1

    def cost(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return Σ wᵢ dᵢ."""
        return (weights * squared.sqrt()).sum(dim=0)

    def pull(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return wᵢ/dᵢ."""
        return torch.where(
            squared > 0, weights / squared.clamp_min(torch.finfo(torch.float64).tiny).sqrt(), 0.0
        )

    def kink(self, weights: Tensor) -> Tensor:
        """Return the weights."""
        return weights


@final
@dataclass(frozen=True)
class Huber(Loss):
    """ρ(d) = d²/2 up to δ and δ d − δ²/2 beyond: a point farther than δ pulls no more than one at δ.

    Law: the Fréchet mean for a large δ, and the geometric median as δ goes to 0 (where the slope of F goes to
    0 as well: the solver's `tol` must go with it).

    Attributes:
        delta: δ, above 0.
        relative: Whether δ is in units of the weighted median of the distances to the geometric median.

    Source: Huber 1964, Robust estimation of a location parameter.
    """

    delta: float = 1.0
    relative: bool = True

    def __post_init__(self) -> None:
        if not 0 < float(self.delta) < float("inf"):
            raise RecipeError(f"Huber: delta is {self.delta!r}; expected a finite number above 0")

    def cost(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return Σ wᵢ (dᵢ²/2 − max(dᵢ − δ, 0)²/2)."""
        beyond = (squared.sqrt() - self.delta).clamp_min(0)
        return (weights * (squared - beyond.square())).sum(dim=0) / 2

    def pull(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return wᵢ min(1, δ/dᵢ)."""
        return weights * (self.delta / squared.sqrt().clamp_min(self.delta))


@final
@dataclass(frozen=True)
class Trimmed(Loss):
    """d²/2 of the nearest points alone: those farthest away that make up a share of the weight do not count.

    Law: F is the least Σ vᵢ dᵢ²/2 over 0 ≤ vᵢ ≤ wᵢ with Σ vᵢ = 1 − share; so the point at the boundary counts
    in part.

    Attributes:
        share: Share of the weight that does not count, from 0 to below 1.

    Source: Rousseeuw 1984, Least median of squares regression (least trimmed squares).
    """

    share: float = 0.25
    convex = False
    degree = 2

    def __post_init__(self) -> None:
        if not 0 <= float(self.share) < 1:
            raise RecipeError(f"Trimmed: share is {self.share!r}; expected a number from 0 to below 1")

    def cost(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return Σ vᵢ dᵢ²/2."""
        return (self.pull(weights, squared) * squared).sum(dim=0) / 2

    def pull(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return vᵢ."""
        nearest = torch.argsort(torch.where(weights > 0, squared, torch.inf), dim=0, stable=True)
        ordered = weights.gather(0, nearest)
        left = (1 - self.share) * weights.sum(dim=0) - (ordered.cumsum(dim=0) - ordered)
        return torch.zeros_like(weights).scatter(0, nearest, torch.minimum(left.clamp_min(0), ordered))


@final
@dataclass(frozen=True)
class FunctionLoss(Loss):
    """A function of the distance of one's own, differentiated by torch.

    Attributes:
        function: ρ: takes distances (T, K), returns as many numbers, each a function of its own distance that
            does not fall. It may have any slope at 0, where it must be differentiable from the right.
        relative: Whether ρ sees distances in units of the weighted median of the distances to the geometric
            median.

    Raises:
        RecipeError: The function returns another shape, torch cannot differentiate it, or its slope at 0 is
            negative or not finite.

    Example:
        >>> cauchy = FunctionLoss(lambda d: torch.log1p(d.square()))
    """

    function: Callable[[Tensor], Tensor]
    relative: bool = False
    convex = False

    def __post_init__(self) -> None:
        zero = torch.zeros(1, 1, dtype=torch.float64, device="cpu")
        object.__setattr__(self, "_slope", slope := float(self._differentiate(zero)))
        if not 0 <= slope < float("inf"):
            raise RecipeError(
                f"the slope of the loss at distance 0 is {slope}; expected a finite number >= 0"
            )
        object.__setattr__(self, "smooth", slope == 0)

    def cost(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return Σ wᵢ ρ(dᵢ)."""
        return (weights * self.function(squared.sqrt())).sum(dim=0)

    def pull(self, weights: Tensor, squared: Tensor) -> Tensor:
        """Return wᵢ ρ'(dᵢ)/dᵢ."""
        distances = squared.sqrt().clamp_min(_NEARLY_ZERO)
        return torch.where(
            (squared > 0) | self.smooth, weights * self._differentiate(distances) / distances, 0.0
        )

    def kink(self, weights: Tensor) -> Tensor:
        """Return wᵢ ρ'(0)."""
        return weights * self._slope  # type: ignore[attr-defined, no-any-return]

    def _differentiate(self, distances: Tensor) -> Tensor:
        leaf = distances.detach().requires_grad_()
        with torch.enable_grad():
            values = self.function(leaf)
            if getattr(values, "shape", None) != leaf.shape or not values.requires_grad:
                raise RecipeError(
                    "a loss must compute with torch, from distances, and return one number for each: of "
                    f"{leaf!r} it returned {values!r}"
                )
            (slope,) = torch.autograd.grad(values.sum(), leaf)
        return slope


class Objective(NamedTuple):
    """F of a stack of modules as a function of the squared distances of the data.

    Attributes:
        loss: ρ.
        weights: (T, K), of sum one in each module.
        unit: s, the unit of distances in each module, (K,): one for a loss that is not relative.
        resolution: Squared distance of a copy from a point as it is computed, (K,).
    """

    loss: Loss
    weights: Tensor
    unit: Tensor
    resolution: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Objective:
        """Return F with its tensors changed, whose modules are their last axis."""
        return Objective(self.loss, *map(change, self[1:]))

    def narrow(self, modules: Tensor) -> Objective:
        """Return F of some of the modules."""
        return self.map(lambda x: x[..., modules])

    def cost(self, squared: Tensor) -> Tensor:
        """Return F of each module, (K,)."""
        return self.loss.cost(self.weights, self._measure(squared)) * self.unit.square()

    def pull(self, squared: Tensor) -> Tensor:
        """Return the weights of the logarithms in minus the gradient of F, (T, K); zero where a weight is."""
        return self.loss.pull(self.weights, self._measure(squared))

    def stiffness(self, pull: Tensor) -> Tensor:
        """Return Σ wᵢ ρ'(dᵢ)/dᵢ of each module, (K,), one for the square: a gradient divided by that is the
        step of Weiszfeld's iteration.
        """
        total = pull.sum(dim=0) / self.weights.sum(dim=0)
        return torch.where(total > 0, total, 1.0)

    def shorten(self, norms: Tensor, squared: Tensor) -> Tensor:
        """Return the factor (K,) that turns the gradient of the data at a distance, of these norms, into the
        shortest subgradient of F: 1 but at data whose loss has a kink.
        """
        at_data = (self._measure(squared) == 0) & (self.weights > 0)
        kinks = torch.where(at_data, self.loss.kink(self.weights), 0.0).sum(dim=0) * self.unit
        return (1 - (1 + _TIE) * kinks / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0)

    def _measure(self, squared: Tensor) -> Tensor:
        """Return squared distances as the loss sees them: in its unit, zero where a weight is."""
        squared = torch.where(self.weights > 0, squared, torch.zeros_like(squared)) / self.unit.square()
        if not isinstance(self.loss, Square):
            squared = squared.clamp_min(0)
        if self.loss.smooth:
            return squared
        least = torch.maximum(
            _COPY * squared.amax(dim=0), _ROUND_OFF**2 * self.resolution / self.unit.square()
        )
        return torch.where(squared <= least, 0.0, squared)


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted median of numbers (T, K) in each module (K,); the middle of two where half of the
    weight is on either side.
    """
    ordered, order = torch.where(weights > 0, values, torch.inf).sort(dim=0)
    below = weights.gather(0, order).cumsum(dim=0) / weights.sum(dim=0)
    ends = ((below < share).sum(dim=0, keepdim=True) for share in (0.5 - _TIE, 0.5 + _TIE))
    first, last = (ordered.gather(0, end.clamp_max(len(ordered) - 1)) for end in ends)
    return ((first + last) / 2).squeeze(0)


LossLike: TypeAlias = Loss | str | Callable[[Tensor], Tensor]


def _adapt(entry: Any) -> Callable[..., Loss]:
    """Return what builds a plug-in's loss: its class, or a builder of the loss or function that it gives."""
    if isinstance(entry, type):
        return entry
    return partial(as_loss, entry)


LOSSES: Registry[Loss] = Registry(
    "loss", {"square": Square, "absolute": Absolute, "huber": Huber, "trimmed": Trimmed}, _adapt
)
"""The losses by name, the default first."""


def as_loss(loss: LossLike) -> Loss:
    """Return a loss given as itself, by name, or as a function of distances (see `FunctionLoss`)."""
    if isinstance(loss, str):
        return LOSSES.make(loss)
    if isinstance(loss, Loss):
        return loss
    return FunctionLoss(loss)
