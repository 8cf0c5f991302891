"""Solving the Fréchet means of many modules: those of one size in blocks, blocks on several threads."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from time import perf_counter
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from riemerge.frechet import Problem, Solution, frechet_mean
from riemerge.frechet.solvers.catalogue import as_solver
from riemerge.frechet.starts import draw_start
from riemerge.manifolds.low_rank.factors import FixedRank
from riemerge.manifolds.low_rank.orthogonal import Orthogonal
from riemerge.manifolds.quotient import QuotientManifold
from riemerge.methods.reduction import in_order
from riemerge.methods.stack import Evidence, Options
from riemerge.progress import Progress

# Modules solved together on a CPU: at most so many, and no more than so few together where that spreads them
# over two threads. Whatever the threads are: the bits of a solve depend on who is solved beside it, and must
# not depend on them. Larger blocks spread the cost of Python over more modules, which also holds threads up.
_BLOCK, _FEW = 64, 8
SEVERAL = 10
"""Starts that tell whether a module's inputs determine its mean (`benchmarks.verdict`)."""
# The bound on the relative decrease of the cost at which those that go to one place are there.
_SETTLED = 1e-6
# Options that `frechet_mean` has a default for where a recipe has no value.
_GIVEN = ("solver", "tol", "cost_tol", "max_passes", "form")


class Size(NamedTuple):
    """The manifold of a block: (St(m, r) × SPD(r) × St(n, r))/O(r)."""

    m: int
    n: int
    r: int


class ModuleMean(NamedTuple):
    """The mean of one module as a point (m + r + n, r), and the evidence for it."""

    point: Tensor
    evidence: Evidence


class _Block(NamedTuple):
    """K modules of one size and as many starts: their T points (T, K, rows, r) and weights (T, K)."""

    names: tuple[str, ...]
    size: Size
    starts: int
    points: Tensor
    weights: Tensor


def solve(
    groups: Mapping[tuple[Size, int], Mapping[str, tuple[Tensor, Sequence[float]]]],
    options: Options,
    *,
    done: int,
) -> dict[str, ModuleMean]:
    """Solve every module of every group.

    Law: a module's result depends on the modules of its own block only, so on no number of threads.

    Args:
        groups: For each size and number of starts its modules: points (T, rows, r) and T weights of each; of
            several starts the best counts.
        options: What is asked of the solver.
        done: How many modules needed no solving, for the progress.
    """
    blocks: list[_Block] = []
    for (size, starts), modules in groups.items():
        names = list(modules)
        on_cpu = modules[names[0]][0].device.type == "cpu"
        for part in _parts(names) if on_cpu else [tuple(names)]:
            points = torch.stack([modules[name][0] for name in part], dim=1)
            weights = torch.tensor([modules[name][1] for name in part], dtype=torch.float64, device="cpu")
            blocks.append(_Block(part, size, starts, points, weights.T))
    run = _Run(options, blocks, done)
    means = in_order(run.solve, range(len(blocks)), options.threads, run.cancelled)
    return {
        name: mean
        for block, of_block in zip(blocks, means, strict=True)
        for name, mean in zip(block.names, of_block, strict=True)
    }


def _parts(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Divide modules into blocks as equal as can be, an even number of them; few stay together."""
    count = len(names)
    if count <= _FEW:
        return [tuple(names)]
    blocks = 2 * math.ceil(count / (2 * _BLOCK))
    ends = [count * i // blocks for i in range(blocks + 1)]
    return [tuple(names[start:end]) for start, end in itertools.pairwise(ends)]


@final
class _Run:
    """One run over all blocks: what they share, under a lock."""

    def __init__(self, options: Options, blocks: Sequence[_Block], done: int) -> None:
        self._options = options
        self._blocks = blocks
        self._done = done
        self._total = done + sum(len(block.names) for block in blocks)
        self._finished = [0] * len(blocks)
        self._waiting = sum(block.starts for block in blocks)
        self._began = perf_counter()
        self._lock = threading.Lock()
        self.cancelled = threading.Event()

    def solve(self, index: int) -> list[ModuleMean]:
        """Solve one block, from every start."""
        began, block, options = perf_counter(), self._blocks[index], self._options
        given = {name: getattr(options, name) for name in _GIVEN}
        asked = {name: value for name, value in given.items() if value is not None}
        form, solver = asked.pop("form", "joint"), asked.pop("solver", "lbfgs")
        if options.starts == "auto" and block.starts > 1:
            asked["cost_tol"] = min(_SETTLED, asked.get("cost_tol", _SETTLED))
        total = FixedRank(*block.size, k=len(block.names), device=block.points.device)
        manifold = QuotientManifold(total, Orthogonal(block.size.r))
        problem = Problem(manifold, list(block.points), block.weights, form=form, reduce=False)
        solutions = [
            frechet_mean(
                problem,
                # A copy each: an optimizer holds the state of its run.
                as_solver(copy.deepcopy(solver), **asked, **self._budget()),
                draw_start(problem, options.seed or 0, number),
                callback=self._reporter(index, last=number == block.starts - 1),
            )
            for number in range(block.starts)
        ]
        seconds = (perf_counter() - began) / len(block.names)
        return _best(total, solutions, seconds)

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
                    self._finished[index] = len(self._blocks[index].names) - trace.active
                done = self._done + sum(self._finished)
                text = f"pass {trace.passes}, largest gradient norm {worst:.1e}"
                self._options.progress(Progress("merge", done, self._total, text))

        return report


def _best(total: FixedRank, solutions: Sequence[Solution], seconds: float) -> list[ModuleMean]:
    """Return for each module the solution of least cost, and how far the others are from it."""
    costs = np.stack([np.where(np.isnan(solution.cost), np.inf, solution.cost) for solution in solutions])
    best = costs.argmin(axis=0)
    chosen = [(solutions[start], module) for module, start in enumerate(best.tolist())]
    point = torch.stack([solution.point[module] for solution, module in chosen])
    spreads: list[dict[str, Any]] = [{} for _ in chosen]
    if len(solutions) > 1:
        least = costs.min(axis=0)
        apart = np.stack([_apart(total, solution.point, point).cpu() for solution in solutions])
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
        ModuleMean(point[module], _evidence(solution, module, seconds, spread))
        for (solution, module), spread in zip(chosen, spreads, strict=True)
    ]


def _apart(total: FixedRank, points: Tensor, others: Tensor) -> Tensor:
    """Return ‖dW − dW'‖ / ‖dW'‖ of K pairs of points (K,)."""
    u, core, v = total.split(points)
    x, other, y = total.split(others)
    left = torch.linalg.qr(torch.cat([u @ core, x @ other], dim=-1), mode="r").R
    right = torch.linalg.qr(torch.cat([v, -y], dim=-1), mode="r").R
    relative: Tensor = torch.linalg.matrix_norm(left @ right.mT) / torch.linalg.matrix_norm(other)
    return relative


def _evidence(solution: Solution, index: int, seconds: float, spreads: Mapping[str, Any]) -> Evidence:
    status = solution.status[index]
    return Evidence(
        status=status,
        advice=status.advice,
        cost=float(solution.cost[index]),
        gradient_norm=float(solution.gradient_norm[index]),
        horizontality=float(solution.horizontality[index]),
        forward_error=float(solution.forward_error[index]),
        distances=tuple(float(distance) for distance in solution.distances[:, index]),
        passes=int(solution.passes),
        seconds=seconds,
        **spreads,
    )
