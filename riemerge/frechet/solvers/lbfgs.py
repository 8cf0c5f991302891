"""Limited-memory BFGS: the inverse Hessian, of every module by itself, and an optimizer for Pymanopt."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Self, final

import numpy as np
import torch
from pymanopt import Problem
from pymanopt.manifolds.manifold import Manifold
from pymanopt.optimizers.optimizer import Optimizer, OptimizerResult
from torch import Tensor

from riemerge.frechet.low_rank.carrier import Carrier
from riemerge.linalg import frobenius, scale_modules
from riemerge.manifolds.base import TorchManifold
from riemerge.manifolds.guests.guarded import guard, is_finite

# A pair of step and change of the gradient is used where it shows positive curvature by at least this cosine.
_LEAST_COSINE = 1e-6
_SUFFICIENT_DECREASE = 1e-4
_SHORTEST = 1e-12


class _Pair(NamedTuple):
    """A step s, the change y of the gradient along it, both as functionals, 1 / ⟨s, y⟩, or 0 where that is no
    curvature, and the size ⟨s, y⟩ / ⟨y, P y⟩ of the inverse Hessian that it shows.
    """

    step: Any
    change: Any
    of_step: Any
    of_change: Any
    inverse: Any
    size: Any


@final
class InverseHessian:
    """The BFGS approximation H of an inverse Hessian, from the last few steps and changes of the gradient,
    which are carried along by the manifold's transport.

    On the torch manifolds of this package all inner products, and so H, are of each module by itself.

    Args:
        manifold: The manifold.
        precondition: What H is without steps: a map of a point and a tangent vector.
        point: The first point.
        gradient: The gradient there.
        memory: How many pairs of steps and changes are kept.
        rescale: Multiply the preconditioner by the size of the inverse Hessian that the newest pair shows.
            Not for a preconditioner that is of the Hessian's size already.

    Source: Nocedal, Wright 2006, alg. 7.4; on manifolds Huang, Gallivan, Absil 2015, with the update skipped
    where ⟨s, y⟩ is not positive.
    """

    def __init__(
        self,
        manifold: Manifold,
        precondition: Callable[[Any, Any], Any],
        point: Any,
        gradient: Any,
        *,
        memory: int,
        rescale: bool,
    ) -> None:
        self._precondition = precondition
        self._memory = memory
        self._rescale = rescale
        self._algebra = _algebra(manifold, point, memory)
        self._gradient = self._algebra.pull(gradient)
        self._pairs: list[_Pair] = []

    def narrow(self, modules: Tensor, manifold: TorchManifold) -> Self:
        """Go on with some of the modules of a stack, on the manifold that is theirs."""
        self._pairs = [
            _Pair(*(None if part is None else part[modules.to(part.device)] for part in pair))
            for pair in self._pairs
        ]
        self._algebra.narrow(modules, manifold)
        self._gradient = self._gradient[modules.to(self._gradient.device)]
        return self

    def forget(self) -> None:
        """Forget all steps."""
        self._pairs = []

    def apply(self, point: Any) -> Any:
        """Return H grad, a tangent vector at the current point, by the two-loop recursion."""
        algebra, vector = self._algebra, self._gradient
        shares = []
        for pair in reversed(self._pairs):
            share = pair.inverse * algebra.apply(point, pair.of_step, vector)
            vector = algebra.add(vector, -share, pair.change)
            shares.append(share)
        # Carried vectors too: it changes the turns alone, and those are kept as they are.
        vector = self._precondition(point, vector)
        if self._pairs and self._rescale:
            vector = algebra.scale(self._pairs[-1].size, vector)
        for pair, share in zip(self._pairs, reversed(shares), strict=True):
            back = pair.inverse * algebra.apply(point, pair.of_change, vector)
            vector = algebra.add(vector, share - back, pair.step)
        return algebra.manifold.to_tangent_space(point, algebra.push(vector))

    def advance(self, point: Any, step: Any, arrival: Any, gradient: Any) -> None:
        """Make another point the current one, and add the step to it, a tangent vector at the last, with the
        change of the gradient.
        """
        algebra = self._algebra
        kept = self._pairs[max(len(self._pairs) - self._memory + 1, 0) :]
        old = [part for pair in kept for part in (pair.step, pair.change)]
        step, before, *old = algebra.advance(point, arrival, [algebra.pull(step), self._gradient, *old])
        self._gradient = algebra.pull(gradient)
        change = self._gradient - before
        known = [part for pair in kept for part in (pair.of_step, pair.of_change)]
        known = algebra.renew(arrival, known, old)
        of_step, of_change = algebra.functionals(arrival, [step, change])
        curved = algebra.apply(arrival, of_change, step)
        lengths = algebra.apply(arrival, of_change, change) * algebra.apply(arrival, of_step, step)
        inverse = algebra.invert(curved, curved > _LEAST_COSINE * lengths**0.5, 0.0)
        size = None
        if self._rescale:
            conditioned = self._precondition(arrival, change)
            shown = inverse * algebra.apply(arrival, of_change, conditioned)
            size = algebra.invert(shown, inverse > 0, kept[-1].size if kept else 1.0)
        self._pairs = [
            _Pair(s, y, f, g, pair.inverse, pair.size)
            for s, y, f, g, pair in zip(old[::2], old[1::2], known[::2], known[1::2], kept, strict=True)
        ]
        self._pairs.append(_Pair(step, change, of_step, of_change, inverse, size))


@final
class LBFGSOptimizer(Optimizer):  # type: ignore[misc]
    """Limited-memory BFGS for any Pymanopt problem: moves along -H grad, H an `InverseHessian` that starts
    from the problem's preconditioner.

    Args:
        memory: How many pairs of steps and changes are kept.
        line_searcher: Pymanopt's protocol; by default backtracking from a step of one, which Pymanopt's own
            do not try.
        rescale: Multiply the preconditioner by the size of the inverse Hessian that the newest pair shows.
            Not for a preconditioner that is of the Hessian's size already.
        kwargs: Options of Pymanopt's `Optimizer`.
    """

    def __init__(
        self, *, memory: int = 20, line_searcher: Any = None, rescale: bool = True, **kwargs: Any
    ) -> None:
        if memory < 1:
            raise ValueError(f"LBFGSOptimizer: memory is {memory}; at least 1 is needed")
        super().__init__(**kwargs)
        self._memory = memory
        self._rescale = rescale
        self._line_searcher = _Backtracking() if line_searcher is None else line_searcher

    def run(self, problem: Problem, *, initial_point: Any = None, **kwargs: Any) -> OptimizerResult:
        """Iterate until one of the optimizer's own stopping rules holds."""
        manifold = guard(problem.manifold)
        searcher: Any = copy.deepcopy(self._line_searcher)
        point = manifold.random_point() if initial_point is None else initial_point
        began = time.time()
        self._initialize_log(optimizer_parameters={"memory": self._memory})
        cost, gradient = problem.cost(point), problem.riemannian_gradient(point)
        options: dict[str, Any] = {"memory": self._memory, "rescale": self._rescale}
        inverse = InverseHessian(manifold, problem.preconditioner, point, gradient, **options)
        step_size, iteration = np.inf, 0
        while True:
            norm = manifold.norm(point, gradient)
            iteration += 1
            self._add_log_entry(iteration=iteration, point=point, cost=cost, gradient_norm=norm)
            reason = self._check_stopping_criterion(
                start_time=began, step_size=step_size, gradient_norm=norm, iteration=iteration
            )
            if reason:
                break
            direction = -inverse.apply(point)
            slope = manifold.inner_product(point, gradient, direction)
            if not slope < 0:
                inverse.forget()
                direction, slope = -gradient, -manifold.inner_product(point, gradient, gradient)
            step_size, arrival = searcher.search(problem.cost, manifold, point, direction, cost, slope)
            length = manifold.norm(point, direction)
            step = step_size / length * direction if length > 0 else direction
            cost, gradient = problem.cost(arrival), problem.riemannian_gradient(arrival)
            inverse.advance(point, step, arrival, gradient)
            point = arrival
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


