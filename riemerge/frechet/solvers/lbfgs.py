"""Limited-memory BFGS: the inverse Hessian, of every module by itself, and an optimizer for Pymanopt."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self, final

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

    Source: Byrd, Nocedal, Schnabel 1994, eq. 2.6 with an initial matrix; on manifolds Huang, Gallivan, Absil
    2015, with the update skipped where ⟨s, y⟩ is not positive.
    """

    # Of the steps s and the changes y: ⟨sᵢ, yᵢ⟩, or 0 where that is no curvature (K, m), None where there are
    # none; ⟨sᵢ, yⱼ⟩ for i <= j, the identity where one of both is not used (K, m, m); and the size ⟨s, y⟩ /
    # ⟨y, P y⟩ of the newest that is (K,).
    _curved: Tensor | None
    _upper: Tensor
    _size: Tensor

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
        self._rescale = rescale
        self._algebra = _algebra(manifold, point, memory)
        self._gradient = self._lowered = self._algebra.pull(gradient)
        self.forget()

    def narrow(self, modules: Tensor, manifold: TorchManifold) -> Self:
        """Go on with some of the modules of a stack, on the manifold that is theirs."""
        modules = modules.to(self._gradient.device)
        self._algebra.narrow(modules, manifold)
        self._gradient, self._lowered = self._gradient[modules], self._lowered[modules]
        if self._curved is not None:
            self._curved = self._curved[modules]
            self._upper, self._size = self._upper[modules], self._size[modules]
        return self

    def forget(self) -> None:
        """Forget all steps."""
        self._algebra.forget()
        self._curved = None

    def apply(self, point: Any) -> Any:
        """Return H grad, a tangent vector at the current point.

        With the steps S, the changes Y, R the upper triangle of SᵀY, D its diagonal and p = R⁻¹ Sᵀ grad, that
        is v + S R⁻ᵀ (D p - Yᵀ v), v = P (grad - Y p): the two-loop recursion, all its inner products at once.
        """
        algebra, vector = self._algebra, self._gradient
        if self._curved is None:
            return algebra.manifold.to_tangent_space(point, algebra.push(self._precondition(point, vector)))
        used = self._curved > 0
        seen = torch.where(used, algebra.products(point, 0, self._lowered), 0.0).unsqueeze(-1)
        shares = torch.linalg.solve_triangular(self._upper, seen, upper=True).squeeze(-1)
        # Carried vectors too: it changes the turns alone, and those are kept as they are.
        vector = self._precondition(point, algebra.combine(vector, -shares, 1))
        if self._rescale:
            vector = algebra.scale(self._size, vector)
        (lowered,) = algebra.functionals(point, [vector])
        seen = torch.where(used, self._curved * shares - algebra.products(point, 1, lowered), 0.0)
        back = torch.linalg.solve_triangular(self._upper.mT, seen.unsqueeze(-1), upper=False).squeeze(-1)
        return algebra.manifold.to_tangent_space(point, algebra.push(algebra.combine(vector, back, 0)))

    def advance(self, point: Any, step: Any, arrival: Any, gradient: Any) -> None:
        """Make another point the current one, and add the step to it, a tangent vector at the last, with the
        change of the gradient.
        """
        algebra = self._algebra
        step, before = algebra.advance(point, arrival, algebra.pull(step), self._gradient)
        self._gradient = algebra.pull(gradient)
        change = self._gradient - before
        algebra.append(step, change)
        of_step, of_change, self._lowered = algebra.functionals(arrival, [step, change, self._gradient])
        column = algebra.products(arrival, 0, of_change)
        curved = column[:, -1]
        lengths = algebra.apply(arrival, of_change, change) * algebra.apply(arrival, of_step, step)
        used = curved > _LEAST_COSINE * lengths.sqrt()
        if self._curved is None:
            self._size = torch.ones_like(curved)
            self._upper = column.new_zeros(column.shape[0], 0, 0)
            self._curved = column[:, :0]
        # The oldest may have been forgotten.
        over = self._curved.shape[1] + 1 - column.shape[1]
        self._curved = torch.nn.functional.pad(self._curved[:, over:], (0, 1))
        self._curved[:, -1] = torch.where(used, curved, 0.0)
        self._upper = torch.nn.functional.pad(self._upper[:, over:, over:], (0, 1, 0, 1))
        self._upper[..., -1] = torch.where(self._curved > 0, column, 0.0) * used.unsqueeze(-1)
        self._upper[:, -1, -1] = torch.where(used, curved, 1.0)
        if self._rescale:
            shown = algebra.apply(arrival, of_change, self._precondition(arrival, change))
            self._size = torch.where(used, curved / shown, self._size)


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
    """Vectors, functionals and numbers (K,): of whole points, where K is 1, or module by module; and the last
    few pairs of a step and a change. Abstract.

    Args:
        manifold: The manifold of the points.
        memory: How many pairs are kept.
    """

    def __init__(self, manifold: Manifold, memory: int) -> None:
        self.manifold = manifold
        self._memory = memory

    @abstractmethod
    def pull(self, vector: Any) -> Any:
        """Return a tangent vector at the current point as it is kept."""

    @abstractmethod
    def push(self, vector: Any) -> Any:
        """Return a kept vector as a tangent vector at the current point."""

    @abstractmethod
    def advance(self, point: Any, arrival: Any, *vectors: Any) -> Sequence[Any]:
        """Make another point the current one, for the pairs too; return kept vectors as they are kept from
        now on.
        """

    @abstractmethod
    def append(self, step: Any, change: Any) -> None:
        """Keep one more pair, and forget the oldest of too many."""

    @abstractmethod
    def forget(self) -> None:
        """Forget all pairs."""

    @abstractmethod
    def functionals(self, point: Any, vectors: list[Any]) -> Sequence[Any]:
        """Return ⟨v, .⟩ for kept vectors v."""

    @abstractmethod
    def apply(self, point: Any, functional: Any, vector: Any) -> Tensor:
        """Return the numbers (K,) that a functional gives for a kept vector."""

    @abstractmethod
    def products(self, point: Any, place: int, functional: Any) -> Tensor:
        """Return the numbers (K, m) that a functional gives for the steps (place 0) or the changes (1)."""

    @abstractmethod
    def combine(self, vector: Any, factors: Tensor, place: int) -> Any:
        """Add multiples (K, m) of the steps (place 0) or the changes (1) to a kept vector."""

    @abstractmethod
    def scale(self, factor: Tensor, vector: Any) -> Any:
        """Multiply a kept vector."""

    @abstractmethod
    def narrow(self, modules: Tensor, manifold: Any) -> None:
        """Go on with some of the modules, on the manifold that is theirs."""


