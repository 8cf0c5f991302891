"""Trust regions, with a radius for every module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from riemerge.frechet.formulation import Point
from riemerge.frechet.solvers.solver import Solver, one_of
from riemerge.frechet.solvers.watch import Watch
from riemerge.manifolds.base import host

# Inner iterations of the subproblem; each costs two passes.
_MAX_INNER = 30
# What is left of the gradient in the model where the subproblem is solved: its own size as a share, which
# makes the method quadratic, between these. Below, differences show nothing but noise: 91 passes for 24.
_FINEST, _COARSEST = 1e-4, 0.1
# Shares of the promised decrease: a step of less is not taken; below and above the next two the radius
# becomes smaller and larger.
_TAKEN, _POOR, _GOOD = 0.1, 0.25, 0.75
# Decreases are compared beside this share of F, which round-off may hide.
_NOISE = 1e3 * torch.finfo(torch.float64).eps
# Radius, against that at the start, at which a module is given up.
_LEAST = 1e-14


class _Step(NamedTuple):
    """A tangent vector, the decrease of F that the model promises for it, and where it ends at the radius."""

    vector: Point
    promised: Tensor
    long: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class TrustRegions(Solver):
    """Trust regions, preconditioned, each module with its own radius.

    Attributes:
        hessian: The second derivative in the model of the cost. `finite_difference`: central differences of
            the gradient, two passes for each product, by truncated conjugate gradients (Steihaug 1983).
            `gauss_newton`: the inverse of the preconditioner, that is Karcher's step, and the curvature over
            the group for alignments; `identity`: the metric itself. Both need no pass: the step is known.
            Passes on the close adapters of `benchmarks.convergence` to a gradient of 1e-6 of that at the
            start: 24, 8 and 8.

    Raises:
        RecipeError: No such model.

    Source: Absil, Baker, Gallivan 2007, alg. 1 and 2.
    """

    hessian: str = one_of("finite_difference", ("finite_difference", "gauss_newton", "identity"))

    def run(self, watch: Watch, start: Point) -> None:
        """Move to the minimum of a model within a radius, as long as that lowers the cost."""
        x, first, radius = start, None, None
        while watch.accept(x):
            x, first, radius = watch.narrow(x, first, radius)
            if first is None or radius is None:
                first = radius = self._length(watch, x)
            taken = torch.zeros_like(watch.active)
            while not bool(taken.any()):
                if watch.spent:
                    break
                x, radius, taken = self._step(watch, x, radius)
                watch.stall((radius <= _LEAST * first).cpu() & ~taken)
                if not bool(watch.active.any()):
                    return
            watch.wait(~taken)

    def _step(self, watch: Watch, x: Point, radius: Tensor) -> tuple[Point, Tensor, Tensor]:
        """Return the next point, radii, and the modules that have moved."""
        before, step = watch.evaluate(x), self._minimise(watch, x, radius)
        if watch.spent:
            return x, radius, torch.zeros_like(watch.active)
        y = watch.move(x, 1.0, step.vector)
        after = watch.evaluate(y)
        noise = _NOISE * before.cost.abs().clamp_min(1)
        share = (before.cost - after.cost + noise) / (step.promised + noise)
        share = share.nan_to_num(nan=0.0, neginf=0.0)
        factor = torch.where(share < _POOR, 0.25, torch.where((share > _GOOD) & step.long, 2.0, 1.0))
        taken = (share > _TAKEN).cpu() & watch.active
        return watch.choose(taken, y, x), radius * factor, taken

    def _length(self, watch: Watch, x: Point) -> Tensor:
        """Return the length of the whole step of the cheap models, at least a hair."""
        gradient = watch.gradient(x)
        descent = self._precondition(watch, x, gradient)
        return watch.inner_products(x, gradient, descent).clamp_min(0).sqrt()

    def _precondition(self, watch: Watch, x: Point, vector: Point) -> Point:
        if self.hessian == "identity":
            return vector
        return watch.precondition(x, vector)

    def _minimise(self, watch: Watch, x: Point, radius: Tensor) -> _Step:
        """Minimise the model within the radius, in the norm of the preconditioner's inverse."""
        gradient = watch.gradient(x)
        if self.hessian == "finite_difference":
            return _truncated_conjugate_gradients(watch, x, gradient, radius)
        descent = self._precondition(watch, x, gradient)
        square = watch.inner_products(x, gradient, descent).clamp_min(0)
        share = (radius / square.sqrt()).clamp(max=1.0).nan_to_num(nan=0.0)
        return _Step(
            watch.form.scale(-share, descent), share * (1 - share / 2) * square, radius <= square.sqrt()
        )


def _truncated_conjugate_gradients(watch: Watch, x: Point, gradient: Point, radius: Tensor) -> _Step:
    """Minimise the model by conjugate gradients, up to the radius or to negative curvature."""

    def dot(a: Point, b: Point) -> Tensor:
        return watch.inner_products(x, a, b)

    scale = watch.form.scale
    step, image, rest = 0 * gradient, 0 * gradient, gradient
    descent = watch.precondition(x, rest)
    decrease = dot(rest, descent)
    direction, length, along, square = (
        -descent,
        torch.zeros_like(decrease),
        torch.zeros_like(decrease),
        decrease,
    )
    start = dot(rest, rest).sqrt()
    goal = start * start.clamp(_FINEST, _COARSEST)
    going, long = start > 0, torch.zeros_like(start, dtype=torch.bool)
    for _ in range(_MAX_INNER):
        if watch.spent or not bool(host(going.any())):
            break
        turned = watch.hessian(x, scale(going.double(), direction))
        bend = dot(direction, turned)
        share = decrease / bend
        beyond = (bend <= 0) | (length + 2 * share * along + share.square() * square >= radius.square())
        to_edge = (
            (along.square() + square * (radius.square() - length).clamp_min(0)).sqrt() - along
        ) / square
        share = torch.where(going, torch.where(beyond, to_edge, share), 0.0)
        long = long | (going & beyond)
        step, image = step + scale(share, direction), image + scale(share, turned)
        rest = rest + scale(share, turned)
        length = length + 2 * share * along + share.square() * square
        going = going & ~beyond & (dot(rest, rest).sqrt() > goal)
        descent = watch.precondition(x, rest)
        last, decrease = decrease, dot(rest, descent)
        beta = torch.where(going, decrease / last, 0.0)
        direction = scale(beta, direction) - descent
        along, square = beta * (along + share * square), decrease + beta.square() * square
    return _Step(step, -dot(gradient, step) - dot(step, image) / 2, long)
