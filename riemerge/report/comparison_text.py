"""A comparison of solvers in words and columns: what the terminal, the page and the CSV show."""

from __future__ import annotations

import csv
import io

from riemerge.frechet.status import Status
from riemerge.records.comparison_record import MEASURES, SAME_COST, Comparison
from riemerge.report.words import number, text_of

PRIMITIVES = {
    "logarithms": "log",
    "exponentials": "exp",
    "alignments": "align",
    "gradients": "grad",
    "hessian_products": "Hess",
}
"""Primitives that are counted, each with the header of its column."""

_WHY = {
    "another minimum": "its gradient vanishes at another critical point, of larger cost.",
    "REFUSED": "the solver does not take this problem.",
}


def verdicts(comparison: Comparison, case: str) -> list[str]:
    """Say which solvers reach the same certified cost on a case, and of the others why not, a line each."""
    ranking = comparison.ranking(case)
    outcomes = {solver: comparison.outcomes(case, solver) for solver in ranking}
    reaching = [solver for solver, counts in outcomes.items() if set(counts) == {"reached"}]
    problems = [problem for problem in comparison.problems if problem.case == case]
    determined = any("yes" in problem.determined for problem in problems)
    kind = "determined modules" if determined else "modules (whether their mean is determined is not known)"
    modules = outcomes[ranking[0]].total()
    who = f"{len(reaching)} of {len(ranking)} solvers reach the same certified cost (to {SAME_COST:g})"
    lines = [f"{case}: {who} on all {modules} {kind}: {', '.join(reaching) or 'none'}."]
    for solver in [solver for solver in ranking if solver not in reaching]:
        judged = comparison.judge(case, solver)
        excess = max(comparison.excess(run, k) for run, modules in judged for k in modules)
        counts = outcomes[solver].copy()
        others = (
            f"{counts.pop('reached', 0)} of {modules} reached, F at most {number(excess)} above the least"
        )
        reasons = [
            f"{count} {name.lower()}: {_WHY.get(name) or Status[name].advice}"
            for name, count in counts.most_common()
        ]
        refusals = {run.refused for run, _ in judged if run.refused}
        lines.append(f"{solver} does not: {others}. {' '.join([*reasons, *sorted(refusals)])}")
    return lines


def columns(comparison: Comparison, case: str) -> list[tuple[str, list[str]]]:
    """Return the columns of the table of a case, a row for each solver, best first: headers and cells.

    Costs, gradients and horizontality are those of the judged modules; passes, primitives and seconds those
    of all runs.
    """
    rows = comparison.ranking(case)
    judged = [
        [(run, k) for run, modules in comparison.judge(case, solver) for k in modules] for solver in rows
    ]
    runs = [[run for _, run in comparison.select(case, solver)] for solver in rows]
    reached = [comparison.outcomes(case, solver)["reached"] for solver in rows]
    costs = [[run.cost[k] for run, k in pairs] for pairs in judged]
    excesses = [[comparison.excess(run, k) for run, k in pairs] for pairs in judged]
    norms = [[run.gradient_norm[k] or 0.0 for run, k in pairs] for pairs in judged]
    vertical = [[run.horizontality[k] or 0.0 for run, k in pairs] for pairs in judged]
    spent = {name: [sum(run.spent[name] for run in row) for row in runs] for name in MEASURES}
    counts = {name: [sum(run.counts.get(name, 0) for run in row) for row in runs] for name in PRIMITIVES}
    return [
        ("solver", rows),
        ("reached", [f"{count} of {len(pairs)}" for count, pairs in zip(reached, judged, strict=True)]),
        ("Σ F", [text_of(None if None in row else sum(filter(None, row)), "{:.8g}") for row in costs]),
        ("above least", [number(max(row)) for row in excesses]),
        ("‖gradient‖", [number(max(row)) for row in norms]),
        ("vertical", [number(max(row)) for row in vertical]),
        ("passes", [f"{total:.0f}" for total in spent["passes"]]),
        *((PRIMITIVES[name], [text_of(total or None) for total in row]) for name, row in counts.items()),
        ("seconds", [number(total) for total in spent["seconds"]]),
    ]


def comparison_csv(comparison: Comparison) -> str:
    """Return a table with a row for each module of each run."""
    head = "case problem module determined solver start outcome status cost above_least gradient_norm bound"
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    totals = [f"run_{name}" for name in (*MEASURES, *PRIMITIVES)]
    table.writerow([*head.split(), "horizontality", *MEASURES, *totals])
    problems = {problem.name: problem for problem in comparison.problems}
    for run in comparison.runs:
        problem = problems[run.problem]
        counts = [run.counts.get(name, "") for name in PRIMITIVES]
        for k, module in enumerate(problem.modules):
            names = problem.case, problem.name, module, problem.determined[k], run.solver, run.start
            cost = run.cost[k], comparison.excess(run, k), run.gradient_norm[k], run.bound[k]
            needed = [run.needed[name][k] if run.needed else "" for name in MEASURES]
            ended = comparison.outcome(run, k), run.status[k], *cost, run.horizontality[k]
            table.writerow([*names, *ended, *needed, *run.spent.values(), *counts])
    return text.getvalue()
