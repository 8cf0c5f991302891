"""Does the verdict that a merge gives by the overlap of its inputs agree with how far ten starts end apart?
What is behind it where it is left open, and does `starts: auto` find that?

Run from the root of the repository: python -m benchmarks.verdict
Writes benchmarks/results/verdict.json. Differences and counts, no times: they repeat on any machine. The real
adapters that do not travel with the project are left out where they are absent.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.nli.material import COLLECTIONS, specialists
from benchmarks.peers import SHIPPED
from riemerge import merge_adapters
from riemerge.merging.identifiability import judge_overlap, pairing
from tests.folders import family, write_family
from tests.helpers import FAMILIES, shared_data_folder

RANK, COUNT, STARTS, SEED = 16, 6, 10, 4001
SHAPES = {
    f"layers.{i}.{side}": shape for i in range(3) for side, shape in (("q", (256, 224)), ("v", (160, 192)))
}
RESULTS = Path(__file__).parent / "results" / "verdict.json"


def agreement(folders: Sequence[Path]) -> dict[str, Any]:
    """Merges some folders from ten starts, and compares the two verdicts module by module; and with them that
    of as many starts as the overlap calls for.
    """
    record = merge_adapters(folders, method="geomerge", starts=STARTS, cost_tol=1e-6).record
    auto = merge_adapters(folders, method="geomerge", starts="auto").record
    rows = [row for row in record.modules if row.update_spread is not None]
    answers = [(judge_overlap(row.overlap), judge_overlap(row.overlap, row.update_spread)) for row in rows]
    told = [judged == measured for judged, measured in answers if judged != "open"]
    spreads = [row.update_spread for row in rows if row.update_spread is not None]
    costs = [row.cost_spread for row in rows if row.cost_spread is not None]
    return {
        "auto_measured": sum(row.starts is not None for row in auto.modules),
        "auto_agrees": sum(
            one.determined == row.determined
            for one, row in zip(auto.modules, record.modules, strict=True)
            if row.update_spread is not None
        ),
        "auto_total": auto.totals.determined,
        "told": len(told),
        "told_rightly": sum(told),
        "open": dict(Counter(str(measured) for judged, measured in answers if judged == "open")),
        "measured": dict(Counter(str(measured) for _, measured in answers)),
        "update_spread": [min(spreads), statistics.median(spreads), max(spreads)],
        "cost_spread_most": max(costs),
        "weakest": statistics.median(row.overlap.weakest for row in rows if row.overlap is not None),
        "total": record.totals.determined,
        "modules": [
            [row.overlap.weakest, pairing(row.overlap), row.update_spread]
            for row in rows
            if row.overlap is not None
        ],
    }


def main() -> None:
    """Measures every family and the real adapters, and writes the results."""
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in FAMILIES:
            folders = write_family(Path(scratch) / name, family(name, COUNT, RANK, SEED, SHAPES))
            results[name] = agreement(folders)
            print(name, results[name], flush=True)
    results["four of examples/adapters"] = agreement(SHIPPED)
    if shared_data_folder() is not None:
        for name in COLLECTIONS:
            results[f"six of nli, {name}"] = agreement(list(specialists(name).values()))
    setting = {"rank": RANK, "adapters": COUNT, "starts": STARTS, "seed": SEED, "shapes": SHAPES}
    RESULTS.write_text(json.dumps({"setting": setting, "sets": results}, indent=2) + "\n", encoding="utf-8")
    for name, row in results.items():
        print(name, row)


if __name__ == "__main__":
    main()
