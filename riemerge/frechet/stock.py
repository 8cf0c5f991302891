"""The Fréchet problem on Pymanopt's own manifolds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import pymanopt
import torch
from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

from riemerge.frechet.formulation import Evaluation, Formulation, Point


@final
class Stock(Formulation):
    """Pymanopt's own manifolds, on numpy (or whatever their points are): one module, `log` and `dist` as they
    come.
    """

    def __init__(
        self, manifold: Manifold, points: Sequence[Point], weights: Tensor, autograd: bool, squared: Any
    ) -> None:
        self.manifold = manifold
        self.k = 1
        self.points = list(points)
        self.weights = [float(w) for w in weights[:, 0]]
        self.problem: pymanopt.Problem | None = None
        if autograd:

            @pymanopt.function.autograd(manifold)  # type: ignore[untyped-decorator]
            def cost(*x: Any) -> Any:
                at = x[0] if manifold.num_values == 1 else x
                return sum(w * squared(at, y) for w, y in zip(self.weights, self.points, strict=True)) / 2

            self.problem = pymanopt.Problem(manifold, cost)
        self.squared = squared

    def evaluate(self, point: Point, *, tight: bool = False) -> Evaluation:
        """Computes one logarithm and distance for each data point."""
        if self.problem is not None:
            squared = [float(self.squared(point, y)) for y in self.points]
            gradient = self.problem.riemannian_gradient(point)
            valid = True
        else:
            with np.errstate(invalid="ignore"):
                logs = [self._log(point, y) for y in self.points]
                lengths = [float(self.manifold.norm(point, v)) for v, _ in logs]
                distances = [distance for _, distance in logs]
            # Pymanopt's logarithms are silent at the cut locus (on the sphere the log of the antipode is
            # zero).
            valid = bool(np.allclose(lengths, distances, rtol=1e-6, atol=1e-6))
            squared = [d * d for d in distances]
            gradient = sum((-w * v for w, (v, _) in zip(self.weights, logs, strict=True)), 0 * logs[0][0])
        cost = 0.5 * sum(w * d for w, d in zip(self.weights, squared, strict=True))
        norm = float(self.manifold.norm(point, gradient))
        finite = valid and bool(np.isfinite(cost) and np.isfinite(norm))
        return Evaluation(
            torch.tensor([cost if finite else np.inf], dtype=torch.float64),
            gradient if finite else self.manifold.zero_vector(point),
            torch.tensor([norm if finite else 0.0], dtype=torch.float64),
            torch.tensor(squared, dtype=torch.float64).unsqueeze(-1),
            torch.zeros((len(squared), 1), dtype=torch.float64),
        )

    def certify(self, point: Point) -> tuple[Evaluation, Tensor]:
        """Computes the same, and follows the logarithms; NaN where the manifold has no exp or no log."""
        try:
            missed = [
                float(self.manifold.dist(self.manifold.exp(point, self._log(point, y)[0]), y))
                for y in self.points
            ]
        except NotImplementedError:
            missed = [np.nan] * len(self.points)
        return self.evaluate(point), torch.tensor(missed, dtype=torch.float64).unsqueeze(-1)

    def accept(self, evaluation: Evaluation) -> None:
        """Keeps nothing."""

    def precondition(self, point: Point, vector: Point, evaluation: Evaluation) -> Point:
        """Returns the vector: weights sum to one, so the Hessian is near the identity."""
        return vector

    def _log(self, point: Point, other: Point) -> tuple[Point, float]:
        """Returns logarithm and distance; of a point to itself exactly, where Pymanopt's may be NaN (arccos
        of 1 + eps).
        """
        if isinstance(point, np.ndarray) and np.array_equal(point, other):
            return self.manifold.zero_vector(point), 0.0
        return self.manifold.log(point, other), float(self.manifold.dist(point, other))

    def inner_products(self, point: Point, a: Point, b: Point) -> Tensor:
        """Returns the metric (1,)."""
        return torch.tensor([float(self.manifold.inner_product(point, a, b))], dtype=torch.float64)

    def scaled(self, factor: Tensor, vector: Point) -> Point:
        """Multiplies a tangent vector."""
        return float(factor[0]) * vector

    def move(self, point: Point, step: Tensor, direction: Point) -> Point:
        """Follows the geodesic where there is one, else retracts."""
        vector = float(step[0]) * direction
        try:
            return self.manifold.exp(point, vector)
        except NotImplementedError:
            return self.manifold.retraction(point, vector)

    def choose(self, mask: Tensor, a: Point, b: Point) -> Point:
        """Takes a or b."""
        return a if bool(mask[0]) else b

    def differentiate(
        self, point: Point, direction: Point, field: Point, ahead: Point, behind: Point
    ) -> Point:
        """Projects a central difference onto the tangent space."""
        return self.manifold.to_tangent_space(point, 0.5 * (ahead - behind))

    def start(self, initial_point: Point | None) -> Point:
        """Returns the data point of least cost, or a user's point."""
        if initial_point is not None:
            return initial_point
        costs = [float(self.evaluate(y).cost[0]) for y in self.points]
        return self.points[int(np.argmin(costs))]

    def solution(self, point: Point) -> Point:
        """Returns the point itself."""
        return point
