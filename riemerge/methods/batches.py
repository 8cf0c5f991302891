"""Solving the Fréchet means of many modules: those of one kind in blocks, blocks on several threads."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from riemerge.frechet import Problem, Solution, frechet_mean
from riemerge.frechet.loss import as_loss
from riemerge.frechet.solvers.catalogue import as_solver
from riemerge.frechet.starts import draw_start
from riemerge.manifolds import GeodesicManifold, TorchManifold
from riemerge.manifolds.base import Reduction, identity
from riemerge.methods.fingerprint import fingerprint
from riemerge.methods.geometries.geometry import Placed, Solved
from riemerge.methods.stack import Evidence, Options
from riemerge.methods.threads import in_order
from riemerge.progress import Progress

# Modules solved together on a CPU: at most so many, and no more than so few together where that spreads them
# over two threads. Whatever the threads are: the bits of a solve depend on who is solved beside it, and must
# not depend on them. Larger blocks spread the cost of Python over more modules, which also holds threads up.
_BLOCK, _FEW = 64, 8
# The bound on the relative decrease of the cost at which those that go to one place are there.
_SETTLED = 1e-6
# Options that `frechet_mean` has a default for where a recipe has no value.
_GIVEN = ("tol", "cost_tol", "max_passes")


@final
@dataclass(frozen=True, eq=False)
class Task:
    """The problem of one module.

    Attributes:
        placed: The points on their manifold.
        weights: The T weights of the points.
        loss: The loss, in words.
        starts: Number of starts to solve from; the best counts.
    """

    placed: Placed
    weights: Tensor
    loss: str = "square"
    starts: int = 1

    @cached_property
    def unit(self) -> float:
        """Length by which the points are divided to be solved."""
        loss = as_loss(self.loss)
        return self.placed.unit if loss.relative or loss.degree else 1.0

    @cached_property
    def reduction(self) -> Reduction:
        """The problem in the joint span of its points, and of the start if there is one, one module."""
        given = self.placed.points
        if self.placed.start is not None:
            given = torch.cat([given, self.placed.start.unsqueeze(0)])
        manifold, points = self.placed.manifold, given.unsqueeze(1)
        if self.unit != 1.0:
            points = points / self.unit
        if isinstance(manifold, GeodesicManifold):
            return manifold.reduce(points)
        return Reduction(manifold, points, identity)

    @property
    def key(self) -> tuple[Any, ...]:
        """What problems have in common that are solved side by side."""
        manifold, points, _ = self.reduction
        begun, options = self.placed.start is not None, tuple(sorted(self.placed.options.items()))
        return fingerprint(manifold), points.shape, points.device.type, self.loss, self.starts, begun, options


class _Block(NamedTuple):
    """K tasks of one kind, side by side: their T points (T, K, rows, columns), weights (T, K) and start."""

    tasks: tuple[Task, ...]
    manifold: TorchManifold
    points: Tensor
    weights: Tensor
    start: Tensor | None

    @property
    def first(self) -> Task:
        """One of the tasks, for what they have in common."""
        return self.tasks[0]

    def problem(self, form: Any) -> Problem:
        """Return the Fréchet problem of the block, which is in the joint span of its points already."""
        points, loss = list(self.points), self.first.loss
        return Problem(self.manifold, points, self.weights, loss=loss, form=form, reduce=False)


def solve(tasks: Sequence[Task], solver: Any, options: Options, *, done: int, total: int) -> list[Solved]:
    """Solve the problem of every module, in their order.

    Law: a module's result depends on the modules of its own block only, so on no number of threads.

    Args:
        tasks: The problems; those of one kind are solved side by side, in blocks.
        solver: The solver, unless `options` has one.
        options: What is asked of the solver.
        done: How many modules needed no solving, for the progress.
        total: How many modules there are.
    """
    places: list[tuple[int, ...]] = []
    for group in _groups(tasks):
        on_cpu = tasks[group[0]].placed.points.device.type == "cpu"
        places += _parts(group) if on_cpu else [tuple(group)]
    blocks = [_block([tasks[place] for place in part]) for part in places]
    run = _Run(options, solver, blocks, done, total)
    found: dict[int, Solved] = {}
    for part, solved in zip(
        places, in_order(run.solve, range(len(blocks)), options.threads, run.cancelled), strict=True
    ):
        found.update(zip(part, solved, strict=True))
    return [found[place] for place in range(len(tasks))]


def pose(tasks: Sequence[Task]) -> list[tuple[list[int], Problem]]:
    """Return the problems of tasks, all of one kind side by side, each with the places of its tasks."""
    return [(group, _block([tasks[place] for place in group]).problem("joint")) for group in _groups(tasks)]


def _groups(tasks: Sequence[Task]) -> list[list[int]]:
    """Return the places of tasks of one kind, for each kind."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, task in enumerate(tasks):
        groups[task.key].append(place)
    return list(groups.values())


def _block(tasks: Sequence[Task]) -> _Block:
    """Put tasks of one kind side by side."""
    reductions = [task.reduction for task in tasks]
    points = torch.cat([reduction.points for reduction in reductions], dim=1)
    weights = torch.stack([task.weights.cpu() for task in tasks], dim=1)
    start = None
    if tasks[0].placed.start is not None:
        points, start = points[:-1], points[-1]
    manifold = reductions[0].manifold
    if len(tasks) > 1:
        manifold = manifold.with_modules(len(tasks))
    return _Block(tuple(tasks), manifold, points, weights, start)