def _algebra(manifold: Manifold, point: Any, memory: int) -> _Algebra:
    find = getattr(manifold, "carrier", None)
    carrier = find and find(point, memory)
    if carrier is not None:
        return _Carried(manifold, memory, carrier)
    return (_Modulewise if isinstance(manifold, TorchManifold) else _Whole)(manifold, memory)


@final
class _Whole(_Algebra):
    _kept: tuple[list[Any], list[Any]]

    def pull(self, vector: Any) -> Any:
        return vector

    def push(self, vector: Any) -> Any:
        return vector

    def advance(self, point: Any, arrival: Any, *vectors: Any) -> Sequence[Any]:
        move = partial(self.manifold.transport, point, arrival)
        steps, changes = self._kept
        self._kept = [*map(move, steps)], [*map(move, changes)]
        return list(map(move, vectors))

    def append(self, step: Any, change: Any) -> None:
        steps, changes = self._kept
        self._kept = [*steps, step][-self._memory :], [*changes, change][-self._memory :]

    def forget(self) -> None:
        self._kept = [], []

    def functionals(self, point: Any, vectors: list[Any]) -> Sequence[Any]:
        return vectors

    def apply(self, point: Any, functional: Any, vector: Any) -> Tensor:
        number = float(self.manifold.inner_product(point, functional, vector))
        return torch.tensor([number], dtype=torch.float64)

    def products(self, point: Any, place: int, functional: Any) -> Tensor:
        return torch.stack([self.apply(point, functional, vector) for vector in self._kept[place]], dim=-1)

    def combine(self, vector: Any, factors: Tensor, place: int) -> Any:
        for factor, other in zip(factors[0].numpy(), self._kept[place], strict=True):
            vector = vector + factor * other
        return vector

    def scale(self, factor: Tensor, vector: Any) -> Any:
        return factor.item() * vector

    def narrow(self, modules: Tensor, manifold: Any) -> None:
        raise NotImplementedError("a guest's point is one problem")


