"""How many passes, and seconds, each solver needs; and what the default tolerance is worth on real adapters.

Run from the root of the repository: python -m benchmarks.convergence [--quick]
Writes benchmarks/results/convergence.json and .png; benchmarks/README.md says how to read them. One thread;
passes repeat on any machine, seconds do not.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from pymanopt.optimizers import ConjugateGradient, SteepestDescent
from pymanopt.optimizers.optimizer import Optimizer
from torch import Tensor

from benchmarks import common
from benchmarks.peers import SHIPPED
from benchmarks.primitives import problem
from riemerge import read_adapter
from riemerge.frechet import SOLVERS, Solution
from riemerge.frechet.solvers.guest_optimizer import ENDLESS
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.methods import find_method
from riemerge.updates.low_rank import LowRankUpdate
from tests.frechet.problems import mean_of
from tests.helpers import FAMILIES

LEVELS = tuple(10.0**-k for k in range(2, 9))
SHOWN = (1e-2, 1e-4, 1e-6, 1e-8)
COST_TOLERANCES = (1e-2, 1e-3, 5e-4, 3e-4, 1e-4, 1e-5, 1e-6)
ABSOLUTE = 1e-8
REAL = "real"
AGREEING = ("close", "lora_like", "shared_subspace")
SOLVER = next(iter(SOLVERS))  # the first is the default

# Pymanopt's own optimizers with their own line searches, and none of their stopping rules: they are stopped
# like the others.
STOCK = {"stock steepest descent": SteepestDescent, "stock conjugate gradient": ConjugateGradient}

Problem = tuple[QuotientManifold, list[Tensor]]


class Size(NamedTuple):
    """How large the problems are, and how long a solve may last."""

    families: tuple[str, ...]
    shape: tuple[int, int, int]  # m, n, r
    adapters: int
    modules: int
    seeds: tuple[int, ...]
    real: tuple[str, ...]  # modules of the shipped adapters
    passes: int
    patient_passes: int  # of the two solvers that are asked where they end
    all_real: int  # how many modules of the shipped adapters the table of defaults is made on
    tight_passes: int


FULL = Size(
    families=tuple(FAMILIES),
    shape=(120, 100, 8),
    adapters=6,
    modules=2,
    seeds=(0, 1),
    real=tuple(f"encoder.layer.{i}.attention.self.{part}" for i, part in ((0, "query"), (5, "value"))),
    passes=400,
    patient_passes=1200,
    all_real=36,
    tight_passes=200,
)
QUICK = Size(
    families=("close",),
    shape=(20, 18, 3),
    adapters=3,
    modules=2,
    seeds=(0,),
    real=("encoder.layer.0.attention.self.query",),
    passes=12,
    patient_passes=12,
    all_real=2,
    tight_passes=14,
)


# --- problems -----------------------------------------------------------------------------------------------


def real_problem(modules: Sequence[str] | None = None, most: int | None = None) -> Problem:
    """The four shipped adapters in the joint span of each module (36 modules, unless fewer are asked for).

    The span is exact, so norms of differences of updates are those of the full width.
    """
    adapters = [read_adapter(folder) for folder in SHIPPED]
    names = sorted(adapters[0].modules)[:most] if modules is None else modules
    by_shape: dict[tuple[int, ...], list[list[LowRankUpdate]]] = defaultdict(list)
    for name in names:
        updates = [adapter.update(name) for adapter in adapters]
        by_shape[*updates[0].shape, updates[0].rank].append(updates)
    reduced = []
    for (m, n, r), stack in by_shape.items():
        total = FixedRank(m, n, r, k=len(stack))
        points = [
            total.factor(
                torch.stack([one.B * one.scale for one in column]), torch.stack([one.A.mT for one in column])
            )
            for column in zip(*stack, strict=True)
        ]
        reduced.append(total.reduce(torch.stack(points)))
    small = reduced[0].manifold
    assert isinstance(small, FixedRank)
    joined = torch.cat([one.points for one in reduced], dim=1)
    return QuotientManifold(small.with_modules(joined.shape[1]), Orthogonal(small.r)), list(joined)


def problems(size: Size) -> dict[tuple[str, int], Problem]:
    """Every problem by family and seed."""
    m, n, r = size.shape
    made = {
        (name, seed): problem(name, size.adapters, m, n, r, size.modules, 1000 * seed)
        for name in size.families
        for seed in size.seeds
    }
    return made | {(REAL, 0): real_problem(size.real)}


# --- one solve ----------------------------------------------------------------------------------------------


def solver_named(name: str) -> str | Optimizer:
    """A solver of SOLVERS by its name, or one of STOCK."""
    return STOCK[name](**ENDLESS) if name in STOCK else name


def tolerance(manifold: QuotientManifold, points: Sequence[Tensor]) -> float:
    """A `tol` that no module meets before its gradient is LEVELS[-1] of that at the start, and ABSOLUTE."""
    (start,) = mean_of(manifold, points, tol=0.0, max_passes=1).trace
    asked = np.minimum(LEVELS[-1] * start.gradient_norm, ABSOLUTE)
    return float((asked / np.maximum(1, np.sqrt(2 * start.cost))).min())


def reached(solution: Solution, bounds: np.ndarray) -> dict[str, list[float | None]]:
    """Passes and seconds at the first iterate where each module's gradient is within its bound (K,)."""
    found: dict[str, list[float | None]] = {"passes": [], "seconds": []}
    for module, bound in enumerate(bounds):
        first = next((x for x in solution.trace if x.gradient_norm[module] <= bound), None)
        found["passes"].append(first and first.passes)
        found["seconds"].append(first and first.seconds)
    return found


