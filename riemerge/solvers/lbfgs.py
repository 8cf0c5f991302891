"""Limited-memory BFGS as a Pymanopt optimizer, with a step and a Hessian of its own for every module."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, final

import numpy as np
import torch
from pymanopt import Problem
from pymanopt.manifolds.manifold import Manifold
from pymanopt.optimizers.optimizer import Optimizer, OptimizerResult
from torch import Tensor

from riemerge.manifolds.base import TorchManifold, scaled
from riemerge.manifolds.linalg import frobenius

# A pair of step and change of the gradient is used where it shows positive curvature by at least this cosine.
_LEAST_COSINE = 1e-6
_SUFFICIENT_DECREASE = 1e-4
_SHORTEST = 1e-12


class _Pair(NamedTuple):
    """A step s, the change y of the gradient along it, y as a functional, 1 / <s, y>, or 0 where that is no
    curvature, and the size <s, y> / <y, P y> of the inverse Hessian that it shows.
    """

    step: Any
    change: Any
    functional: Any
    inverse: Any
    size: Any


@final
class LBFGS(Optimizer):  # type: ignore[misc]
    """Limited-memory BFGS for any Pymanopt problem.

    Minimises with the direction -H grad, H the BFGS approximation of the inverse Hessian from the last few
    steps, started from the problem's preconditioner. Steps and changes of the gradient are carried along by the
    manifold's transport. On the torch manifolds of this package all inner products, and so H, are of each
    module by itself: a stack of problems runs as if each ran alone.

    Args:
        memory: How many pairs of steps and changes are kept.
        line_searcher: Pymanopt's protocol; by default backtracking from a step of one, which Pymanopt's own do
            not try. One that gives each module its own step says in `moved` along which vector it went.
        rescale: Multiply the preconditioner by the size of the inverse Hessian that the newest pair shows. Not
            for a preconditioner that is of the Hessian's size already.
        kwargs: Of Pymanopt's `Optimizer`.

    Source: Nocedal, Wright 2006, alg. 7.4; on manifolds Huang, Gallivan, Absil 2015, with the update skipped
    where <s, y> is not positive.
    """

    def __init__(
        self, *, memory: int = 20, line_searcher: Any = None, rescale: bool = True, **kwargs: Any
    ) -> None:
        if memory < 1:
            raise ValueError(f"LBFGS: memory is {memory}; at least 1 is needed")
        super().__init__(**kwargs)
        self._memory = memory
        self._rescale = rescale
        self._line_searcher = _Backtracking() if line_searcher is None else line_searcher
        self._pairs: list[_Pair] = []

    def narrow(self, modules: Tensor) -> None:
        """Goes on with some of the modules of a stack: the next `run` starts with what is known of them."""
        self._pairs = [_Pair(*(part[modules.to(part.device)] for part in pair)) for pair in self._pairs]

    def run(self, problem: Problem, *, initial_point: Any = None, **kwargs: Any) -> OptimizerResult:  # noqa: ARG002
        """Iterates until one of the optimizer's own stopping rules holds."""
        manifold = problem.manifold
        algebra: _Algebra = _Modulewise(manifold) if isinstance(manifold, TorchManifold) else _Whole(manifold)
        searcher = copy.deepcopy(self._line_searcher)
        point = manifold.random_point() if initial_point is None else initial_point
        began = time.time()
        self._initialize_log(optimizer_parameters={"memory": self._memory})
        cost, gradient = problem.cost(point), problem.riemannian_gradient(point)
        step_size, iteration = np.inf, 0
        while True:
            norm = manifold.norm(point, gradient)
            iteration += 1
            reason = self._check_stopping_criterion(
                start_time=began, step_size=step_size, gradient_norm=norm, iteration=iteration
            )
            if reason:
                break
            direction = -self._applied(problem, algebra, point, gradient)
            slope = manifold.inner_product(point, gradient, direction)
            if not slope < 0:
                self._pairs = []
                direction, slope = -gradient, -(norm**2)
            step_size, arrival = searcher.search(problem.cost, manifold, point, direction, cost, slope)
            moved = getattr(searcher, "moved", None)
            if moved is None:
                length = manifold.norm(point, direction)
                moved = step_size / length * direction if length > 0 else direction
            cost, after = problem.cost(arrival), problem.riemannian_gradient(arrival)
            self._carry(problem, algebra, point, arrival, (moved, gradient), after)
            point, gradient = arrival, after
        self._pairs = []
        return self._return_result(
            start_time=began,
            point=point,
            cost=cost,
            iterations=iteration,
            stopping_criterion=reason,
            cost_evaluations=iteration,
            step_size=step_size,
            gradient_norm=norm,
        )

    def _applied(self, problem: Problem, algebra: _Algebra, point: Any, gradient: Any) -> Any:
        """Returns H gradient by the two-loop recursion."""
        vector, shares = gradient, []
        (functional,) = algebra.functionals(point, [gradient])
        for pair in reversed(self._pairs):
            share = pair.inverse * algebra.applied(point, functional, pair.step)
            vector = vector - algebra.scaled(share, pair.change)
            functional = functional - algebra.scaled(share, pair.functional)
            shares.append(share)
        vector = problem.preconditioner(point, vector)
        if self._pairs and self._rescale:
            vector = algebra.scaled(self._pairs[-1].size, vector)
        for pair, share in zip(self._pairs, reversed(shares), strict=True):
            back = pair.inverse * algebra.applied(point, pair.functional, vector)
            vector = vector + algebra.scaled(share - back, pair.step)
        return problem.manifold.projection(point, vector)

    def _carry(
        self,
        problem: Problem,
        algebra: _Algebra,
        point: Any,
        arrival: Any,
        vectors: tuple[Any, Any],
        after: Any,
    ) -> None:
        """Transports the pairs to the new point and adds the newest: (step, gradient) before, gradient after."""
        kept = self._pairs[max(len(self._pairs) - self._memory + 1, 0) :]
        old = [part for pair in kept for part in (pair.step, pair.change)]
        step, before, *parts = algebra.transported(point, arrival, [*vectors, *old])
        steps, changes = [*parts[::2], step], [*parts[1::2], after - before]
        functionals = algebra.functionals(arrival, changes)
        conditioned = problem.preconditioner(arrival, changes[-1])
        curved, length, size = (
            algebra.applied(arrival, functionals[-1], vector) for vector in (step, changes[-1], conditioned)
        )
        (step_functional,) = algebra.functionals(arrival, [step])
        lengths = (algebra.applied(arrival, step_functional, step) * length) ** 0.5
        inverse = algebra.inverse(curved, curved > _LEAST_COSINE * lengths, 0.0)
        known = kept[-1].size if kept else 1.0
        known_pairs = [(pair.inverse, pair.size) for pair in kept]
        known_pairs.append((inverse, algebra.inverse(inverse * size, inverse > 0, known)))
        self._pairs = [
            _Pair(*vectors, *numbers)
            for *vectors, numbers in zip(steps, changes, functionals, known_pairs, strict=True)
        ]


