"""The table of a batch: what became of each merge."""

from __future__ import annotations

from collections import Counter

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from riemerge.records.batch_record import BatchEntry, BatchRecord
from riemerge.report.words import count, number, printable, text_of, when

MOST_MODELS = 3
"""Above so many models, a row shows their number."""


def batch_report(record: BatchRecord) -> RenderableType:
    """Show a batch: a row for each merge, the problems of those that failed, and a count."""
    table = Table(box=None, pad_edge=False)
    for title in ("merge", "models", "method"):
        table.add_column(title, overflow="fold")
    table.add_column("status")
    table.add_column("seconds", justify="right")
    table.add_column("‖dW‖", justify="right")
    for entry in record.merges:
        table.add_row(
            Text(printable(entry.name)),
            Text(printable(_models(entry))),
            Text(printable(_method(entry))),
            Text(entry.status, style=when(entry.status == "failed", "red")),
            text_of(entry.seconds, "{:.2f}"),
            number(entry.norm),
        )
    problems = [
        Text(printable(f"{entry.name}: {problem}"), style="red")
        for entry in record.merges
        for problem in entry.problems
    ]
    counts = Counter(entry.status for entry in record.merges)
    words = ", ".join(f"{times} {status}" for status, times in counts.items())
    return Group(table, *problems, Text(f"{count(len(record.merges), 'merge')}: {words}"))


def _models(entry: BatchEntry) -> str:
    if len(entry.models) > MOST_MODELS:
        return f"{len(entry.models)} models"
    return ", ".join(entry.models)


def _method(entry: BatchEntry) -> str:
    return " ".join([entry.method, *(f"{name}={value}" for name, value in entry.parameters.items())])
