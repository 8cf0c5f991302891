"""The Fréchet problem on torch manifolds, with data aligned anew at every point."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from riemerge.frechet.formulation import Evaluation, Formulation, PlainFormulation
from riemerge.frechet.loss import Objective
from riemerge.linalg import frobenius, scale_modules
from riemerge.manifolds import GeodesicManifold, QuotientManifold, TorchManifold
from riemerge.manifolds.base import Logarithm

# What is left of the vertical part of a logarithm, against the gradient of the last iterate.
_LOOSE = 0.06


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

    @final
    def resolution(self) -> Tensor:
        """Return the squared distance of the first datum from itself; on a quotient, from another
        representative of it, aligned again.
        """
        space, copy = self.space, first = self.space, self.points[0]
        if isinstance(space, QuotientManifold):
            turn = space.action.random_element(first.shape[:1], torch.Generator().manual_seed(0))
            copy = space.action.act(space.total, first, turn.to(first))
        round_off = torch.finfo(torch.float64).eps * space.norms(first, first)
        return torch.maximum(space.logarithm(first, copy).squared, round_off.square())

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


class Representatives(NamedTuple):
    """Data as they were aligned at a point, (T, K, rows, columns)."""

    points: Tensor

    def narrow(self, modules: Tensor) -> Representatives:
        """Return those of some of the modules."""
        return Representatives(self.points.index_select(1, modules))

    def replace(self, modules: Tensor, other: Representatives) -> Representatives:
        """Return these with others in some of the modules."""
        return Representatives(self.points.index_copy(1, modules, other.points))


@final
class Nested(Geodesic, PlainFormulation):
    """The quotient's (or any torch manifold's) own cost: data are aligned anew at every point, from their
    representatives at the last iterate, if there is one.

    The derivative of the alignment does not enter the gradient (envelope theorem).
    """

    def __init__(
        self, manifold: GeodesicManifold, points: Tensor, objective: Objective, autograd: bool
    ) -> None:
        self.manifold: GeodesicManifold = manifold
        self.space = manifold
        self.k = points.shape[1]
        self.points = points
        self.objective = objective
        self.autograd = autograd
        self.aligns = isinstance(manifold, QuotientManifold)

    def evaluate(self, point: Tensor, *, tight: bool = False) -> Evaluation:
        """Compute one logarithm for each data point and module."""
        tolerance = None
        if self.anchor is not None and not tight:
            pull = self.objective.pull(self.anchor.squared)
            tolerance = _LOOSE * self.anchor.norms / self.objective.stiffness(pull)
        return self._evaluate(point, self.anchor, tolerance)[0]

    def certify(self, point: Tensor) -> tuple[Evaluation, Tensor]:
        """Compute one logarithm for each data point and module, aligned from scratch, and check it."""
        evaluation, x, tangent = self._evaluate(point)
        aligned = evaluation.state.points
        return evaluation, forward_errors(_total(self.manifold), x, tangent, aligned)

    def _evaluate(
        self, point: Tensor, anchor: Evaluation | None = None, tolerance: Tensor | None = None
    ) -> tuple[Evaluation, Tensor, Tensor]:
        """Return what one pass finds, the point that it is at, and the logarithms."""
        feasible = self.manifold.feasible(point)
        x = self.choose(feasible, point, self.points[0])
        total, aligned, objective = _total(self.manifold), self.points, self.objective
        if isinstance(self.manifold, QuotientManifold):
            if anchor is None:
                aligned = self.manifold.align(aligned, to=x)
            else:
                action, before = self.manifold.action, anchor.state.points
                aligned = action.realign(total, before, x, tolerance)
        logs = total.logarithm(x, aligned)
        if self.autograd:
            euclidean, logs = differentiate_cost(
                lambda leaf: total.squared_dists(leaf, aligned), x, logs, objective
            )
            gradient = self.manifold.euclidean_to_riemannian_gradient(x, euclidean)
        else:
            gradient = -scale_modules(objective.pull(logs.squared), logs.tangent).sum(dim=0)
        if isinstance(self.manifold, QuotientManifold):
            gradient = self.manifold.horizontal(x, gradient)
        gradient = shorten(objective, self.manifold, x, gradient, logs.squared)
        vertical = vertical_lengths(self.manifold, x, logs.tangent)
        evaluation = screen(self, x, feasible, logs, gradient, vertical)
        return evaluation._replace(state=Representatives(aligned)), x, logs.tangent

    def narrow(self, modules: Tensor) -> Self:
        """Return the problem of some of the modules."""
        narrow = copy.copy(self)
        narrow.k = modules.numel()
        narrow.manifold = narrow.space = self.manifold.with_modules(narrow.k)
        narrow.points, narrow.objective = self.points[:, modules], self.objective.narrow(modules)
        narrow.anchor = self.anchor and self.anchor.narrow(modules)
        return narrow

    def average(self) -> Tensor:
        """Return the extrinsic mean."""
        return average(self.manifold, self.points, self.objective.weights)

    def evaluate_quickly(self, point: Tensor) -> Evaluation:
        """Compute a pass as `evaluate` does."""
        return self.evaluate(point)

    def embed(self, x: Tensor) -> Tensor:
        """Return x: alignment happens inside the cost."""
        return x


def _total(manifold: GeodesicManifold) -> GeodesicManifold:
    """Return the manifold that representatives are points of."""
    return manifold.total if isinstance(manifold, QuotientManifold) else manifold


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


def shorten(
    objective: Objective, manifold: TorchManifold, x: Tensor, gradient: Tensor, squared: Tensor
) -> Tensor:
    """Return the shortest subgradient, given the gradient of the data at a distance."""
    if objective.loss.smooth:
        return gradient
    return scale_modules(objective.shorten(manifold.norms(x, gradient), squared), gradient)


def screen(
    form: Batched, x: Tensor, feasible: Tensor, logs: Logarithm, gradient: Tensor, vertical: Tensor
) -> Evaluation:
    """Screen one pass: a module that failed costs +inf and has no gradient; the others are untouched."""
    counts = form.objective.weights > 0
    cost, norms = form.objective.cost(logs.squared), form.manifold.norms(x, gradient)
    defined = feasible & (logs.valid | ~counts).all(dim=0) & torch.isfinite(cost) & torch.isfinite(norms)
    return Evaluation(
        torch.where(defined, cost, torch.inf),
        torch.where(defined[:, None, None], gradient, 0.0),
        torch.where(defined, norms, 0.0),
        logs.squared,
        torch.where(counts, vertical, 0.0),
    )


def differentiate_cost(
    squared: Callable[[Tensor], Tensor], point: Tensor, logs: Logarithm, objective: Objective
) -> tuple[Tensor, Logarithm]:
    """Differentiate F of squared distances (T, K) of a point by torch, with their weights held; return the
    entrywise gradient and the distances it saw.
    """
    leaf = point.detach().requires_grad_()
    with torch.enable_grad():
        values = squared(leaf).double()
        pull = objective.pull(values.detach())
        used = torch.where(objective.weights > 0, values, torch.zeros_like(values))
        (gradient,) = torch.autograd.grad((pull * used).sum() / 2, leaf)
    return gradient, logs._replace(squared=values.detach())