class _Algebra(ABC):
    """Functionals, transport and multiples: of whole points, or module by module. Abstract."""

    @abstractmethod
    def functionals(self, point: Any, vectors: list[Any]) -> list[Any]:
        """Returns <v, .> for tangent vectors v, as something that can be added and multiplied."""

    @abstractmethod
    def applied(self, point: Any, functional: Any, vector: Any) -> Any:
        """Returns the number, or one for each module, that a functional gives for a tangent vector."""

    @abstractmethod
    def scaled(self, factor: Any, vector: Any) -> Any:
        """Multiplies a tangent vector or a functional."""

    @abstractmethod
    def transported(self, point: Any, arrival: Any, vectors: list[Any]) -> list[Any]:
        """Carries tangent vectors from one point to another."""

    @abstractmethod
    def inverse(self, number: Any, where: Any, other: Any) -> Any:
        """Returns 1 / number where a condition holds, and another number elsewhere."""


@final
class _Whole(_Algebra):
    def __init__(self, manifold: Manifold) -> None:
        self._manifold = manifold

    def functionals(self, point: Any, vectors: list[Any]) -> list[Any]:  # noqa: ARG002
        return vectors

    def applied(self, point: Any, functional: Any, vector: Any) -> Any:
        return self._manifold.inner_product(point, functional, vector)

    def scaled(self, factor: Any, vector: Any) -> Any:
        return factor * vector

    def transported(self, point: Any, arrival: Any, vectors: list[Any]) -> list[Any]:
        return [self._manifold.transport(point, arrival, vector) for vector in vectors]

    def inverse(self, number: Any, where: Any, other: Any) -> Any:
        return 1 / number if where else other


@final
class _Modulewise(_Algebra):
    def __init__(self, manifold: TorchManifold) -> None:
        self._manifold = manifold

    def functionals(self, point: Tensor, vectors: list[Tensor]) -> list[Tensor]:
        return list(self._manifold.lower(point, torch.stack(vectors)))

    def applied(self, point: Tensor, functional: Tensor, vector: Tensor) -> Tensor:  # noqa: ARG002
        return frobenius(functional, vector)

    def scaled(self, factor: Tensor, vector: Tensor) -> Tensor:
        return scaled(factor, vector)

    def transported(self, point: Tensor, arrival: Tensor, vectors: list[Tensor]) -> list[Tensor]:
        return list(self._manifold.transport(point, arrival, torch.stack(vectors)))

    def inverse(self, number: Tensor, where: Tensor, other: Any) -> Tensor:
        return torch.where(where, 1 / torch.where(where, number, 1.0), other)


@final
class _Backtracking:
    """Halves a step of one until Armijo's rule holds."""

    def search(
        self, objective: Any, manifold: Manifold, x: Any, d: Any, f0: float, df0: float
    ) -> tuple[float, Any]:
        """Returns the length of the step and the new point (Pymanopt's protocol)."""
        step = 1.0
        arrival = manifold.retraction(x, d)
        while not objective(arrival) <= f0 + _SUFFICIENT_DECREASE * step * df0:
            step /= 2
            if step < _SHORTEST:
                return 0.0, x
            arrival = manifold.retraction(x, step * d)
        return step * manifold.norm(x, d), arrival
