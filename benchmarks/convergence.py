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
from torch import Tensor

from benchmarks import common
from benchmarks.peers import SHIPPED
from riemerge import Problem, Solution, compare_solvers, frechet_mean, problems, read_adapter
from riemerge.frechet import SOLVERS
from riemerge.frechet.solvers.guest_optimizer import ENDLESS
from riemerge.manifolds import FixedRank
from riemerge.methods import find_method
from riemerge.progress import Progress
from riemerge.records.comparison_record import MEASURES, Comparison, SolverRun
from riemerge.solvers import Guest
from riemerge.study.solver_comparison import BETA_RULES, CONJUGATE, DEFAULT_SOLVERS

LEVELS = tuple(10.0**-k for k in range(2, 9))
SHOWN = (1e-2, 1e-4, 1e-6, 1e-8)
COST_TOLERANCES = (1e-2, 1e-3, 5e-4, 3e-4, 1e-4, 1e-5, 1e-6)
# Below the last level of a gradient that begins at about one, and below ABSOLUTE, where √(2 F) is three.
TOL = 3e-10
ABSOLUTE = 1e-8
REAL = "real"
AGREEING = ("close", "lora_like", "shared_subspace")
SOLVER = next(iter(SOLVERS))  # the first is the default

# Pymanopt's own optimizers with their own line searches, and none of their stopping rules: they are stopped
# like the others.
STOCK = {
    "stock steepest descent": Guest(optimizer=SteepestDescent(**ENDLESS)),
    **{f"stock {rule}": Guest(optimizer=ConjugateGradient(beta_rule=rule, **ENDLESS)) for rule in BETA_RULES},
}
COMPARED = {name: name for name in DEFAULT_SOLVERS} | STOCK


class Size(NamedTuple):
    """How large the problems are, and how long a solve may last."""

    families: tuple[str, ...]
    shape: tuple[int, int, int]  # m, n, r
    adapters: int
    modules: int
    real: tuple[str, ...]  # modules of the shipped adapters
    passes: int
    patient_passes: int  # of the two solvers that are asked where they end
    all_real: int  # how many modules of the shipped adapters the table of defaults is made on
    tight_passes: int


FULL = Size(
    families=tuple(problems.FAMILIES),
    shape=(120, 100, 8),
    adapters=6,
    modules=2,
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
    real=("encoder.layer.0.attention.self.query",),
    passes=7,
    patient_passes=7,
    all_real=1,
    tight_passes=9,
)


# --- solvers ------------------------------------------------------------------------------------------------


def tell(event: Progress) -> None:
    common.tell(f"{event.done} of {event.total}: {event.text}")


def reached(run: SolverRun, bounds: Sequence[float]) -> dict[str, float | None]:
    """Passes and seconds up to the iterate where the last of the modules is within its bound."""
    first = [
        next((i for i, norms in enumerate(run.trace_gradient) if norms[k] <= bound), None)
        for k, bound in enumerate(bounds)
    ]
    last = None if None in first else max(i for i in first if i is not None)
    return {name: None if last is None else run.trace[name][last] for name in MEASURES}


def row(comparison: Comparison, run: SolverRun) -> dict[str, Any]:
    """One solver on one problem: when it reached which level, and where it ended."""
    names, start = (run.problem, run.solver), run.trace_gradient[0]
    worst = [max(norms) / max(start) for norms in run.trace_gradient]
    return {
        "problem": run.problem,
        "solver": run.solver,
        "start_passes": run.trace["passes"][0],
        **run.spent,
        "statuses": run.status,
        "cost": run.cost,
        "excess": [x.above_least for x in comparison.outcomes if (x.problem, x.solver) == names],
        "gradient_norm": run.gradient_norm,
        "levels": {f"{level:.0e}": reached(run, [level * norm for norm in start]) for level in LEVELS},
        "absolute": reached(run, [ABSOLUTE] * len(start)),
        "_curve": (run.trace["passes"], worst),
    }


