"""A comparison in words: who reaches the least cost, who does not and why; and as CSV."""

from __future__ import annotations

import csv
import io

from riemerge.frechet import Status
from riemerge.report.comparison_text import columns, comparison_csv, verdicts
from tests.study.comparisons import made_comparison, made_run

CASE = "polar & square"
RUNS = (
    made_run("slow", [9, 9, 9]),
    made_run("best", [2, 4, 5]),
    made_run("lost", [3, 3, 3], cost=(1.0, 1.2, 1.0)),
    made_run("poor", [7, 8, 8], gradient=1e-3, status="BUDGET"),
    made_run("other", [0, 0, 0], cost=(float("inf"),) * 3, status="REFUSED", refused="wants a closed form"),
)


def test_the_verdict_names_those_that_arrive_and_says_why_others_do_not() -> None:
    first, *others = verdicts(made_comparison(*RUNS), CASE)
    assert "2 of 5 solvers reach the same certified cost" in first
    assert first.endswith("on all 3 modules (whether their mean is determined is not known): best, slow.")
    assert [line.partition(" ")[0] for line in others] == ["lost", "other", "poor"]
    lost, other, poor = others
    assert "2 of 3 reached, F at most 0.200 above the least. 1 another minimum: its gradient vanishes" in lost
    assert other.endswith("wants a closed form")
    assert f"0 of 3 reached, F at most 0 above the least. 3 budget: {Status.BUDGET.advice}" in poor
    determined = verdicts(made_comparison(*RUNS, determined=("yes", "no", "yes")), CASE)
    assert determined[0].endswith("on all 2 determined modules: lost, best, slow.")


def test_columns_are_of_the_judged_modules_and_all_passes() -> None:
    table = dict(columns(made_comparison(*RUNS, determined=("yes", "no", "yes")), CASE))
    row = {header: cells[table["solver"].index("lost")] for header, cells in table.items()}
    assert row["reached"] == "2 of 2"
    assert (row["Σ F"], row["above least"], row["passes"], row["log"]) == ("2", "0", "3", "12")
    assert table["grad"] == ["-"] * 5


def test_the_csv_has_a_row_for_each_module_of_each_run() -> None:
    rows = list(csv.DictReader(io.StringIO(comparison_csv(made_comparison(*RUNS)))))
    assert len(rows) == 15
    lost = next(row for row in rows if row["solver"] == "lost" and row["module"] == "<v>")
    assert (lost["outcome"], lost["status"], lost["passes"]) == ("another minimum", "CONVERGED", "3.0")
    assert float(lost["above_least"]) == float(lost["cost"]) - 1