def _parts(places: Sequence[int]) -> list[tuple[int, ...]]:
    """Divide modules into blocks as equal as can be, an even number of them; few stay together."""
    count = len(places)
    if count <= _FEW:
        return [tuple(places)]
    blocks = 2 * math.ceil(count / (2 * _BLOCK))
    ends = [count * i // blocks for i in range(blocks + 1)]
    return [tuple(places[start:end]) for start, end in itertools.pairwise(ends)]


@final
class _Run:
    """One run over all blocks: what they share, under a lock."""

    def __init__(
        self, options: Options, solver: Any, blocks: Sequence[_Block], done: int, total: int
    ) -> None:
        self._options = options
        self._solver = solver
        self._blocks = blocks
        self._done = done
        self._total = total
        self._finished = [0] * len(blocks)
        self._waiting = sum(block.first.starts for block in blocks)
        self._began = perf_counter()
        self._lock = threading.Lock()
        self.cancelled = threading.Event()

    def solve(self, index: int) -> list[Solved]:
        """Solve one block, from every start."""
        began, block, options = perf_counter(), self._blocks[index], self._options
        given = {name: getattr(options, name) for name in _GIVEN}
        asked = {**block.first.placed.options}
        own = asked.pop("solver", None)
        asked.update({name: value for name, value in given.items() if value is not None})
        starts = block.first.starts
        if options.starts == "auto" and starts > 1:
            asked["cost_tol"] = min(_SETTLED, asked.get("cost_tol", _SETTLED))
        problem = block.problem(options.form or "joint")
        solutions = [
            frechet_mean(
                problem,
                # A copy each: an optimizer holds the state of its run.
                as_solver(copy.deepcopy(options.solver or own or self._solver), **asked, **self._budget()),
                block.start if count == 1 else draw_start(problem, options.seed or 0, count - 1),
                callback=self._reporter(index, last=count == starts),
            )
            for count in range(1, starts + 1)
        ]
        seconds = (perf_counter() - began) / len(block.tasks)
        return _best(block, solutions, seconds)

    def _budget(self) -> dict[str, Any]:
        """Return the share of the seconds left that falls to the solve that begins now."""
        if self._options.max_seconds is None:
            return {}
        with self._lock:
            left = self._options.max_seconds - (perf_counter() - self._began)
            share = left * min(1.0, self._options.threads / self._waiting)
            self._waiting -= 1
        # A solver takes no empty budget; it looks at its clock after its first pass.
        return {"max_seconds": max(share, 1e-6)}

    def _reporter(self, index: int, *, last: bool) -> Callable[..., None]:
        """Return a callback that says how many modules are done, and ends the solver where no one waits."""

        def report(trace: Any) -> None:
            if self.cancelled.is_set():
                raise CancelledError
            if self._options.progress is None:
                return
            worst = max(trace.gradient_norm.tolist(), default=0.0)
            with self._lock:
                if last:
                    self._finished[index] = len(self._blocks[index].tasks) - trace.active
                done = self._done + sum(self._finished)
                text = f"pass {trace.passes}, largest gradient norm {worst:.1e}"
                self._options.progress(Progress("merge", done, self._total, text))

        return report


def _best(block: _Block, solutions: Sequence[Solution], seconds: float) -> list[Solved]:
    """Return for each module the solution of least cost, and how far the others are from it."""
    costs = np.stack([np.where(np.isnan(solution.cost), np.inf, solution.cost) for solution in solutions])
    best = costs.argmin(axis=0)
    chosen = [(solutions[start], module) for module, start in enumerate(best.tolist())]
    points = [
        task.reduction.lift(solution.point[module].unsqueeze(0)).squeeze(0) * task.unit
        for task, (solution, module) in zip(block.tasks, chosen, strict=True)
    ]
    spreads: list[dict[str, Any]] = [{} for _ in chosen]
    if len(solutions) > 1:
        least = costs.min(axis=0)
        point = torch.stack([solution.point[module] for solution, module in chosen])
        measure = block.first.placed.apart or _apart
        apart = np.stack([measure(block.manifold, solution.point, point).tolist() for solution in solutions])
        # A start without a finite cost is none, and one start alone has no spread.
        defined = np.isfinite(costs)
        for module, spread in enumerate(spreads):
            there = defined[:, module]
            spread["starts"] = int(there.sum())
            if there.sum() > 1:
                excess = costs[there, module].max() - least[module]
                spread["cost_spread"] = float(excess / max(least[module], np.finfo(float).tiny))
                spread["update_spread"] = float(apart[there, module].max())
    return [
        Solved(point, _evidence(task, solution, module, seconds, spread))
        for task, point, (solution, module), spread in zip(block.tasks, points, chosen, spreads, strict=True)
    ]


def _apart(_: TorchManifold, points: Tensor, others: Tensor) -> Tensor:
    """Return ‖x − y‖ / ‖y‖ of K pairs of points (K,)."""
    relative: Tensor = torch.linalg.matrix_norm(points - others) / torch.linalg.matrix_norm(others)
    return relative


def _evidence(
    task: Task, solution: Solution, index: int, seconds: float, spreads: Mapping[str, Any]
) -> Evidence:
    status, degree = solution.status[index], as_loss(task.loss).degree or 2
    return Evidence(
        status=status,
        advice=status.advice,
        cost=float(solution.cost[index]) * task.unit**degree,
        gradient_norm=float(solution.gradient_norm[index]) * task.unit ** (degree - 1),
        horizontality=float(solution.horizontality[index]),
        forward_error=float(solution.forward_error[index]),
        distances=tuple(float(distance) * task.unit for distance in solution.distances[:, index]),
        passes=int(solution.passes),
        seconds=seconds,
        **spreads,
    )
