"""A line search that gives every module its own step."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from riemerge.frechet.formulation import Evaluation, Point
from riemerge.frechet.solvers.watch import Watch
from riemerge.manifolds.base import TorchManifold, host

_MAX_TRIALS = 25
_SUFFICIENT_DECREASE = 1e-4
# A decrease of F can be seen where this share of what the slope promises is above so many units of
# round-off of F; below, the gradient decides.
_VISIBLE, _NOISE = 0.1, 10
# Longest first step, and by how much steps may grow.
_LONGEST = 4.0


@final
class LineSearch:
    """Backtracks from a step of one, module by module.

    Weights sum to one, so the Hessian is near the identity and one is the right first step; Pymanopt's own
    searches start at 1/‖d‖ with one step for the whole stack, and stall at a gradient of sqrt(eps F). A step
    is accepted by Armijo's rule while the decrease it predicts is visible in F, and below that if the
    gradient does not grow. A module whose direction does not descend, or along whose last direction nothing
    was accepted, takes its negative gradient instead; one in which nothing is accepted along that either is
    frozen.

    Args:
        watch: The watch of the solve.
        flat: For directions that do not know the curvature: the next step begins with the minimum of the
            parabola through the slopes at both ends of the last. Where the slope at an accepted step is above
            this share of the first, that minimum is tried at once, one time.
    """

    def __init__(self, watch: Watch, *, flat: float | None = None) -> None:
        self._watch = watch
        self._flat = flat
        self._first = torch.ones(1, dtype=torch.float64, device="cpu")
        self._failed = torch.zeros(1, dtype=torch.bool, device="cpu")

    def narrow(self, modules: Tensor, manifold: TorchManifold) -> LineSearch:
        """Return a search for some of the modules, which begins anew."""
        return LineSearch(self._watch, flat=self._flat)

    def step(self, x: Point, d: Point) -> tuple[Point, Tensor, Point]:
        """Return the new point, the steps (K,), and the direction that was taken in the end; x itself, and
        zero, where the budget was spent on trials.
        """
        watch, form = self._watch, self._watch.form
        before = watch.evaluate(x)
        d = watch.mask_frozen(x, d)
        slope = form.inner_products(x, before.gradient, d)
        active = watch.active.to(slope.device)
        failed = self._failed.to(slope.device)
        ascending = active & (~(slope < 0) | failed)
        if bool(host(ascending.any())):
            d = form.choose(ascending, -before.gradient, d)
            slope = torch.where(ascending, -before.norms.square(), slope)
        step = torch.where(active, self._first.to(slope.device), 0.0)
        pending, zero = active, torch.ones_like(step)
        for trial in range(_MAX_TRIALS):
            point = form.move(x, step, d)
            if watch.spent:
                return x, torch.zeros_like(step), d
            after = watch.evaluate(point)
            noise = _noise(before)
            visible = -_VISIBLE * step * slope > noise
            armijo = after.cost <= before.cost + _SUFFICIENT_DECREASE * step * slope
            calm = (after.norms <= before.norms) & (after.cost <= before.cost + noise)
            pending = active & ~torch.where(visible, armijo, calm)
            factor = torch.where(pending, _shrink(before.cost, after.cost, step * slope), 1.0)
            if self._flat is not None:
                end = form.inner_products(point, after.gradient, watch.transport(x, point, d))
                zero = torch.where(end > slope, slope / (slope - end), _LONGEST).nan_to_num(nan=1.0)
                if trial == 0:
                    steep = visible & ~pending & (end.abs() > self._flat * slope.abs())
                    factor = torch.where(steep, zero.clamp(0.1, _LONGEST), factor)
            if not bool(host((factor != 1).any())):
                break
            step = step * factor
        else:
            step = torch.where(pending, torch.zeros_like(step), step)
            watch.stall(pending & failed)
            watch.wait(pending)
            point = form.move(x, step, d)
        self._failed = pending
        if self._flat is not None:
            # Where steps need not be exact long ones are better: descent along gradients zigzags the less.
            self._first = (step * zero).clamp(min(1.0, self._flat), _LONGEST)
        return point, step, d


def _noise(before: Evaluation) -> Tensor:
    """Return by how much costs near a point may be off, through round-off."""
    fine = _NOISE * torch.finfo(torch.float64).eps * before.cost.abs().clamp_min(1)
    if before.coarse is None:
        return fine
    return torch.where(before.coarse, torch.finfo(torch.float32).eps * before.cost.abs(), fine)


def _shrink(before: Tensor, after: Tensor, slope: Tensor) -> Tensor:
    """Return the factor to the minimum of the parabola through both costs and the slope, within [0.1,
    0.5].
    """
    factor = -slope / (2 * (after - before - slope))
    return torch.nan_to_num(factor, nan=0.1).clamp(0.1, 0.5)