class _PerModule(_Algebra, ABC):
    """Keeps the steps and the changes, (2, m, K, rows, columns), in a room for twice as many. Abstract."""

    _room: Tensor
    _end: int

    @property
    @final
    def _pairs(self) -> Tensor:
        return self._room[:, max(self._end - self._memory, 0) : self._end]

    @final
    def append(self, step: Tensor, change: Tensor) -> None:
        if self._end == 0:
            self._room = step.new_empty(2, 2 * self._memory, *step.shape)
        if self._end == self._room.shape[1]:
            # One of them is forgotten.
            self._room[:, : self._memory - 1] = self._pairs[:, 1:]
            self._end = self._memory - 1
        self._room[0, self._end], self._room[1, self._end] = step, change
        self._end += 1

    @final
    def forget(self) -> None:
        self._end = 0

    @final
    def apply(self, point: Tensor, functional: Tensor, vector: Tensor) -> Tensor:
        return frobenius(functional, vector)

    @final
    def products(self, point: Tensor, place: int, functional: Tensor) -> Tensor:
        kept = self._pairs[place].flatten(-2).permute(1, 2, 0)
        return (functional.flatten(-2).unsqueeze(-2) @ kept).squeeze(-2).double()

    @final
    def combine(self, vector: Tensor, factors: Tensor, place: int) -> Tensor:
        kept, flat = self._pairs[place].flatten(-2).movedim(0, 1), vector.flatten(-2).unsqueeze(-2)
        return torch.baddbmm(flat, factors.to(flat.dtype).unsqueeze(-2), kept).reshape(vector.shape)

    @final
    def scale(self, factor: Tensor, vector: Tensor) -> Tensor:
        return scale_modules(factor, vector)

    @final
    def functionals(self, point: Tensor, vectors: list[Tensor]) -> Sequence[Tensor]:
        return self.lower(point, torch.stack(vectors)).unbind()

    @abstractmethod
    def lower(self, point: Tensor, vectors: Tensor) -> Tensor:
        """Return ⟨v, .⟩ for a stack of kept vectors v."""

    @final
    def narrow(self, modules: Tensor, manifold: Any) -> None:
        self.manifold = manifold
        self.follow(modules, manifold)
        if self._end:
            # In place: fresh memory of this size takes longer to get than to fill.
            pairs, count = self._pairs, modules.numel()
            for place, module in enumerate(modules.tolist()):
                pairs[:, :, place] = pairs[:, :, module]
            self._room = self._room[:, :, :count]

    @abstractmethod
    def follow(self, modules: Tensor, manifold: Any) -> None:
        """Take note that the batch is smaller."""


@final
class _Modulewise(_PerModule):
    """Keeps vectors at the current point."""

    def pull(self, vector: Any) -> Any:
        return vector

    def push(self, vector: Any) -> Any:
        return vector

    def advance(self, point: Tensor, arrival: Tensor, *vectors: Tensor) -> Sequence[Tensor]:
        kept = [*self._pairs.flatten(0, 1)] if self._end else []
        moved: Tensor = self.manifold.transport(point, arrival, torch.stack([*vectors, *kept]))
        if kept:
            self._pairs.copy_(moved[len(vectors) :].unflatten(0, (2, -1)))
        return moved[: len(vectors)].unbind()

    def lower(self, point: Tensor, vectors: Tensor) -> Tensor:
        lowered: Tensor = self.manifold.riemannian_to_euclidean_gradient(point, vectors)
        return lowered

    def follow(self, modules: Tensor, manifold: Any) -> None:
        pass


@final
class _Carried(_PerModule):
    """Keeps vectors at the first point, as a `Carrier` does; in single precision, which blurs directions
    only, and halves the memory that each of them is read from.
    """

    def __init__(self, manifold: Manifold, memory: int, carrier: Carrier) -> None:
        super().__init__(manifold, memory)
        self._carrier = carrier

    def pull(self, vector: Tensor) -> Tensor:
        return self._carrier.pull(vector)

    def push(self, vector: Tensor) -> Tensor:
        return self._carrier.push(vector)

    def advance(self, point: Tensor, arrival: Tensor, *vectors: Tensor) -> Sequence[Tensor]:
        self._carrier.advance(point, arrival)
        return vectors

    def lower(self, point: Tensor, vectors: Tensor) -> Tensor:
        return self._carrier.functional(vectors)

    def follow(self, modules: Tensor, manifold: Any) -> None:
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
