"""The Fréchet problem on torch manifolds, with data aligned anew at every point."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self, final

import torch
from torch import Tensor

from riemerge.frechet.formulation import Evaluation, Formulation, PlainFormulation
from riemerge.linalg import frobenius, scale_modules
from riemerge.manifolds import GeodesicManifold, QuotientManifold, TorchManifold
from riemerge.manifolds.base import Logarithm


class Batched(Formulation, ABC):
    """A formulation on a torch manifold. Abstract."""

    manifold: TorchManifold
    points: Tensor

    @final
    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the search manifold's metric per module."""
        return self.manifold.inner_products(point, a, b)

    @final
    def scale(self, factor: Tensor, vector: Tensor) -> Tensor:
        """Multiply each module's tangent vector by its own factor."""
        return scale_modules(factor, vector)

    @final
    def move(self, point: Tensor, step: Tensor, direction: Tensor) -> Tensor:
        """Retract each module along its own direction by its own step."""
        return self.manifold.retraction(point, scale_modules(step, direction))

    @final
    def choose(self, mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Take whole modules from a or b."""
        return torch.where(mask[:, None, None], a, b)

    @final
    def differentiate(
        self,
        point: Tensor,
        step: Tensor,
        direction: Tensor,
        field: Tensor,
        ahead: tuple[Tensor, Tensor],
        behind: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Turn a central difference into the covariant derivative."""
        unit, difference = scale_modules(step, direction), (ahead[1] - behind[1]) / 2
        derivative = self.manifold.covariant_derivative(point, unit, field, difference)
        inverse = torch.where(step > 0, 1 / step.clamp_min(1e-300), 0.0)
        return self.manifold.projection(point, scale_modules(inverse, derivative))


class Geodesic(Batched, ABC):
    """A formulation by logarithms on a torch manifold. Abstract."""

    space: GeodesicManifold

    @abstractmethod
    def narrow(self, modules: Tensor) -> Self:
        """Return the problem of some of the modules."""

    @abstractmethod
    def evaluate_quickly(self, point: Tensor) -> Evaluation:
        """Compute a pass as `evaluate` does; modules of logarithms that take long to find may cost +inf."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Return the point of the search manifold that stands for x, with the data roughly aligned to it."""

    @final
    def move_off(self, x: Tensor, attempt: int) -> Tensor:
        """Return x moved by a seeded step, the same for every module; later attempts go farther."""
        space = self.space
        noise = [space.random_ambient(x[:1]) for _ in range(attempt + 1)][-1]
        vector = space.projection(x, noise.expand_as(x))
        return space.exp(x, scale_modules(escape_length(attempt) / space.norms(x, vector), vector))


@final
class Nested(Geodesic, PlainFormulation):
    """The quotient's (or any torch manifold's) own cost: data are aligned anew, from scratch, at every point.

    The derivative of the alignment does not enter the gradient (envelope theorem).
    """

    def __init__(self, manifold: GeodesicManifold, points: Tensor, weights: Tensor, autograd: bool) -> None:
        self.manifold: GeodesicManifold = manifold
        self.space = manifold
        self.k = points.shape[1]
        self.points = points
        self.weights = weights
        self.autograd = autograd

    def evaluate(self, point: Tensor, *, tight: bool = False) -> Evaluation:
        """Compute one logarithm for each data point and module."""
        return self.certify(point)[0]

    def certify(self, point: Tensor) -> tuple[Evaluation, Tensor]:
        """Compute one logarithm for each data point and module, and check it."""
        feasible = self.manifold.feasible(point)
        x = self.choose(feasible, point, self.points[0])
        total, aligned = self.manifold, self.points
        if isinstance(self.manifold, QuotientManifold):
            total, aligned = self.manifold.total, self.manifold.align(self.points, to=x)
        logs = total.logarithm(x, aligned)
        if self.autograd:
            euclidean, logs = differentiate_cost(
                lambda leaf: total.squared_dists(leaf, aligned), x, logs, self.weights
            )
            gradient = self.manifold.euclidean_to_riemannian_gradient(x, euclidean)
        else:
            gradient = -scale_modules(self.weights, logs.tangent).sum(dim=0)
        if isinstance(self.manifold, QuotientManifold):
            gradient = self.manifold.horizontal(x, gradient)
        vertical = vertical_lengths(self.manifold, x, logs.tangent)
        evaluation = screen(self, x, feasible, logs, gradient, vertical, self.weights)
        return evaluation, forward_errors(total, x, logs.tangent, aligned)

    def narrow(self, modules: Tensor) -> Self:
        """Return the problem of some of the modules."""
        narrow = copy.copy(self)
        narrow.k = modules.numel()
        narrow.manifold = narrow.space = self.manifold.with_modules(narrow.k)
        narrow.points, narrow.weights = self.points[:, modules], self.weights[:, modules]
        return narrow

    def average(self) -> Tensor:
        """Return the extrinsic mean."""
        return average(self.manifold, self.points, self.weights)

    def evaluate_quickly(self, point: Tensor) -> Evaluation:
        """Compute a pass as `evaluate` does."""
        return self.evaluate(point)

    def embed(self, x: Tensor) -> Tensor:
        """Return x: alignment happens inside the cost."""
        return x


def escape_length(attempt: int) -> float:
    """Return the length of a step off a cut locus; later attempts go farther."""
    # 0.05 was sometimes still on it, 0.3 never.
    return 0.3 * 1.25**attempt


def average(manifold: GeodesicManifold, points: Tensor, weights: Tensor) -> Tensor:
    """Return the extrinsic mean; a single point is its own mean, to the bit."""
    if points.shape[0] == 1:
        return points[0].clone()
    return manifold.extrinsic_mean(points, weights)


def vertical_lengths(manifold: GeodesicManifold, x: Tensor, logs: Tensor) -> Tensor:
    """Return the length of the part of each logarithm along the orbit, (T, K); zero without a symmetry."""
    if not isinstance(manifold, QuotientManifold):
        return torch.zeros(logs.shape[:2], dtype=torch.float64, device=logs.device)
    total, action = manifold.total, manifold.action
    gauge = action.vertical_generator(total, x, logs)
    return frobenius(gauge, action.momentum(total, x, logs)).clamp_min(0).sqrt()


def forward_errors(manifold: GeodesicManifold, x: Tensor, logs: Tensor, data: Tensor) -> Tensor:
    """Return the distances of exp(logs) from the data, (T, K), to first order."""
    return manifold.norms(data, manifold.projection(data, manifold.exp(x, logs) - data))


def screen(
    form: Batched,
    x: Tensor,
    feasible: Tensor,
    logs: Logarithm,
    gradient: Tensor,
    vertical: Tensor,
    weights: Tensor,
) -> Evaluation:
    """Screen one pass: a module that failed costs +inf and has no gradient; the others are untouched."""
    counts = weights > 0
    defined = feasible & (logs.valid | ~counts).all(dim=0)
    squared = torch.where(counts, logs.squared, torch.zeros_like(logs.squared))
    cost = torch.where(defined, (weights * squared).sum(dim=0) / 2, torch.inf)
    defined = defined & torch.isfinite(cost)
    gradient = form.choose(defined, gradient, torch.zeros_like(gradient))
    norms = form.manifold.norms(x, gradient)
    broken = ~torch.isfinite(norms)
    gradient = form.choose(broken, torch.zeros_like(gradient), gradient)
    cost, norms = cost.masked_fill(broken, torch.inf), norms.masked_fill(broken, 0)
    return Evaluation(
        cost, gradient, norms, logs.squared, torch.where(counts, vertical, torch.zeros_like(vertical))
    )


def differentiate_cost(
    squared: Callable[[Tensor], Tensor], point: Tensor, logs: Logarithm, weights: Tensor
) -> tuple[Tensor, Logarithm]:
    """Differentiate 1/2 sum w squared(point) by torch; return the entrywise gradient and the distances it
    saw.
    """
    leaf = point.detach().requires_grad_()
    with torch.enable_grad():
        values = squared(leaf)
        used = torch.where(weights > 0, values.double(), torch.zeros_like(values, dtype=torch.float64))
        (gradient,) = torch.autograd.grad((weights * used).sum() / 2, leaf)
    return gradient, logs._replace(squared=values.detach().double())
