"""python -m benchmarks.nli: every method on the six specialists, and the tables of what was found."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import riemerge
from benchmarks.common import machine, tell
from benchmarks.nli.material import COLLECTIONS, require
from benchmarks.nli.protocol import as_run_candidates, candidates, run_collection
from benchmarks.nli.report import contests, for_package, picture, read_results, summary, tables
from riemerge.recipes.candidates import parse

RESULTS = Path(__file__).parent / "results"
PACKAGE = Path(riemerge.__file__).parent / "report" / "measured.json"
QUICK = ("average:rank=sum", "tsv")


def main() -> None:
    """Run what is asked for, then write and print the tables of all results."""
    asked = _options()
    names = [asked.collection] if asked.collection else list(COLLECTIONS)
    if not asked.table:
        require()
        said = asked.methods.split(",") if asked.methods else QUICK if asked.quick else ()
        named = [parse(text) for text in said]
        as_run = named or as_run_candidates()
        chosen = [one for one in named or candidates() if "scale" not in one.parameters]
        complete = not named and len(names) == len(COLLECTIONS)
        where = machine(asked.threads, "transformers", "numpy")
        began = time.perf_counter()
        size = {"limit": 30, "grid": (1.0, 2.0)} if asked.quick else {}
        # A process for each collection: they are faster beside each other than two threads of one.
        with ProcessPoolExecutor(len(names), get_context("spawn")) as pool:
            started = [
                pool.submit(run_collection, name, asked.out, as_run, chosen, threads=asked.threads, **size)
                for name in names
            ]
            measured = sum(one.result() for one in started)
        where["load"]["after"] = os.getloadavg()[0]
        minutes = (time.perf_counter() - began) / 60
        where["run"] = {
            "settings": len({one.name for one in [*as_run, *chosen]}),
            "measured": measured,
            "minutes": minutes,
        }
        _write(asked.out, where, complete=complete)
    print(tables(json.loads((asked.out / "nli.json").read_text(encoding="utf-8"))))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nli", description=__doc__)
    parser.add_argument(
        "--collection", choices=list(COLLECTIONS), help="Collection to measure [default: both]."
    )
    parser.add_argument(
        "--methods",
        help="Methods, METHOD[:PARAMETER=VALUE...] with commas between [default: all for six models].",
    )
    parser.add_argument(
        "--quick", action="store_true", help="Score thirty rows of each task: shows that the benchmark works."
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="Number of threads of each collection [default: 1]."
    )
    parser.add_argument(
        "--out", type=Path, help="Folder of the results; a result that is there is not measured again."
    )
    parser.add_argument(
        "--table", action="store_true", help="Measure nothing; print the tables of the results."
    )
    asked = parser.parse_args()
    if asked.out is None:
        asked.out = Path(tempfile.mkdtemp(prefix="nli-")) if asked.quick and not asked.table else RESULTS
    return asked


def _write(folder: Path, where: dict[str, Any], *, complete: bool) -> None:
    """Write nli.json, nli.md and nli.png from all results that a folder has, and from the complete ones of
    `RESULTS` what the package tells.
    """
    found = {
        name: read_results(folder / f"{name}.jsonl")
        for name in COLLECTIONS
        if (folder / f"{name}.jsonl").exists()
    }
    report = {
        "machine": where,
        "contests": contests(found),
        "collections": {name: summary(one) for name, one in found.items()},
    }
    path = folder / "nli.json"
    there = sum(len(one.chosen) + len(one.as_run) for one in found.values())
    if where["run"]["measured"] < there and path.exists():
        # Some results were there: an earlier run is a part of what made them all, in part made again.
        before = json.loads(path.read_text(encoding="utf-8"))["machine"]["run"]
        for name in ("measured", "minutes"):
            where["run"][name] += before[name]
        where["run"]["measured"] = min(where["run"]["measured"], there)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "nli.md").write_text(tables(report) + "\n", encoding="utf-8")
    picture(report).savefig(folder / "nli.png", dpi=110)
    if folder == RESULTS and complete:
        PACKAGE.write_text(json.dumps(for_package(report), indent=1) + "\n", encoding="utf-8")
    tell(f"wrote {path}, nli.md and nli.png")


if __name__ == "__main__":
    main()
