"""A solver of one's own: Barzilai and Borwein's step, one for each module, without a line search."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn, final

from pymanopt.optimizers.optimizer import Optimizer

from riemerge.solvers import Guest


@final
class BarzilaiBorwein(Optimizer):
    """Descends by step lengths s = ⟨m, m⟩ / |⟨m, y⟩| of the last move m and the change y of the gradient.

    riemerge stops it from outside, by its tolerances and budgets. Source: Barzilai and Borwein 1988; Iannazzo
    and Porcelli 2018 (on manifolds).
    """

    def run(self, problem: Any, *, initial_point: Any = None, **options: Any) -> NoReturn:
        """Move from point to point until riemerge ends it."""
        manifold, point, step = problem.manifold, initial_point, 1.0
        gradient = problem.riemannian_gradient(point)
        while True:
            move, start, before = -step * gradient, point, gradient
            point = manifold.retraction(start, move)
            gradient = problem.riemannian_gradient(point)  # riemerge looks here, and ends the loop
            move, before = (manifold.transport(start, point, vector) for vector in (move, before))
            bend = manifold.inner_products(point, move, gradient - before).abs()
            step = manifold.inner_products(point, move, move) / bend
            step = step.nan_to_num(nan=1.0).clamp(0.1, 4.0)[:, None, None]


barzilai_borwein = partial(Guest, optimizer=BarzilaiBorwein())
