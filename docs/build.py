"""The generated parts of README and of the pages beside this file: `python -m docs.build` writes them anew.

A generated part stands between two comments with its name. It is made from the code and the benchmark files,
never typed; `tests/docs/test_build.py` compares the pages with what this module makes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import conformance, gauge, peers
from benchmarks.costs import costs
from benchmarks.nli import subsets
from benchmarks.nli.report import advice, overview
from riemerge.methods import DEFAULT_METHOD, METHODS, PARAMETERS
from riemerge.report.method_page import needs, parameters, weights
from riemerge.report.words import value_type

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
NLI = ROOT / "benchmarks" / "nli" / "results"

HEADLINE = {
    DEFAULT_METHOD: "the default: no option, no data",
    "power_mean": "",
    "cart": "",
    "ties:density=0.2": "the density that its authors use",
    "tsv": "",
    "average": "",
    "geomerge": "the Fréchet mean on the quotient manifold",
    "lowrank_mats": "needs 256 labelled rows of each task",
}
"""Rows of the README's table, each with a remark."""


def read_result(path: Path) -> dict[str, Any]:
    """Return the committed result of a benchmark."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def headline() -> str:
    """Return the README's table: what each method keeps as its command runs it, on both collections."""
    collections = read_result(NLI / "nli.json")["collections"]
    scores = [
        {one["entry"]: one["as_run"] for one in part["entries"] if "as_run" in one}
        for part in collections.values()
    ]
    rows = [
        [f"`{name}`", *(_share(part[name]) for part in scores), remark] for name, remark in HEADLINE.items()
    ]
    for key, title, remark in (
        ("specialists", "six specialists", "each on its own task"),
        ("base", "base model", ""),
    ):
        rows.append([title, *(_share(part[key]) for part in collections.values()), remark])
    return _table(["method", *(f"{name} A" for name in collections), "remark"], rows)


def methods_table() -> str:
    """Return the table of methods."""
    head = [
        "method",
        "what it is",
        "parameters (defaults)",
        "needs",
        "weights",
        "copies merge to it",
        "source",
    ]
    copies = {True: "yes", False: "no"}
    rows = [
        [
            f"`{row.name}`",
            row.summary,
            parameters(row),
            needs(row),
            weights(row),
            copies[row.idempotent],
            row.source,
        ]
        for row in METHODS.values()
    ]
    return _table(head, rows)


def parameters_table() -> str:
    """Return the table of parameters: type and range, whether it may differ by module and model, meaning."""
    marks = {True: "yes", False: ""}
    rows = [
        [f"`{name}`", f"`{value_type(spec)}`", marks[spec.per_module], marks[spec.per_model], spec.summary]
        for name, spec in PARAMETERS.items()
    ]
    return _table(["parameter", "type", "by module", "by model", "meaning"], rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "methods": methods_table,
    "parameters": parameters_table,
    "costs": costs,
    "gauge": lambda: gauge.summary(read_result(gauge.COMMITTED)),
    "peers": lambda: peers.table(read_result(peers.RESULTS)),
    "conformance": lambda: conformance.table(read_result(conformance.COMMITTED)),
    "subsets": lambda: subsets.claim(read_result(NLI / "subsets.json")),
    "nli": lambda: overview(read_result(NLI / "nli.json")),
    "which": lambda: advice(read_result(NLI / "nli.json")),
}
"""The generated parts, by name."""


def fill(text: str) -> str:
    """Return a page with every generated part made anew.

    Raises:
        KeyError: A part has a name that is not in BLOCKS.
    """

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- {name} -->\n{BLOCKS[name]().strip()}\n<!-- /{name} -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", block, text, flags=re.DOTALL)


def _share(score: dict[str, Any]) -> str:
    return f"{score['normalised']:.3f} ± {score['error']:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
