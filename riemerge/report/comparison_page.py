"""The page of a comparison of solvers: one HTML file that needs nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape

from riemerge.records.comparison_record import Comparison
from riemerge.report.comparison_text import columns, verdicts
from riemerge.report.words import printable, when

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e5e5e5; text-align: right; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; overflow-wrap: anywhere; min-width: 4rem; }
th:first-child, td:first-child { text-align: left; }
tr.short td { color: #a33; }
svg { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .85rem; } figure { margin: 1.5rem 0; }
summary { cursor: pointer; color: #245; margin: .8rem 0; }
"""

_CAPTIONS = {
    "curves": "Largest ‖gradient‖ over the judged modules, from the solver's own start.",
    "profiles": (
        "Performance profiles (Dolan and Moré 2002): the share of modules that a solver reaches within a "
        "multiple of what the best solver of each module spent."
    ),
}


def comparison_page(comparison: Comparison, pictures: Mapping[str, bytes], note: str = "") -> str:
    """Return the page: what was compared, who reaches the least cost and why others do not, tables, pictures.

    Law: a function of its arguments; every name from outside is escaped; nothing is loaded from anywhere.

    Args:
        comparison: The comparison.
        pictures: Pictures by file name; those of them that are SVG stand on the page.
        note: A line about what is missing on the page.
    """
    parts = ["<h1>Solvers compared</h1>", _facts(comparison)]
    parts += [f"<p><em>{_text(text)}</em></p>" for text in (*comparison.notes, note) if text]
    for case in comparison.cases:
        lines = "".join(f"<li>{_text(line)}</li>" for line in verdicts(comparison, case))
        parts += [f"<h2>{_text(case)}</h2>", f"<ul>{lines}</ul>", _summary(comparison, case)]
        parts.append(_modules(comparison, case))
    for name, caption in _CAPTIONS.items():
        svg = pictures.get(f"{name}.svg", b"").decode()
        parts.append(
            when(svg, f"<figure>{svg[svg.find('<svg') :]}<figcaption>{_text(caption)}</figcaption></figure>")
        )
    head = f'<meta charset="utf-8"><title>Solvers compared</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(parts)}</body></html>\n'


def _facts(comparison: Comparison) -> str:
    modules = sum(len(problem.modules) for problem in comparison.problems)
    starts = max(run.start for run in comparison.runs) + 1
    versions = ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
    text = f"""
{len(comparison.solvers)} solvers on {modules} modules, from {starts} start{when(starts > 1, "s")} each (seed
{comparison.seed}), judged on those whose mean the adapters determine, where that is known.

Each module is solved until ‖gradient‖ ≤ {comparison.tol:g} · max(1, √(2 F)), within {comparison.max_passes}
passes over all logarithms. Cost, gradient and horizontality are computed anew at the end, in the same way for
all solvers. Costs are comparable within a case, which is one geometry and one loss, and not between cases.

Computed with {versions}."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return "".join(f"<p>{_text(paragraph)}</p>" for paragraph in paragraphs)


def _summary(comparison: Comparison, case: str) -> str:
    """Return the table of solvers, those that do not reach the least cost everywhere in another colour."""
    table = [(header, cells) for header, cells in columns(comparison, case) if {*cells} != {"-"}]
    rows = list(zip(*(cells for _, cells in table), strict=True))
    short = {row[0] for row in rows if set(comparison.count(case, row[0])) != {"reached"}}
    return _table([header for header, _ in table], rows, short)


def _modules(comparison: Comparison, case: str) -> str:
    """Return the passes of each solver to each module's certificate, folded away."""
    rows: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for row in comparison.outcomes:
        if row.case == case:
            cell = f"{row.passes:.0f}" if row.outcome == "reached" else row.outcome.lower()
            rows[row.module, row.determined or "-", f"{row.start}"][row.solver] = cell
    solvers = comparison.ranking(case)
    table = [[*names, *(cells[solver] for solver in solvers)] for names, cells in rows.items()]
    body = _table(["module", "determined", "start", *solvers], table)
    return f"<details><summary>Passes to the certificate of each module</summary>{body}</details>"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], short: Collection[str] = ()) -> str:
    headers = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    marks = ((row, when(row[0] in short, ' class="short"')) for row in rows)
    body = "".join(f"<tr{mark}>{_cells(row)}</tr>" for row, mark in marks)
    return f'<div class="wide"><table><thead><tr>{headers}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(row: Iterable[str]) -> str:
    return "".join(f"<td>{_text(cell)}</td>" for cell in row)


def _text(text: str) -> str:
    return escape(printable(text))