# --- the table of defaults ----------------------------------------------------------------------------------


def passes_of_a_module(solution: Solution) -> float:
    """How many passes a module took part in until it was finished, on average."""
    steps = sum(before.active * (after.passes - before.passes) for before, after in pairwise(solution.trace))
    return solution.trace[0].passes + steps / len(solution.status)


def measure_defaults(problem: Problem, size: Size) -> dict[str, Any]:
    """What a looser `cost_tol` costs, on all modules of the shipped adapters, against a second start."""
    total = problem.manifold.total
    assert isinstance(total, FixedRank)
    defaults = find_method("geomerge").defaults

    def solve(cost_tol: float, passes: int, start: Tensor | None = None) -> Solution:
        common.tell(f"defaults: cost_tol {cost_tol:g}{'' if start is None else ', second start'}")
        options = {"tol": defaults["tol"], "cost_tol": cost_tol, "max_passes": passes}
        return frechet_mean(problem, SOLVERS.make(defaults["solver"], **options), start)

    tight = solve(0.0, size.tight_passes)
    runs = {f"{x:.0e}": solve(x, size.passes) for x in COST_TOLERANCES}
    runs |= {"0": tight, "0, from the first adapter": solve(0.0, size.tight_passes, problem.points[0])}
    best = np.min([solution.cost for solution in runs.values()], axis=0)
    exact = total.matrix(tight.point)
    rows = []
    for name, solution in runs.items():
        apart = (total.matrix(solution.point) - exact).flatten(1).norm(dim=1)
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
                "largest_update_apart": float((apart / exact.flatten(1).norm(dim=1)).max()),
            }
        )
    return {"modules": len(best), "default_cost_tol": f"{defaults['cost_tol']:.0e}", "rows": rows}


# --- all ----------------------------------------------------------------------------------------------------


def measure(run: common.Run) -> dict[str, Any]:
    """Every solver on every problem, then the table of defaults."""
    torch.set_num_threads(1)
    size = QUICK if run.quick else FULL
    machine = common.machine(1, "pymanopt", "numpy")
    made = {name: problems.family(name, size.adapters, *size.shape, size.modules) for name in size.families}
    agreeing = {name: made[name] for name in AGREEING if name in made}
    made[REAL] = problems.real(SHIPPED, size.real)
    comparison = compare_solvers(made, COMPARED, tol=TOL, max_passes=size.passes, progress=tell)
    patient = compare_solvers(
        agreeing, (SOLVER, "trust_regions"), tol=TOL, max_passes=size.patient_passes, progress=tell
    )
    ends: dict[str, float] = defaultdict(float)
    for outcome in patient.outcomes:
        ends[outcome.problem] = max(ends[outcome.problem], outcome.above_least)
    names = sorted(read_adapter(SHIPPED[0]).modules)[: size.all_real]
    found = {
        "machine": machine,
        "setting": {"levels": [f"{x:.0e}" for x in LEVELS], **size._asdict()},
        "runs": [row(comparison, run) for run in comparison.runs],
        "ends": dict(ends),
        "defaults": measure_defaults(problems.real(SHIPPED, names), size),
    }
    return found | {"goals": goals(found)}