class _Algebra(ABC):
    """Vectors, functionals and numbers of the recursion: of whole points, or module by module. Abstract.

    Args:
        manifold: The manifold of the points.
    """

    def __init__(self, manifold: Manifold) -> None:
        self.manifold = manifold

    @abstractmethod
    def pull(self, vector: Any) -> Any:
        """Return a tangent vector at the current point as it is kept."""

    @abstractmethod
    def push(self, vector: Any) -> Any:
        """Return a kept vector as a tangent vector at the current point."""

    @abstractmethod
    def advance(self, point: Any, arrival: Any, vectors: list[Any]) -> list[Any]:
        """Make another point the current one; return kept vectors as they are kept from now on."""

    @abstractmethod
    def functionals(self, point: Any, vectors: list[Any]) -> list[Any]:
        """Return ⟨v, .⟩ for kept vectors v."""

    @abstractmethod
    def renew(self, point: Any, functionals: list[Any], vectors: list[Any]) -> list[Any]:
        """Return the functionals of kept vectors at a new point, given those at the last."""

    @abstractmethod
    def apply(self, point: Any, functional: Any, vector: Any) -> Any:
        """Return the number, or one for each module, that a functional gives for a kept vector."""

    @abstractmethod
    def scale(self, factor: Any, vector: Any) -> Any:
        """Multiply a kept vector."""

    @abstractmethod
    def add(self, vector: Any, factor: Any, other: Any) -> Any:
        """Add a multiple of a kept vector to another one."""

    @abstractmethod
    def invert(self, number: Any, where: Any, other: Any) -> Any:
        """Return 1 / number where a condition holds, and another number elsewhere."""

    @abstractmethod
    def narrow(self, modules: Tensor, manifold: Any) -> None:
        """Go on with some of the modules, on the manifold that is theirs."""


