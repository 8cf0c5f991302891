"""A comparison of solvers in words and columns: what the terminal, the page and the CSV show."""

from __future__ import annotations

import csv
import io

from riemerge.records.comparison_record import MEASURES, SAME_COST, Comparison, Outcome
from riemerge.report.words import number, text_of

PRIMITIVES = {
    "logarithms": "log",
    "exponentials": "exp",
    "alignments": "align",
    "gradients": "grad",
    "hessian_products": "Hess",
}
"""Primitives that are counted, each with the header of its column."""

_WORST = {"above least": "above_least", "‖gradient‖": "gradient_norm", "vertical": "horizontality"}

_WHY = {
    "another minimum": "its gradient vanishes at another critical point, of larger cost.",
    "REFUSED": "the solver does not take this problem.",
}


def verdicts(comparison: Comparison, case: str) -> list[str]:
    """Say which solvers reach the same certified cost on a case, and of the others why not, a line each."""
    judged = {solver: comparison.judge(case, solver) for solver in comparison.ranking(case)}
    from riemerge.frechet.status import Status  # which brings torch, and no list of methods needs it

    counts = {solver: comparison.count(case, solver) for solver in judged}
    reaching = [solver for solver, count in counts.items() if set(count) == {"reached"}]
    (modules,) = {len(rows) for rows in judged.values()}
    known = any(row.determined == "yes" for rows in judged.values() for row in rows)
    kind = "determined modules" if known else "modules (whether their mean is determined is not known)"
    who = f"{len(reaching)} of {len(judged)} solvers reach the same certified cost (to {SAME_COST:g})"
    lines = [f"{case}: {who} on all {modules} {kind}: {', '.join(reaching) or 'none'}."]
    for solver in [solver for solver in judged if solver not in reaching]:
        excess = max(row.above_least for row in judged[solver])
        reached = counts[solver].pop("reached", 0)
        why = [
            f"{count} {name.lower()}: {_WHY.get(name) or Status[name].advice}"
            for name, count in counts[solver].most_common()
        ]
        why += sorted({run.refused for run in comparison.select(case, solver)} - {""})
        found = f"{reached} of {modules} reached, F at most {number(excess)} above the least"
        lines.append(f"{solver} does not: {found}. {' '.join(why)}")
    return lines


def columns(comparison: Comparison, case: str) -> list[tuple[str, list[str]]]:
    """Return the columns of the table of a case, a row for each solver, best first: headers and cells.

    The first six fit a terminal. Costs, gradients and horizontality are those of the judged modules; passes,
    primitives and seconds those of all runs.
    """
    solvers = comparison.ranking(case)
    judged = [comparison.judge(case, solver) for solver in solvers]
    runs = [comparison.select(case, solver) for solver in solvers]
    reached = [f"{sum(row.outcome == 'reached' for row in rows)} of {len(rows)}" for rows in judged]
    spent = [(name, [f"{sum(run.spent[name] for run in row):.4g}" for row in runs]) for name in MEASURES]
    worst = [
        (header, [number(max(getattr(row, name) for row in rows)) for rows in judged])
        for header, name in _WORST.items()
    ]
    counts = [
        (header, [text_of(sum(run.counts.get(name, 0) for run in row) or None) for row in runs])
        for name, header in PRIMITIVES.items()
    ]
    total = ("Σ F", [f"{sum(row.cost for row in rows):.8g}" for rows in judged])
    return [("solver", solvers), ("reached", reached), *spent, *worst, total, *counts]


def comparison_csv(comparison: Comparison) -> str:
    """Return a table with a row for each module of each run."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([Outcome._fields, *comparison.outcomes])
    return text.getvalue()
