"""Rows of the table on one module's updates, given in the row's domain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riemerge.methods import METHODS, Method, Options
from riemerge.methods.batches import solve
from riemerge.methods.engine import Row
from riemerge.methods.geometries.geometry import Solved, Steps
from riemerge.methods.setting import Answer, Setting
from riemerge.updates import Cores

_SOLVER = {"tol", "cost_tol", "max_passes"}


class Alone:
    """A row as a function of one module's updates, which is solved by itself."""

    def __init__(self, method: Method) -> None:
        self.row = Row.of(method)

    def __call__(self, x: Any, at: Setting) -> Answer:
        for edit in self.row.edits:
            x = edit(x, at)
        if isinstance(x, Tensor) and self.row.domain(at.values) == "cores":
            x = Cores.of_stack(x)
        return self.settle(self.row.mean(x, at), at)

    def settle(self, steps: Steps, at: Setting) -> Answer:
        """Solve, one after the other, what the steps of a mean place."""
        options = Options(**{name: at.values[name] for name in _SOLVER & at.values.keys()})
        solved: Solved | None = None
        passes = 0
        while True:
            try:
                placed = steps.send(solved)  # type: ignore[arg-type]
            except StopIteration as end:
                value, found = end.value
                passes = found.passes or passes
                return Answer(value, found.status, found.advice, passes, found.cost, found.gradient_norm)
            (solved,) = solve([self.row.task(placed, at)], self.row.solver, options, done=0, total=1)
            passes += solved.evidence.passes


def answer_of(name: str, x: Tensor, weights: list[float], **values: Any) -> Answer:
    """What a row answers for one module, at its defaults where no value is given."""
    row = METHODS[name]
    shape = tuple(x.shape[1:])
    at = Setting("layer", torch.tensor(weights, dtype=torch.float64), {**row.defaults, **values}, shape)
    return Alone(row)(x, at)
