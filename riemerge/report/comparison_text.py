"""A comparison of solvers in words and columns: what the terminal, the page and the CSV show."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from riemerge.frechet.status import Status
from riemerge.records.comparison_record import SAME_COST, Comparison
from riemerge.report.words import number, text_of

PRIMITIVES = {
    "logarithms": "log",
    "exponentials": "exp",
    "alignments": "align",
    "gradients": "gradient",
    "hessian_products": "Hessian",
}
"""Primitives that are counted, each with the header of its column."""

_WHY = {
    "another minimum": "Its gradient vanishes at another critical point, of larger cost.",
    "REFUSED": "The solver does not take this problem.",
}


def verdicts(comparison: Comparison, case: str) -> list[str]:
    """Say which solvers reach the same certified cost on a case, and of the others why not, a line each."""
    judged = {solver: comparison.judged(case, solver) for solver in comparison.solvers}
    ranking = comparison.ranking(case)
    reaching = [x for x in ranking if comparison.outcomes(case, x)["reached"] == len(judged[x])]
    modules = len(judged[ranking[0]])
    who = f"{len(reaching)} of {len(ranking)} solvers reach the same certified cost (to {SAME_COST:g})"
    lines = [f"{case}: {who} on all {modules} {_kind(comparison, case)}: {', '.join(reaching) or 'none'}."]
    for solver in ranking:
        others = comparison.outcomes(case, solver)
        count = others.pop("reached", 0)
        if not others:
            continue
        excess = max(comparison.excess(run, module) for run, module in judged[solver])
        refusals = {run.refused for run, _ in judged[solver] if run.refused}
        reasons = (f"{number} {name.lower()}: {_explain(name)}" for name, number in others.most_common())
        lines.append(
            f"{solver} does not: {count} of {modules} reached, F at most {number(excess)} above the least; "
            + " ".join([*reasons, *sorted(refusals)])
        )
    return lines


def _kind(comparison: Comparison, case: str) -> str:
    problems = [problem for problem in comparison.problems if problem.case == case]
    known = any(answer == "yes" for problem in problems for answer in problem.determined)
    return "determined modules" if known else "modules (whether their means are determined is not known)"


def _explain(outcome: str) -> str:
    return _WHY.get(outcome) or Status[outcome].advice


def columns(comparison: Comparison, case: str) -> list[tuple[str, list[str]]]:
    """Return the columns of the table of a case, a row for each solver, best first: headers and cells.

    Costs and gradients are those of the judged modules, passes, primitives and seconds those of all runs.
    """
    rows = comparison.ranking(case)
    judged = [comparison.judged(case, solver) for solver in rows]
    runs = [[run for _, run in comparison.of(case, solver)] for solver in rows]
    statuses = [comparison.outcomes(case, solver) for solver in rows]

    def largest(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        return number(max(known) if len(known) == len(values) else None)

    table = [
        ("solver", rows),
        ("reached", [f"{count['reached']} of {count.total()}" for count in statuses]),
        ("Σ F", [number(_sum([run.cost[k] for run, k in pairs])) for pairs in judged]),
        ("above least", [largest([comparison.excess(run, k) for run, k in pairs]) for pairs in judged]),
        ("‖gradient‖", [largest([run.gradient_norm[k] for run, k in pairs]) for pairs in judged]),
        ("horizontality", [largest([run.horizontality[k] for run, k in pairs]) for pairs in judged]),
        ("passes", [str(sum(run.passes for run in row)) for row in runs]),
    ]
    for name, header in PRIMITIVES.items():
        table.append((header, [text_of(sum(run.counts.get(name, 0) for run in row) or None) for row in runs]))
    table.append(("seconds", [number(sum(run.seconds for run in row)) for row in runs]))
    ended = [", ".join(f"{n} {name.lower()}" for name, n in count.most_common()) for count in statuses]
    return [*table, ("ended", ended)]


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def comparison_csv(comparison: Comparison) -> str:
    """Return a table with a row for each module of each run."""
    head = "case problem module determined solver start outcome status cost above_least gradient_norm bound "
    head += "horizontality passes seconds"
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*head.split(), *(f"run_{name}" for name in ("passes", "seconds", *PRIMITIVES))])
    for case in comparison.cases:
        for solver in comparison.solvers:
            for problem, run in comparison.of(case, solver):
                for k, module in enumerate(problem.modules):
                    outcome, excess = comparison.outcome(run, k), comparison.excess(run, k)
                    numbers = run.cost[k], excess, run.gradient_norm[k], run.bound[k], run.horizontality[k]
                    spent = run.spent_passes[k], run.spent_seconds[k], run.passes, run.seconds
                    counts = [run.counts.get(name, "") for name in PRIMITIVES]
                    names = case, problem.name, module, problem.determined[k], solver, run.start
                    table.writerow([*names, outcome, run.status[k], *numbers, *spent, *counts])
    return text.getvalue()
