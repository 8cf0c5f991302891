"""A solver of one's own: Barzilai and Borwein's step, one for each module, without a line search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from riemerge.solvers import Solver


@final
@dataclass(frozen=True, kw_only=True)
class BarzilaiBorwein(Solver):
    """Descends by steps s ‖g‖² / |⟨g, y⟩| of the last step s, the last gradient g and its change y.

    Source: Barzilai and Borwein 1988; Iannazzo and Porcelli 2018 (on manifolds).

    Attributes:
        longest: Longest step, relative to the gradient.
    """

    longest: float = 4.0

    def run(self, watch: Any, start: Any) -> None:
        """Move from point to point until the watch ends it."""
        x, gradient, step = start, watch.gradient(start), 1.0
        while watch.accept(x):
            arrival = watch.move(x, -step, gradient)
            before, after = watch.transport(x, arrival, gradient), watch.gradient(arrival)
            bend = watch.inner_products(arrival, before, after - before).abs()
            step = (step * watch.inner_products(arrival, before, before) / bend).nan_to_num(nan=1.0)
            x, gradient, step = arrival, after, step.clamp(0.1, self.longest)