def goals(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked of the engine here."""
    runs = {(run["problem"], run["solver"]): run for run in found["runs"]}

    def passes(name: str, solver: str, *path: str) -> float | None:
        value: Any = runs.get((name, solver), {})
        for step in (*path, "passes"):
            value = value.get(step, {})
        return value or None

    asked = [
        common.goal(
            f"{SOLVER} on {name}: passes to a gradient of {ABSOLUTE:g}",
            passes(name, SOLVER, "absolute"),
            at_most=bound,
        )
        for name, bound in zip(AGREEING, (15, 150, 150), strict=True)
    ]
    for name in AGREEING:
        text = f"{SOLVER} and trust_regions on {name}, to the end: relative difference of F"
        asked.append(common.goal(text, found["ends"].get(name), at_most=1e-9))
    for ours, rule in zip(CONJUGATE, BETA_RULES, strict=True):
        own, stock = (passes(REAL, solver, "levels", "1e-06") for solver in (ours, f"stock {rule}"))
        ratio = own / stock if own and stock else None
        text = f"{ours} on {REAL}: passes to 1e-06, as a multiple of Pymanopt's own"
        asked.append(common.goal(text, ratio, at_most=1.1))
    return asked


# --- tables and picture -------------------------------------------------------------------------------------


def table(result: Mapping[str, Any], cell: Any) -> str:
    """A row for each solver, a column for each problem."""
    rows: dict[str, list[str]] = defaultdict(list)
    for run in result["runs"]:
        rows[run["solver"]].append(cell(run))
    names = dict.fromkeys(run["problem"] for run in result["runs"])
    return common.markdown(["", *names], [[solver, *cells] for solver, cells in rows.items()])


def defaults_table(result: Mapping[str, Any]) -> str:
    """The reason for the default tolerance, as Markdown."""
    show, defaults = common.number, result["defaults"]
    rows = []
    for one in defaults["rows"]:
        name = one["cost_tol"]
        name = f"**{name}** (default)" if name == defaults["default_cost_tol"] else name
        keys = "passes_of_a_module seconds above_tight above_best largest_above_best update_apart"
        numbers = [show(one[key]) for key in (*keys.split(), "largest_update_apart")]
        statuses = ", ".join(f"{count} {status}" for status, count in one["statuses"].items())
        rows.append([name, str(one["passes"]), *numbers, statuses])
    head = ["`cost_tol`", "passes", "of a module, mean", "seconds", "F above tight", "above the best known"]
    head += ["worst module", "‖dW − tight‖ / ‖tight‖", "worst module", "ended"]
    return common.markdown(head, rows)


def tables(result: Mapping[str, Any]) -> str:
    """The README's tables."""
    show, shown = common.number, [f"{level:.0e}" for level in SHOWN]

    def passes(run: Mapping[str, Any]) -> str:
        return " / ".join(show(run["levels"][level]["passes"]) for level in shown)

    def ends(run: Mapping[str, Any]) -> str:
        return f"{show(run['levels']['1e-04']['seconds'])}, {show(max(run['excess']))}"

    return "\n\n".join(
        [
            f"passes to a relative gradient of {' / '.join(shown)}\n\n{table(result, passes)}",
            f"seconds to 1e-04, and F above the best solver's\n\n{table(result, ends)}",
            defaults_table(result),
            common.goals_table(result["goals"]),
        ]
    )


def picture(result: Mapping[str, Any]) -> Any:
    """Relative gradient of the slowest module against passes: a panel for each problem."""
    names = list(dict.fromkeys(run["problem"] for run in result["runs"]))
    columns = math.ceil((len(names) + 1) / 2)
    figure, axes = common.canvas(2, columns, 5 * columns, 8)
    from matplotlib import colormaps

    colors = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for panel in axes.flat[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(axes.flat, names, strict=False):
        for place, run in enumerate(run for run in result["runs"] if run["problem"] == name):
            style = "--" if run["solver"] in STOCK else "-"
            color = colors[place % len(colors)]
            panel.plot(*run["_curve"], style, color=color, lw=1.2, label=run["solver"])
        panel.set(yscale="log", xscale="log", title=name, xlabel="passes", ylim=(LEVELS[-1] / 3, 3))
    axes[0, 0].set_ylabel("gradient norm / that at the start")
    # In the panel that is left.
    axes.flat[-1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="center")
    return figure


def main() -> None:
    """The command."""
    common.execute("convergence", "How many passes and seconds each solver needs.", measure, picture, tables)


if __name__ == "__main__":
    common.one_thread()
    main()