def _algebra(manifold: Manifold, point: Any, memory: int) -> _Algebra:
    find = getattr(manifold, "carrier", None)
    carrier = find and find(point, memory)
    if carrier is not None:
        return _Carried(manifold, carrier)
    return _Modulewise(manifold) if isinstance(manifold, TorchManifold) else _Whole(manifold)


class _Transported(_Algebra, ABC):
    """Keeps vectors at the current point. Abstract."""

    @final
    def pull(self, vector: Any) -> Any:
        return vector

    @final
    def push(self, vector: Any) -> Any:
        return vector

    @final
    def renew(self, point: Any, functionals: list[Any], vectors: list[Any]) -> list[Any]:
        return self.functionals(point, vectors) if vectors else []

    @final
    def narrow(self, modules: Tensor, manifold: Any) -> None:
        self.manifold = manifold


@final
class _Whole(_Transported):
    def advance(self, point: Any, arrival: Any, vectors: list[Any]) -> list[Any]:
        return [self.manifold.transport(point, arrival, vector) for vector in vectors]

    def functionals(self, point: Any, vectors: list[Any]) -> list[Any]:
        return vectors

    def apply(self, point: Any, functional: Any, vector: Any) -> Any:
        return self.manifold.inner_product(point, functional, vector)

    def scale(self, factor: Any, vector: Any) -> Any:
        return factor * vector

    def add(self, vector: Any, factor: Any, other: Any) -> Any:
        return vector + factor * other

    def invert(self, number: Any, where: Any, other: Any) -> Any:
        return 1 / number if where else other


class _PerModule(_Algebra, ABC):
    """Has a number for each module. Abstract."""

    @final
    def apply(self, point: Tensor, functional: Tensor, vector: Tensor) -> Tensor:
        return frobenius(functional, vector)

    @final
    def scale(self, factor: Tensor, vector: Tensor) -> Tensor:
        return scale_modules(factor, vector)

    @final
    def add(self, vector: Tensor, factor: Tensor, other: Tensor) -> Tensor:
        return torch.addcmul(vector, factor.to(vector.dtype)[..., None, None], other)

    @final
    def invert(self, number: Tensor, where: Tensor, other: Any) -> Tensor:
        return torch.where(where, 1 / torch.where(where, number, 1.0), other)


@final
class _Modulewise(_Transported, _PerModule):
    def advance(self, point: Tensor, arrival: Tensor, vectors: list[Tensor]) -> list[Tensor]:
        return list(self.manifold.transport(point, arrival, torch.stack(vectors)))

    def functionals(self, point: Tensor, vectors: list[Tensor]) -> list[Tensor]:
        return list(self.manifold.riemannian_to_euclidean_gradient(point, torch.stack(vectors)))


@final
class _Carried(_PerModule):
    """Keeps vectors at the first point, as a `Carrier` does; in single precision, which blurs directions
    only, and halves the memory that each of them is read from.
    """

    def __init__(self, manifold: Manifold, carrier: Carrier) -> None:
        super().__init__(manifold)
        self._carrier = carrier

    def pull(self, vector: Tensor) -> Tensor:
        return self._carrier.pull(vector)

    def push(self, vector: Tensor) -> Tensor:
        return self._carrier.push(vector)

    def advance(self, point: Tensor, arrival: Tensor, vectors: list[Tensor]) -> list[Tensor]:
        self._carrier.advance(point, arrival)
        return vectors

    def functionals(self, point: Tensor, vectors: list[Tensor]) -> list[Tensor]:
        return [self._carrier.functional(vector) for vector in vectors]

    def renew(self, point: Tensor, functionals: list[Tensor], vectors: list[Tensor]) -> list[Tensor]:
        return functionals

    def narrow(self, modules: Tensor, manifold: Any) -> None:
        self.manifold = manifold
        self._carrier.narrow(modules, manifold)


@final
class _Backtracking:
    """Halves a step of one until Armijo's rule holds."""

    def search(
        self, objective: Any, manifold: Manifold, x: Any, d: Any, f0: float, df0: float
    ) -> tuple[float, Any]:
        """Return the length of the step and the new point (Pymanopt's protocol)."""
        step = 1.0
        arrival = manifold.retraction(x, d)
        while not _cost(objective, arrival) <= f0 + _SUFFICIENT_DECREASE * step * df0:
            step /= 2
            if step < _SHORTEST:
                return 0.0, x
            arrival = manifold.retraction(x, step * d)
        return step * manifold.norm(x, d), arrival


def _cost(objective: Any, point: Any) -> Any:
    """Return the cost of a trial, +inf where a step has left the set and linear algebra fails."""
    if not isinstance(point, Tensor) and not is_finite(point):
        return np.inf
    try:
        return objective(point)
    except np.linalg.LinAlgError:
        return np.inf