def solve(name: str, manifold: QuotientManifold, points: Sequence[Tensor], size: Size, tol: float) -> Any:
    """One solver on one problem: when it reached which level, and where it ended."""
    solution = mean_of(
        manifold, points, solver=solver_named(name), tol=tol, cost_tol=0.0, max_passes=size.passes
    )
    start = solution.trace[0].gradient_norm
    relative = [float((x.gradient_norm / start).max()) for x in solution.trace]
    return {
        "solver": name,
        "start_passes": solution.trace[0].passes,
        "passes": solution.passes,
        "seconds": solution.seconds,
        "statuses": [status.name for status in solution.status],
        "cost": solution.cost.tolist(),
        "gradient_norm": solution.gradient_norm.tolist(),
        "levels": {f"{level:.0e}": reached(solution, level * start) for level in LEVELS},
        "absolute": reached(solution, np.full_like(start, ABSOLUTE)),
        "_curve": ([x.passes for x in solution.trace], relative),
    }


def ends_apart(manifold: QuotientManifold, points: Sequence[Tensor], tol: float, passes: int) -> float:
    """How far the default solver and trust regions end apart in F, relatively, where both may go on."""
    first, second = (
        mean_of(manifold, points, solver=solver, tol=tol, cost_tol=0.0, max_passes=passes).cost
        for solver in (SOLVER, "trust_regions")
    )
    return float(np.abs(first / second - 1).max())


