"""The Fréchet problem on Pymanopt's own manifolds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import pymanopt
import torch
from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.frechet.batched import escape_length
from riemerge.frechet.distance import Distance
from riemerge.frechet.formulation import Evaluation, PlainFormulation, Point
from riemerge.frechet.loss import Objective
from riemerge.manifolds.guests.guarded import guard, is_finite, random_like
from riemerge.manifolds.guests.membership import broken_law, refusal

# Central differences of a user's cost and the share by which they may miss the gradient, besides round-off.
_STEP, _SLOPE = 1e-5, 1e-2


@final
class Stock(PlainFormulation):
    """Pymanopt's own manifolds, on numpy (or whatever their points are): one module.

    Args:
        manifold: The manifold; what solvers move on is `Guarded`.
        points: T of its points.
        objective: F, of weights (T, 1).
        distance: A distance differentiated by Pymanopt's autograd; None for the geodesic one, by `log` and
            `dist`.
        initial_point: A user's start, or None.
        indices: The index of each point among those that were given.

    Raises:
        RecipeError: Something that is no point of the manifold; a manifold without `log` and `dist`, or
            whose geodesics break their laws.
    """

    def __init__(
        self,
        manifold: Manifold,
        points: Sequence[Point],
        objective: Objective,
        distance: Distance | None,
        initial_point: Point | None,
        indices: Sequence[int],
    ) -> None:
        self.manifold = guard(manifold)
        self.k = 1
        self.candidates = list(points)
        self.objective = objective
        self._pull = _list(objective.weights)
        self.problem: pymanopt.Problem | None = None
        self.distance = distance
        self.by_logarithms = distance is None
        named = [(f"point {i}", y) for i, y in zip(indices, points, strict=True)]
        if initial_point is not None:
            named.append(("initial_point", initial_point))
        reasons = [(name, refusal(manifold, y)) for name, y in named]
        problems = [f"{manifold}: {name} is no point of it: {why}" for name, why in reasons if why]
        RecipeError.refuse(problems)
        if distance is None:
            self._refuse_lawless(manifold)
        else:

            @pymanopt.function.autograd(manifold)  # type: ignore[untyped-decorator]
            def cost(*x: Any) -> Any:
                point: Any = x
                if manifold.num_values == 1:
                    (point,) = x
                data = zip(self._pull, self.candidates, strict=True)
                return sum(p * distance.square(manifold, point, y) for p, y in data) / 2

            self.problem = pymanopt.Problem(manifold, cost)

    def evaluate(self, point: Point, *, tight: bool = False) -> Evaluation:
        """Compute one logarithm and distance for each data point; +inf where the point is out of the set."""
        if is_finite(point):
            try:
                with np.errstate(all="ignore"):
                    return self._evaluate_finite(point)
            except np.linalg.LinAlgError:
                pass
        nothing = [np.nan] * len(self.candidates)
        return _evaluation(np.inf, self.manifold.zero_vector(self.candidates[0]), 0.0, nothing)

    def _evaluate_finite(self, point: Point) -> Evaluation:
        valid = True
        if self.problem is not None:
            squared = self._square(point)
            self._pull = _list(self.objective.pull(_column(squared)))
            try:
                gradient = self.problem.riemannian_gradient(point)
            except NotImplementedError as error:
                raise RecipeError(f"{self.manifold}: {error}, so no cost on it has a gradient") from error
        else:
            logs = [self.manifold.log(point, y) for y in self.candidates]
            lengths = [self.manifold.norm(point, v) for v in logs]
            distances = [float(self.manifold.dist(point, y)) for y in self.candidates]
            # Pymanopt's logarithms are silent at the cut locus (on the sphere the log of the antipode is
            # zero). Round-off of positive definite matrices of condition 1e12 is 1e-4.
            valid = bool(np.allclose(lengths, distances, rtol=1e-3, atol=1e-6))
            squared = [d * d for d in distances]
            self._pull = _list(self.objective.pull(_column(squared)))
            gradient = sum((-p * v for p, v in zip(self._pull, logs, strict=True)), 0 * logs[0])
        cost = float(self.objective.cost(_column(squared))[0])
        norm = float(self.manifold.norm(point, gradient))
        if not self.objective.loss.smooth:
            factor = float(self.objective.shorten(_column([norm])[0], _column(squared))[0])
            gradient, norm = factor * gradient, factor * norm
        if not (valid and np.isfinite(cost) and np.isfinite(norm)):
            cost, gradient, norm = np.inf, self.manifold.zero_vector(point), 0.0
        return _evaluation(cost, gradient, norm, squared)

    def certify(self, point: Point) -> tuple[Evaluation, Tensor]:
        """Compute cost and gradient, and follow the logarithms to their ends: NaN where the manifold has no
        exp or no log, or the distance is a user's own. Distances are the manifold's, whatever the cost; NaN
        where it has none.
        """
        evaluation = self.evaluate(point)
        verbs = self.manifold.dist, self._miss
        measures = [[self._measure(verb, point, y) for verb in verbs] for y in self.candidates]
        distances, errors = map(_column, zip(*measures, strict=True))
        return evaluation._replace(squared=distances.square()), errors

    def _miss(self, point: Point, other: Point) -> float:
        """Return the distance of exp(log) from a point; NaN where the distance is a user's own."""
        if self.distance is not None:
            return np.nan
        arrival = self.manifold.exp(point, self.manifold.log(point, other))
        return float(self.manifold.dist(arrival, other))

    @staticmethod
    def _measure(verb: Any, point: Point, other: Point) -> float:
        """Return a number of two points, or NaN where the manifold has none."""
        try:
            return float(verb(point, other))
        except (NotImplementedError, np.linalg.LinAlgError):
            return np.nan

    def resolution(self) -> Tensor:
        """Return the squared distance of the first datum from itself."""
        first = self.candidates[0]
        if self.distance is None:
            return _column([float(self.manifold.dist(first, first)) ** 2])[0]
        return _column(self._square(first)[:1])[0]

    def _square(self, point: Point) -> list[float]:
        """Return the squared distance of each datum by another than the geodesic distance."""
        assert self.distance is not None
        return [float(self.distance.square(self.manifold.manifold, point, y)) for y in self.candidates]

    def inner_products(self, point: Point, a: Point, b: Point) -> Tensor:
        """Return the metric (1,)."""
        return torch.tensor([float(self.manifold.inner_product(point, a, b))], dtype=torch.float64)

    def scale(self, factor: Tensor, vector: Point) -> Point:
        """Multiply a tangent vector."""
        return float(factor[0]) * vector

    def move(self, point: Point, step: Tensor, direction: Point) -> Point:
        """Follow the geodesic where there is one, else retracts."""
        return self.manifold.exp(point, float(step[0]) * direction)

    def choose(self, mask: Tensor, a: Point, b: Point) -> Point:
        """Take a or b."""
        if bool(mask[0]):
            return a
        return b

    def differentiate(
        self,
        point: Point,
        step: Tensor,
        direction: Point,
        field: Point,
        ahead: tuple[Point, Point],
        behind: tuple[Point, Point],
    ) -> Point:
        """Transport the values to the point and take their central difference."""
        if not (size := float(step[0])) > 0:
            return 0 * direction
        here = [self.manifold.transport(there, point, value) for there, value in (ahead, behind)]
        return self.manifold.to_tangent_space(point, 0.5 * (here[0] - here[1])) / size

    def average(self) -> Point:
        """Return the first of the data."""
        return self.candidates[0]

    def move_off(self, x: Point, attempt: int) -> Point:
        """Return x moved by a seeded step; later attempts go farther."""
        ambient = self.manifold.embedding(x, self.manifold.zero_vector(x))
        vector = self.manifold.projection(x, random_like(ambient, np.random.default_rng(attempt)))
        vector = self.manifold.to_tangent_space(x, vector)
        return self.manifold.exp(x, escape_length(attempt) / self.manifold.norm(x, vector) * vector)

    def refuse_gradient(self, point: Point) -> None:
        """Refuse a user's cost whose gradient is not its slope at a point, nor at two near it (at one of
        which alone the cost may not be smooth).

        Raises:
            RecipeError: The slope is another.
        """
        if self.problem is None:
            return
        slopes: tuple[float, float] | None = None
        for other in (point, self.move_off(point, 0), self.move_off(point, 1)):
            slopes = self._find_wrong_slope(other)
            if slopes is None:
                return
        assert slopes is not None
        raise RecipeError(
            f"{self.manifold}: the squared distance rises by {slopes[0]:.3g} along what Pymanopt says is its "
            f"gradient, of length {slopes[1]:.3g}: either it is not written with autograd.numpy throughout, "
            "or the manifold's euclidean_to_riemannian_gradient is wrong (that of Pymanopt's UnitaryGroup is)"
        )

    def _find_wrong_slope(self, point: Point) -> tuple[float, float] | None:
        """Return the slope along the gradient, by central differences, and its length, where they differ."""
        evaluation = self.evaluate(point)
        norm = float(evaluation.norms[0])
        if not norm > 0:
            return None
        unit = 1 / norm * evaluation.gradient
        costs = [float(self.evaluate(self.manifold.exp(point, h * unit)).cost[0]) for h in (_STEP, -_STEP)]
        slope = (costs[0] - costs[1]) / (2 * _STEP)
        noise = 1e3 * np.finfo(float).eps * abs(float(evaluation.cost[0])) / _STEP
        if abs(slope - norm) <= _SLOPE * norm + noise:
            return None
        return slope, norm

    def _refuse_lawless(self, manifold: Manifold) -> None:
        """Refuse a manifold without the verbs of a mean, and one whose verbs contradict each other."""
        try:
            self._known_verbs(self.candidates[0], self.candidates[-1])
            broken = broken_law(manifold, self.candidates)
        except NotImplementedError as error:
            raise RecipeError(
                f"{manifold}: {error}. A Fréchet mean needs log, dist and retraction; or pass a distance of "
                "your own, a function that autograd can follow"
            ) from error
        if broken is not None:
            raise RecipeError(
                f"{manifold}: its exp, log and dist contradict each other, so there is no mean by them: "
                f"{broken}. That is a fault of the manifold; pass a distance of your own, a function "
                "that autograd can follow"
            )

    def _known_verbs(self, point: Point, other: Point) -> None:
        """Raise NotImplementedError where log, dist, or a way to move is missing."""
        for verb in (self.manifold.manifold.log, self.manifold.manifold.dist):
            try:
                with np.errstate(all="ignore"):
                    verb(point, other)
            except np.linalg.LinAlgError:
                continue
        zero = self.manifold.zero_vector(point)
        try:
            self.manifold.retraction(point, zero)
        except NotImplementedError:
            self.manifold.exp(point, zero)


def _column(numbers: Sequence[float]) -> Tensor:
    """Return T numbers as a tensor (T, 1)."""
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(-1)


def _list(column: Tensor) -> list[float]:
    """Return the numbers of a tensor (T, 1)."""
    return [float(x) for x in column[:, 0]]


def _evaluation(cost: float, gradient: Point, norm: float, squared: list[float]) -> Evaluation:
    """Return what is known of one module."""
    distances = _column(squared)
    return Evaluation(
        _column([cost])[0], gradient, _column([norm])[0], distances, torch.zeros_like(distances)
    )
