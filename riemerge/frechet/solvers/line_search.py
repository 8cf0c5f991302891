"""A line search that gives every module its own step."""

from __future__ import annotations

from typing import Any, Self, final

import numpy as np
import torch
from pymanopt.manifolds.manifold import Manifold

from riemerge.frechet.formulation import Evaluation, Point
from riemerge.frechet.search import Search
from riemerge.frechet.solvers.monitor import Monitor
from riemerge.manifolds.base import host

_MAX_TRIALS = 25
_SUFFICIENT_DECREASE = 1e-4
# A decrease of F can be seen where this share of what the slope promises is above so many units of
# round-off of F; below, the gradient decides.
_VISIBLE, _NOISE = 0.1, 10


@final
class ModulewiseLineSearcher:
    """Backtracks from a step of one, module by module, for L-BFGS and for Pymanopt's optimizers.

    Weights sum to one, so the Hessian is near the identity and one is the right first step; Pymanopt's own
    searches start at 1/‖d‖ with one step for the whole stack, and stall at a gradient of sqrt(eps F). A step
    is accepted by Armijo's rule while the decrease it predicts is visible in F, and below that if the
    gradient does not grow. A module whose direction does not descend (the conjugate gradient's beta is one
    number for all modules), or along whose last direction nothing was accepted, takes its negative gradient
    instead; one in which nothing is accepted along that either is frozen.

    Args:
        problem: The problem that is solved; its memory makes the accepted trial the optimizer's next iterate
            at no cost.
        monitor: The monitor, which freezes modules.
        longest: Longest first step. Above one, the minimum of the parabola through the last step's costs is
            tried first: conjugate gradients need that, and directions that know the curvature do not.
        freeze: Freeze a module in which nothing is accepted. Without it the module waits for a better
            direction.
    """

    def __init__(
        self, problem: Search, monitor: Monitor, *, longest: float = 1.0, freeze: bool = True
    ) -> None:
        self._problem = problem
        self._monitor = monitor
        self._longest = longest
        self._freeze = freeze
        self._first = torch.ones(1, dtype=torch.float64, device="cpu")
        self._failed = torch.zeros(0, dtype=torch.bool, device="cpu")
        self.moved: Point = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return this searcher: Pymanopt copies them at every run, but this one is a view of its problem."""
        return self

    def search(
        self,
        objective: Any,
        manifold: Manifold,
        x: Point,
        d: Point,
        f0: float,
        df0: float,
    ) -> tuple[float, Point]:
        """Return the length of the step and the new point (Pymanopt's protocol); `moved` is the step."""
        self._monitor.narrow()
        problem, form = self._problem, self._problem.form
        before = problem.evaluate(x)
        d = self._monitor.mask_frozen(x, d)
        slope = form.inner_products(x, before.gradient, d)
        active = self._monitor.active.to(slope.device)
        failed = self._failed if self._failed.shape == active.shape else torch.zeros_like(active)
        ascending = active & (~(slope < 0) | failed)
        if bool(host(ascending.any())):
            d = form.choose(ascending, -before.gradient, d)
            slope = torch.where(ascending, -before.norms.square(), slope)
        step = torch.where(active, self._first.to(slope.device), 0.0)
        pending = active
        point, after = x, before
        for _ in range(_MAX_TRIALS):
            point = form.move(x, step, d)
            after = self._monitor.evaluate(point)
            noise = _noise(before)
            visible = -_VISIBLE * step * slope > noise
            armijo = after.cost <= before.cost + _SUFFICIENT_DECREASE * step * slope
            calm = (after.norms <= before.norms) & (after.cost <= before.cost + noise)
            pending = active & ~torch.where(visible, armijo, calm)
            if not bool(host(pending.any())):
                break
            step = torch.where(pending, step * _shrink(before.cost, after.cost, step * slope), step)
        else:
            step = torch.where(pending, torch.zeros_like(step), step)
            if self._freeze:
                self._monitor.stall(pending & failed)
            point = form.move(x, step, d)
        self._failed = pending
        if self._longest > 1:
            self._first = _minimum(before.cost, after.cost, step, slope).clamp(1, self._longest)
        self.moved = form.scale(step, d)
        return float(np.sqrt(host((form.inner_products(x, d, d) * step.square()).sum()))), point


def _noise(before: Evaluation) -> torch.Tensor:
    """Return by how much costs near a point may be off, through round-off."""
    fine = _NOISE * torch.finfo(torch.float64).eps * before.cost.abs().clamp_min(1)
    if before.coarse is None:
        return fine
    return torch.where(before.coarse, torch.finfo(torch.float32).eps * before.cost.abs(), fine)


def _minimum(
    before: torch.Tensor, after: torch.Tensor, step: torch.Tensor, slope: torch.Tensor
) -> torch.Tensor:
    """Return the step to the minimum of the parabola through both costs and the slope; 1 where round-off
    hides it.
    """
    bend = after - before - step * slope
    visible = bend > 1e-10 * before.abs()
    return torch.where(visible, -slope * step.square() / (2 * bend), 1.0)


def _shrink(before: torch.Tensor, after: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Return the factor to the minimum of the parabola through both costs and the slope, within [0.1,
    0.5].
    """
    factor = -slope / (2 * (after - before - slope))
    return torch.nan_to_num(factor, nan=0.1).clamp(0.1, 0.5)