def with_excess(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds to runs of one problem how far each module's cost is above the best solver's, relatively."""
    best = np.min([run["cost"] for run in runs], axis=0)
    return [run | {"excess": (np.asarray(run["cost"]) / best - 1).tolist()} for run in runs]


# --- the table of defaults ----------------------------------------------------------------------------------


def passes_of_a_module(solution: Solution) -> float:
    """How many passes a module took part in until it was finished, on average."""
    steps = sum(before.active * (after.passes - before.passes) for before, after in pairwise(solution.trace))
    return solution.trace[0].passes + steps / len(solution.status)


def measure_defaults(size: Size) -> dict[str, Any]:
    """What a looser `cost_tol` costs, on all modules of the shipped adapters, against a second start."""
    manifold, points = real_problem(most=size.all_real)
    total = manifold.total
    assert isinstance(total, FixedRank)
    defaults = find_method("geomerge").defaults

    def solve_real(cost_tol: float, passes: int, initial_point: Tensor | None = None) -> Solution:
        common.tell(f"defaults: cost_tol {cost_tol:g}{'' if initial_point is None else ', second start'}")
        return mean_of(
            manifold,
            points,
            solver=defaults["solver"],
            tol=defaults["tol"],
            cost_tol=cost_tol,
            max_passes=passes,
            initial_point=initial_point,
            reduce=False,
        )

    tight = solve_real(0.0, size.tight_passes)
    other = solve_real(0.0, size.tight_passes, points[0])
    runs = {f"{x:.0e}": solve_real(x, size.passes) for x in COST_TOLERANCES}
    runs |= {"0": tight, "0, from the first adapter": other}
    best = np.min([solution.cost for solution in runs.values()], axis=0)
    exact = total.matrix(tight.point)
    rows = []
    for name, solution in runs.items():
        apart = (total.matrix(solution.point) - exact).flatten(1).norm(dim=1)
        each = apart / exact.flatten(1).norm(dim=1)
        rows.append(
            {
                "cost_tol": name,
                "passes": solution.passes,
                "passes_of_a_module": passes_of_a_module(solution),
                "seconds": solution.seconds,
                "statuses": dict(Counter(status.name for status in solution.status)),
                "above_tight": float(solution.cost.sum() / tight.cost.sum() - 1),
                "above_best": float(solution.cost.sum() / best.sum() - 1),
                "largest_above_best": float((solution.cost / best - 1).max()),
                "update_apart": float(apart.norm() / exact.norm()),
                "largest_update_apart": float(each.max()),
            }
        )
    setting = {
        "modules": len(best),
        "adapters": len(points),
        "solver": defaults["solver"],
        "tol": defaults["tol"],
    }
    return {**setting, "default_cost_tol": f"{defaults['cost_tol']:.0e}", "rows": rows}


# --- all ----------------------------------------------------------------------------------------------------


def measure(quick: bool) -> dict[str, Any]:
    """Every solver on every problem, then the table of defaults."""
    torch.set_num_threads(1)
    size = QUICK if quick else FULL
    machine = common.machine(1, "pymanopt", "numpy")
    runs: list[dict[str, Any]] = []
    ends: dict[str, float] = {}
    for (name, seed), (manifold, points) in problems(size).items():
        tol = tolerance(manifold, points)
        here = []
        for solver in (*SOLVERS, *STOCK):
            common.tell(f"{name}, seed {seed}: {solver}")
            here.append({"problem": name, "seed": seed, **solve(solver, manifold, points, size, tol)})
        runs += with_excess(here)
        if name in AGREEING:
            common.tell(f"{name}, seed {seed}: where {SOLVER} and trust_regions end")
            apart = ends_apart(manifold, points, tol, size.patient_passes)
            ends[name] = max(ends.get(name, 0.0), apart)
    setting = {"levels": [f"{x:.0e}" for x in LEVELS], **size._asdict()}
    found = {"machine": machine, "setting": setting, "runs": runs, "ends": ends}
    found["defaults"] = measure_defaults(size)
    return found | {"goals": goals(found)}


def worst(runs: Sequence[Mapping[str, Any]], *path: str) -> float | None:
    """The largest of a list of numbers over runs; None where one of them is None."""
    values: list[float | None] = []
    for run in runs:
        here: Any = run
        for step in path:
            here = here[step]
        values += here
    return None if not values or None in values else max(x for x in values if x is not None)


def goals(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked of the engine here."""

    def of(name: str, solver: str) -> list[Mapping[str, Any]]:
        return [run for run in found["runs"] if (run["problem"], run["solver"]) == (name, solver)]

    asked = [
        common.goal(
            f"{SOLVER} on {name}: passes to a gradient of {ABSOLUTE:g}",
            worst(of(name, SOLVER), "absolute", "passes"),
            at_most=bound,
        )
        for name, bound in zip(AGREEING, (15, 150, 150), strict=True)
    ]
    for name in AGREEING:
        text = f"{SOLVER} and trust_regions on {name}, to the end: relative difference of F"
        asked.append(common.goal(text, found["ends"].get(name), at_most=1e-9))
    return asked


# --- tables and picture -------------------------------------------------------------------------------------


def grouped(result: Mapping[str, Any]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Runs by solver and problem."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in result["runs"]:
        found[run["solver"]][run["problem"]].append(run)
    return found


def defaults_table(result: Mapping[str, Any]) -> str:
    """The reason for the default tolerance, as Markdown."""
    show, defaults = common.number, result["defaults"]
    rows = []
    for one in defaults["rows"]:
        name = one["cost_tol"]
        name = f"**{name}** (default)" if name == defaults["default_cost_tol"] else name
        passes = [str(one["passes"]), show(one["passes_of_a_module"]), show(one["seconds"])]
        excess = [show(one[key]) for key in ("above_tight", "above_best", "largest_above_best")]
        apart = [show(one[key]) for key in ("update_apart", "largest_update_apart")]
        statuses = ", ".join(f"{count} {status}" for status, count in one["statuses"].items())
        rows.append([name, *passes, *excess, *apart, statuses])
    head = ["`cost_tol`", "passes", "of a module, mean", "seconds", "F above tight", "above the best known"]
    head += ["worst module", "‖dW − tight‖ / ‖tight‖", "worst module", "ended"]
    return common.markdown(head, rows)


def tables(result: Mapping[str, Any]) -> str:
    """The README's tables."""
    show, by_solver = common.number, grouped(result)
    names = list(dict.fromkeys(run["problem"] for run in result["runs"]))
    passes, ends = [], []
    for solver, by_problem in by_solver.items():
        runs = [by_problem[name] for name in names]
        passes.append(
            [solver]
            + [
                " / ".join(show(worst(x, "levels", f"{level:.0e}", "passes")) for level in SHOWN)
                for x in runs
            ]
        )
        ends.append(
            [solver]
            + [f"{show(worst(x, 'levels', '1e-04', 'seconds'))}, {show(worst(x, 'excess'))}" for x in runs]
        )
    shown = " / ".join(f"{level:.0e}" for level in SHOWN)
    return "\n\n".join(
        [
            f"passes to a relative gradient of {shown}\n\n" + common.markdown(["", *names], passes),
            "seconds to 1e-04, and F above the best solver's\n\n" + common.markdown(["", *names], ends),
            defaults_table(result),
            common.goals_table(result["goals"]),
        ]
    )


def picture(result: Mapping[str, Any]) -> Any:
    """Relative gradient of the slowest module against passes: a panel for each problem, the first seed."""
    names = list(dict.fromkeys(run["problem"] for run in result["runs"]))
    columns = math.ceil(len(names) / 2)
    figure, axes = common.canvas(2, columns, 5 * columns, 8)
    for panel in axes.flat[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(axes.flat, names, strict=False):
        for run in result["runs"]:
            if run["problem"] == name and run["seed"] == 0:
                style = "--" if run["solver"] in STOCK else "-"
                panel.plot(*run["_curve"], style, lw=1.2, label=run["solver"])
        panel.set(yscale="log", xscale="log", title=name, xlabel="passes", ylim=(LEVELS[-1] / 3, 3))
    axes[0, 0].set_ylabel("gradient norm / that at the start")
    axes[0, 0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    common.one_thread()
    common.execute("convergence", "How many passes and seconds each solver needs.", measure, picture, tables)
