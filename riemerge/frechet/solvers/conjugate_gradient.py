"""Conjugate gradients, with a share of the last direction and a step for every module."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from riemerge.frechet.formulation import Point
from riemerge.frechet.solvers.line_search import LineSearch
from riemerge.frechet.solvers.solver import Solver, one_of
from riemerge.frechet.solvers.watch import Watch

# Share of its first slope at which a step is near enough to the minimum. At 0.1 and one trial more, two
# passes a step, fewer passes in all than at 0.3, 0.5 or without (208 to 238).
_FLAT = 0.1
# A module starts anew where gradients in a row are less orthogonal than this (Powell 1977).
_ORTHOGONAL = 0.2
# The least share of Hager and Zhang's rule is bounded by this length of a gradient.
_HAGER_ZHANG = 0.01


class _Turn(NamedTuple):
    """A step from one point to the next, all vectors carried to the next.

    Attributes:
        dot: The metric of two vectors, (K,).
        gradient: g.
        descent: P g, with P the preconditioner.
        change: g minus the last gradient.
        descent_change: P g minus the last such.
        direction: The last direction d.
        slope: ⟨last g, d⟩.
        decrease: ⟨last g, P last g⟩.
        norm: ‖last g‖.
    """

    dot: Callable[[Any, Any], Tensor]
    gradient: Point
    descent: Point
    change: Point
    descent_change: Point
    direction: Point
    slope: Tensor
    decrease: Tensor
    norm: Tensor


def _fletcher_reeves(turn: _Turn) -> Tensor:
    return turn.dot(turn.gradient, turn.descent) / turn.decrease


def _polak_ribiere(turn: _Turn) -> Tensor:
    return (turn.dot(turn.change, turn.descent) / turn.decrease).clamp_min(0)


def _hestenes_stiefel(turn: _Turn) -> Tensor:
    bend = turn.dot(turn.change, turn.direction)
    return (turn.dot(turn.change, turn.descent) / bend).clamp_min(0)


def _hager_zhang(turn: _Turn) -> Tensor:
    bend = turn.dot(turn.change, turn.direction)
    share = turn.dot(turn.change, turn.descent_change) / bend
    beta = (turn.dot(turn.change, turn.descent) - 2 * share * turn.dot(turn.direction, turn.gradient)) / bend
    length = turn.dot(turn.direction, turn.direction).sqrt()
    return torch.maximum(beta, -1 / (length * turn.norm.clamp(max=_HAGER_ZHANG)))


def _liu_storey(turn: _Turn) -> Tensor:
    share = torch.minimum(turn.dot(turn.change, turn.descent), turn.dot(turn.gradient, turn.descent))
    return (share / -turn.slope).clamp_min(0)


Rule: TypeAlias = Callable[[_Turn], Tensor]

_RULES: dict[str, Rule] = {
    "FletcherReeves": _fletcher_reeves,
    "PolakRibiere": _polak_ribiere,
    "HestenesStiefel": _hestenes_stiefel,
    "HagerZhang": _hager_zhang,
    "LiuStorey": _liu_storey,
}
_RULES |= {re.sub(r"\B([A-Z])", r"_\1", name).lower(): rule for name, rule in _RULES.items()}


@final
@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(Solver):
    """Preconditioned conjugate gradients, each module with its own β, its own restarts and its own steps.

    The direction is -P g + β d, with d the last one, carried along; -P g alone where that does not descend,
    and where gradients in a row are far from orthogonal (Powell 1977). Steps are near the minimum along d,
    without which they are not conjugate.

    Passes of HestenesStiefel to a gradient of 1e-6 of that at the start, on the families shared_subspace and
    lora_like and on two real modules of `benchmarks.convergence`: 111, 166 and 95; Pymanopt's, with the same
    preconditioner but one β and one step for all modules, 131, 184 and 120.

    Attributes:
        beta: Rule for the share of the last direction: `FletcherReeves`, `PolakRibiere`, `HestenesStiefel`,
            `HagerZhang` or `LiuStorey`, or the same in lower case with underscores.

    Raises:
        RecipeError: No such rule.

    Source: Hager, Zhang 2006, tab. 1.1 and eq. 7.1; on manifolds Sato 2022.
    """

    beta: str = one_of("HestenesStiefel", _RULES)

    def run(self, watch: Watch, start: Point) -> None:
        """Move along conjugate directions."""
        x, search, rule = start, LineSearch(watch, flat=_FLAT), _RULES[self.beta]
        if not watch.accept(x):
            return
        gradient = watch.gradient(x)
        descent = watch.precondition(x, gradient)
        direction = -descent
        while True:
            x, search, gradient, descent, direction = watch.narrow(x, search, gradient, descent, direction)
            y, _, direction = search.step(x, direction)
            if not watch.accept(y):
                return
            slope, decrease, square = (
                watch.inner_products(x, gradient, v) for v in (direction, descent, gradient)
            )
            before, old_descent, direction = (
                watch.transport(x, y, v) for v in (gradient, descent, direction)
            )
            gradient = watch.gradient(y)
            descent = watch.precondition(y, gradient)

            def dot(a: Point, b: Point, at: Point = y) -> Tensor:
                return watch.inner_products(at, a, b)

            turn = _Turn(
                dot,
                gradient,
                descent,
                gradient - before,
                descent - old_descent,
                direction,
                slope,
                decrease,
                square.sqrt(),
            )
            beta = rule(turn).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            parallel = dot(before, descent).abs() >= _ORTHOGONAL * dot(gradient, descent)
            direction = watch.form.scale(torch.where(parallel, 0.0, beta), direction) - descent
            descending = dot(gradient, direction) < 0
            direction = watch.form.choose(descending, direction, -descent)
            x = y
