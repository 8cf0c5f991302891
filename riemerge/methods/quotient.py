"""The quotient geometry: updates U B Vᵀ of one rank, on (Stiefel × SPD × Stiefel)/O(r)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from riemerge.errors import AdapterError, NumericalError
from riemerge.manifolds.base import Reduction
from riemerge.manifolds.fixed_rank import FixedRank
from riemerge.manifolds.linalg import single_threaded
from riemerge.manifolds.orthogonal import Orthogonal
from riemerge.manifolds.quotient import QuotientManifold
from riemerge.methods.stack import Evidence, Merged, Options, Stack
from riemerge.solvers import Solution, frechet_mean
from riemerge.updates import LowRankUpdate


class _Part(NamedTuple):
    """Modules of one shape, and their points on the reduced manifold of their joint span."""

    modules: tuple[str, ...]
    shape: tuple[int, int, int]
    reduction: Reduction


def frechet(stack: Stack, options: Options) -> dict[str, Merged]:
    """Return the weighted Fréchet mean of each module: the minimiser of F = 1/2 Σ wᵢ d(x, yᵢ)².

    Law: a function of the dW alone; modules of one shape are factored together, reduced to the span of their
    factors (exact: it is totally geodesic), and every module of one reduced shape is solved in one batch, in
    float64.

    Raises:
        AdapterError: The updates of a module do not have one rank.
        NumericalError: An update has a numerical rank below its rank, or a distance was undefined.

    Source: arXiv 2604.27155, section 3.
    """
    _check(stack)
    by_shape: dict[tuple[int, int, int], list[str]] = defaultdict(list)
    for module, updates in stack.modules.items():
        by_shape[*updates[0].shape, updates[0].rank].append(module)
    by_size: dict[tuple[int, int, int], list[_Part]] = defaultdict(list)
    for shape, modules in by_shape.items():
        part = _Part(tuple(modules), shape, _reduced(shape, [stack.modules[module] for module in modules]))
        small = part.reduction.manifold
        by_size[small.m, small.n, small.r].append(part)

    merged: dict[str, Merged] = {}
    for parts in by_size.values():
        merged |= _solve(parts, stack, options, len(merged))
    if undefined := [module for module, one in merged.items() if one.evidence.status == "UNDEFINED"]:
        raise NumericalError([f"{module}: {merged[module].evidence.advice}" for module in undefined])
    return {module: merged[module] for module in stack.modules}


# d^2 errs by the square of what is left of the gauge.
_ALIGNED = 1e-4


def distances(updates: Sequence[LowRankUpdate], others: Sequence[LowRankUpdate]) -> Tensor:
    """Return the quotient distance of each update to its partner: K modules of one shape and one common rank.

    Law: a metric on updates of that rank; computed in the joint span of both, in float64.

    Returns:
        (K,) float64; NaN where no geodesic was found.

    Raises:
        NumericalError: An update has a numerical rank below its rank.
    """
    shape = (*updates[0].shape, updates[0].rank)
    reduction = _reduced(shape, list(zip(updates, others, strict=True)))
    total, action = reduction.manifold, Orthogonal(shape[2])
    to, point = reduction.points.double()
    with single_threaded():
        element = action.nearest(total, point, to, tolerance=_ALIGNED)
        return total.dists(to, action.act(total, point, element))


def _check(stack: Stack) -> None:
    """Refuse what is no point of the manifold, every case by name."""
    ranks: list[str] = []
    deficient: list[str] = []
    for module, updates in stack.modules.items():
        found = [update.rank for update in updates]
        numerical = [update.numerical_rank() for update in updates]
        if min(found) < max(found):
            each = ", ".join(f"{name} {rank}" for name, rank in zip(stack.names, found, strict=True))
            ranks.append(
                f"{module}: the ranks differ ({each}): geomerge needs one rank: "
                f"truncate all with --rank {max(min(numerical), 1)}, or use method average"
            )
        deficient += [
            f"{name}: {module}: its numerical rank is {actual}, below its rank {rank}: geomerge needs full "
            "rank: "
            + (f"truncate all with --rank {actual} or less, or use method average" if actual else _ALL_ZERO)
            for name, rank, actual in zip(stack.names, found, numerical, strict=True)
            if actual < rank
        ]
    if deficient:
        raise NumericalError(deficient)
    if ranks:
        raise AdapterError(ranks)


_ALL_ZERO = "the update is all zero, which has no place on this manifold: use method average"


def _reduced(shape: tuple[int, int, int], stacks: Sequence[Sequence[LowRankUpdate]]) -> Reduction:
    """The points (T, K, ...) of K modules of one shape, in the span of their factors."""
    first = stacks[0][0]
    total = FixedRank(*shape, k=len(stacks), dtype=first.dtype, device=first.device)
    points = [
        total.factor(
            torch.stack([update.B * update.scale for update in column]),
            torch.stack([update.A.mT for update in column]),
        )
        for column in zip(*stacks, strict=True)
    ]
    return total.reduce(torch.stack(points))


def _solve(parts: Sequence[_Part], stack: Stack, options: Options, before: int) -> dict[str, Merged]:
    """Solve all modules of one reduced shape in one batch, and bring each part back to its own width."""
    started = perf_counter()
    modules = [module for part in parts for module in part.modules]
    small = parts[0].reduction.manifold
    points = torch.cat([part.reduction.points.double() for part in parts], dim=1)
    manifold = QuotientManifold(
        FixedRank(small.m, small.n, small.r, k=len(modules), device=points.device), Orthogonal(small.r)
    )
    asked = {
        "solver": options.solver,
        "tol": options.tol,
        "cost_tol": options.cost_tol,
        "max_passes": options.max_passes,
    }
    solution = frechet_mean(
        manifold,
        list(points),
        stack.weights,
        reduce=False,
        callback=_reporter(options, before, len(modules), len(stack.modules)),
        **{name: value for name, value in asked.items() if value is not None},
    )
    updates: list[LowRankUpdate] = []
    for part, point in zip(parts, solution.point.split([len(part.modules) for part in parts]), strict=True):
        updates += _lifted(part, point)
    seconds = (perf_counter() - started) / len(modules)
    return {
        module: Merged(update, _evidence(solution, index, seconds))
        for index, (module, update) in enumerate(zip(modules, updates, strict=True))
    }


def _lifted(part: _Part, point: Tensor) -> list[LowRankUpdate]:
    m, n, r = part.shape
    dtype = part.reduction.points.dtype
    lifted = part.reduction.lift(point.to(dtype))
    total = FixedRank(m, n, r, k=len(part.modules), dtype=dtype, device=lifted.device)
    return [
        LowRankUpdate(u @ core, v.mT.contiguous()).balance()
        for u, core, v in zip(*total.split(lifted), strict=True)
    ]


def _evidence(solution: Solution, index: int, seconds: float) -> Evidence:
    status = solution.status[index]
    return Evidence(
        status=status.name,
        advice=status.value,
        ok=status.ok,
        cost=float(solution.cost[index]),
        gradient_norm=float(solution.gradient_norm[index]),
        horizontality=float(solution.horizontality[index]),
        distances=tuple(float(distance) for distance in solution.distances[:, index]),
        passes=int(solution.passes),
        seconds=seconds,
    )


def _reporter(options: Options, before: int, here: int, total: int) -> Callable[..., None]:
    """A callback of the solver that says how many modules are done."""

    def report(trace) -> None:  # type: ignore[no-untyped-def]
        if options.progress is not None:
            worst = max(trace.gradient_norm.tolist(), default=0.0)
            done = before + here - trace.active
            options.progress(done, total, f"pass {trace.passes}, largest gradient norm {worst:.1e}")

    return report
