"""The mean by another than the geodesic distance on torch manifolds."""

from __future__ import annotations

from contextlib import suppress
from typing import final

import torch
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.frechet.batched import (
    Batched,
    average,
    differentiate_cost,
    escape_length,
    screen,
    shorten,
)
from riemerge.frechet.distance import Distance
from riemerge.frechet.formulation import Evaluation, PlainFormulation
from riemerge.frechet.loss import Objective
from riemerge.linalg import scale_modules
from riemerge.manifolds import GeodesicManifold, QuotientManifold, TorchManifold
from riemerge.manifolds.base import Logarithm, MissingVerbError

# By this share a distance may change with the representative and still be taken for one of orbits.
_INVARIANT = 1e-6


@final
class Own(Batched, PlainFormulation):
    """A cost by another distance than the geodesic one: F = Σ wᵢ ρ(√q(x, yᵢ)).

    Law: q sees x and yᵢ as points of the manifold: nothing is aligned or taken a logarithm of.

    Args:
        manifold: The manifold.
        points: (T, K, rows, columns).
        objective: F, of weights (T, K).
        distance: q.

    Raises:
        RecipeError: q returns another shape, torch cannot differentiate it, or on a quotient it is no
            function of orbits.
    """

    def __init__(
        self, manifold: TorchManifold, points: Tensor, objective: Objective, distance: Distance
    ) -> None:
        self.manifold = manifold
        self.k = points.shape[1]
        self.points = points
        self.objective = objective
        self.distance = distance
        if isinstance(manifold, QuotientManifold):
            self._refuse_gauges(manifold)

    by_logarithms = False

    @property
    def candidates(self) -> list[Tensor]:
        """The points that a solve may begin at."""
        if isinstance(self.manifold, GeodesicManifold):
            mean = average(self.manifold, self.points, self.objective.weights)
            if self.objective.loss.smooth:
                return [mean]
            return [mean, *self.points]
        return list(self.points)

    def move_off(self, x: Tensor, attempt: int) -> Tensor:
        """Return x moved by a seeded step; later attempts go farther."""
        generator = torch.Generator().manual_seed(attempt)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        vector = self.manifold.projection(x, noise)
        length = escape_length(attempt) / self.manifold.norms(x, vector)
        return self.manifold.retraction(x, scale_modules(length, vector))

    def evaluate(self, point: Tensor, *, tight: bool = False) -> Evaluation:
        """Compute the cost by the user's function, and its gradient by torch."""
        feasible = self.manifold.feasible(point)
        x = self.choose(feasible, point, self.points[0])
        known = torch.zeros_like(self.objective.weights)
        logs = Logarithm(x, known, known == 0)
        euclidean, logs = differentiate_cost(self._values, x, logs, self.objective)
        gradient = self.manifold.euclidean_to_riemannian_gradient(x, euclidean)
        gradient = self.manifold.to_tangent_space(x, gradient)
        gradient = shorten(self.objective, self.manifold, x, gradient, logs.squared)
        return screen(self, x, feasible, logs, gradient, known)

    def certify(self, point: Tensor) -> tuple[Evaluation, Tensor]:
        """Compute cost and gradient; the distances are the manifold's own, NaN where it has none."""
        squared = unknown = torch.full_like(self.objective.weights, torch.nan)
        if isinstance(self.manifold, GeodesicManifold):
            with suppress(MissingVerbError):  # a distance of one's own needs no logarithm
                logs = self.manifold.logarithm(point, self.points)
                squared = torch.where(logs.valid, logs.squared, torch.nan)
        return self.evaluate(point)._replace(squared=squared), unknown

    def resolution(self) -> Tensor:
        """Return q of the first datum and itself."""
        with torch.no_grad():
            return self._values(self.points[0])[0]

    def average(self) -> Tensor:
        """Return the first candidate."""
        return self.candidates[0]

    def _values(self, x: Tensor) -> Tensor:
        """Return q(x, yᵢ), (T, K)."""
        values = [self.distance.square(self.manifold, x, y) for y in self.points]
        for value in values:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if shape != (self.k,) and not (self.k == 1 and shape == ()):
                raise RecipeError(
                    f"the squared distance returned {shape} for two points of shape {tuple(x.shape)}; "
                    f"expected one number for each module, a tensor of shape ({self.k},)"
                )
        result = torch.stack(values).reshape(self.objective.weights.shape)
        if torch.is_grad_enabled() and not result.requires_grad:
            raise RecipeError(
                "the squared distance cannot be differentiated: it must compute with torch from its first "
                "argument"
            )
        return result

    def _refuse_gauges(self, manifold: QuotientManifold) -> None:
        # Away from the data, where q is zero and its round-off would be the whole of it.
        x, generator = self.move_off(self.points[-1], 0), torch.Generator().manual_seed(0)
        turn = manifold.action.random_element((self.k,), generator).to(x)
        with torch.no_grad():
            here, there = self._values(x), self._values(manifold.action.act(manifold.total, x, turn))
        size = here.abs().amax(dim=0)
        if bool(((there - here).abs().amax(dim=0) > _INVARIANT * size).any()):
            raise RecipeError(
                f"the squared distance is no distance on {manifold}: it changes with the representative of "
                f"an orbit. Write a function of orbits, or take the mean on {manifold.total}"
            )
