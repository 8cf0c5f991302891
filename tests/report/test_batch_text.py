"""The table of a batch shows names as they are, and says what failed."""

from __future__ import annotations

from rich.console import Console

from riemerge.records.batch_record import BatchEntry, BatchRecord
from riemerge.report.batch_text import batch_report


def test_what_a_table_says() -> None:
    entry = BatchEntry(name="one", method="ties", models=("a", "b", "c", "d"), parameters={"density": 0.5})
    failed = entry.model_copy(
        update={
            "name": "[red]\x1b[31m",
            "models": ("a",),
            "status": "failed",
            "problems": ("x: [bold]no mean",),
        }
    )
    made = entry.model_copy(update={"status": "made", "seconds": 1.234, "norm": 12.3})
    console = Console(width=100, force_terminal=False)
    with console.capture() as shown:
        console.print(batch_report(BatchRecord(plan="plan.yaml", version="0", merges=(made, failed))))
    _, one, other, problem, count = shown.get().splitlines()
    assert one.split() == ["one", "4", "models", "ties", "density=0.5", "made", "1.23", "12.3"]
    assert other.startswith("[red]\\x1b[31m")
    assert problem == "[red]\\x1b[31m: x: [bold]no mean"
    assert count == "2 merges: 1 made, 1 failed"
    with console.capture() as shown:
        console.print(batch_report(BatchRecord(plan="plan.yaml", version="0", merges=(made,))))
    assert shown.get().splitlines()[-1] == "1 merge: 1 made"
