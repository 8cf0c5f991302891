"""Comparisons that the tests share: made by hand, so that every number is known, and by solving."""

from __future__ import annotations

from collections.abc import Sequence

from riemerge.records.comparison_record import ComparedProblem, Comparison, SolverRun


def made_run(
    solver: str,
    needed: Sequence[float],
    *,
    problem: str = "p",
    cost: Sequence[float] = (1.0, 1.0, 1.0),
    gradient: float = 1e-7,
    status: str = "CONVERGED",
    refused: str = "",
) -> SolverRun:
    """A run on three modules that needed so many passes for each, and a tenth of a second for a pass."""
    seconds = tuple(x / 10 for x in needed)
    return SolverRun(
        problem=problem,
        solver=solver,
        start=0,
        status=(status,) * 3,
        cost=tuple(cost),
        gradient_norm=(gradient,) * 3,
        horizontality=(1e-9,) * 3,
        counts={"logarithms": 12},
        spent={"passes": max(needed), "seconds": max(seconds)},
        needed={"passes": tuple(needed), "seconds": seconds},
        trace={"passes": (1.0, max(needed)), "seconds": (0.1, max(seconds))},
        trace_gradient=((0.5, 0.4, 0.3), (gradient,) * 3),
        refused=refused,
    )


def made_comparison(*runs: SolverRun, determined: Sequence[str | None] = (None, None, None)) -> Comparison:
    """A comparison on one problem of three modules, of a name that HTML would take for its own."""
    modules = ("q", "<v>", "k")
    problem = ComparedProblem(name="p", case="polar & square", modules=modules, determined=tuple(determined))
    return Comparison(
        tol=1e-6, max_passes=100, seed=0, versions={"riemerge": "0"}, problems=(problem,), runs=runs
    )
