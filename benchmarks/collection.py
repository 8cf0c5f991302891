"""Collections of adapters: what `riemerge map` costs and finds, and what many merges cost beside one.

Run from the root of the repository: python -m benchmarks.collection [--quick]
Writes benchmarks/results/collection.json and .png; benchmarks/README.md says how to read them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import common, merge_llama
from benchmarks.common import RIEMERGE
from benchmarks.peers import SHIPPED
from tests.planted_collection import Planted, plant_collection

KINDS = ("copies", "refactored", "scaled", "families", "strangers", "loud")
PLANTED = "planted.json"


class Size(NamedTuple):
    """What is measured.

    Attributes:
        counts: Numbers of adapters of the collections.
        modules: Modules of the adapters; None stands for all 36.
        merged: What a sweep merges two adapters of.
        steps: Points of the sweep.
        repeats: Repeats of what is small.
    """

    counts: tuple[int, ...]
    modules: tuple[str, ...] | None
    merged: merge_llama.Size
    steps: int
    repeats: int


FULL = Size((60, 300, 1000), None, merge_llama.FULL, steps=11, repeats=3)
QUICK = Size((30,), ("encoder.layer.0.attention.self.query",), merge_llama.QUICK, steps=3, repeats=1)
BOUNDS = {60: 20.0, 1000: 900.0}  # seconds


# --- a collection -------------------------------------------------------------------------------------------


def plant(root: Path, count: int, size: Size) -> None:
    """Write a planted collection, and what is in it."""
    planted = plant_collection(root / "adapters", count, modules=size.modules)
    kept = planted._asdict() | {"paths": len(planted.paths)}
    (root / PLANTED).write_text(json.dumps(kept, default=sorted), encoding="utf-8")


def read_planted(root: Path) -> Planted:
    """What is in a collection that `plant` wrote."""
    kept = json.loads((root / PLANTED).read_text(encoding="utf-8"))
    sets = {name: set(kept[name]) for name in ("strangers", "loud")}
    families = [set(one) for one in kept["families"]]
    return Planted(**kept | sets | {"paths": sorted((root / "adapters").iterdir()), "families": families})


def found_of(planted: Planted, record: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """For each kind that was planted: how many there are, were found, and were said beside them."""
    said = {kind: dict(of_likeness(record, kind)) for kind in ("copy", "refactored", "scaled")}
    repeated = {one["name"] for group in record["copies"] for one in group["repetitions"]}
    origins = {**planted.copies, **planted.refactored, **planted.scaled}
    groups = [{group["kept"], *(one["name"] for one in group["repetitions"])} for group in record["copies"]]
    found: dict[str, dict[str, int]] = {}
    for kind, likeness in (("copies", "copy"), ("refactored", "refactored"), ("scaled", "scaled")):
        pairs: Mapping[str, str] = getattr(planted, kind)
        together = [any({name, origin} <= group for group in groups) for name, origin in pairs.items()]
        known = {frozenset(pair) for pair in pairs.items()}
        more = [pair for pair in said[likeness].items() if frozenset(pair) not in known]
        found[kind] = {"planted": len(pairs), "found": sum(together), "more": len(more)}
    of_family = {name: place for place, family in enumerate(planted.families) for name in family}
    of_family |= {name: of_family[origin] for name, origin in origins.items()}
    clusters = [{*one["members"]} for one in record["clusters"] if one["kind"] == "family"]
    families = [
        {name for name, place in of_family.items() if place == i} for i in range(len(planted.families))
    ]
    found["families"] = {
        "planted": len(families),
        "found": sum(family in clusters for family in families),
        "more": sum(cluster not in families for cluster in clusters),
    }
    outliers = {
        measure: {one["name"] for one in record["outliers"] if one["measure"] == measure} - repeated
        for measure in ("direction", "norm")
    }
    for kind, names, measure in (
        ("strangers", planted.strangers | planted.loud, "direction"),
        ("loud", planted.loud, "norm"),
    ):
        known = outliers[measure]
        found[kind] = {"planted": len(names), "found": len(names & known), "more": len(known - names)}
    return found


def of_likeness(record: Mapping[str, Any], likeness: str) -> Iterator[tuple[str, str]]:
    """Pairs of a repetition and what is kept of its group."""
    for group in record["copies"]:
        yield from (
            (one["name"], group["kept"]) for one in group["repetitions"] if one["likeness"] == likeness
        )


# --- the measurement ----------------------------------------------------------------------------------------


class Bench:
    """The commands of this benchmark.

    Args:
        run: The run.
        size: What is measured.
    """

    def __init__(self, run: common.Run, size: Size) -> None:
        self.run, self.size = run, size

    def riemerge(self, *words: object, keep: bool = False) -> dict[str, float]:
        """One command whose last word is its output, a folder that is new unless an earlier one is kept."""
        out = self.run.folder / "out"
        if not keep:
            shutil.rmtree(out, ignore_errors=True)
        return common.launch(RIEMERGE, *words, out, apart=not self.run.quick).row()

    def map(self, count: int) -> dict[str, Any]:
        """Map a planted collection; the same again, which is there; and what was found."""
        root = self.run.files(f"collection-{count}", lambda folder: plant(folder, count, self.size))
        planted = read_planted(root)
        repeats = self.size.repeats if count == min(self.size.counts) else 1
        words = ["map", *planted.paths, "--quiet", "--output"]
        runs = [self.riemerge(*words) for _ in range(repeats)]
        again = self.riemerge(*words, keep=True)
        record = json.loads((self.run.folder / "out" / "collection.json").read_text(encoding="utf-8"))
        return {"runs": runs, "again": again, "found": found_of(planted, record)}

    def sweep(self) -> dict[str, Any]:
        """A sweep of two adapters beside one merge of them, in turn."""
        inputs = merge_llama.write_inputs(self.run, self.size.merged)
        pair = inputs.whole[max(inputs.whole)][:2]
        found: dict[str, Any] = {"sweep": [], "merge": []}
        for _ in range(self.size.repeats):
            found["sweep"].append(self.riemerge("sweep", *pair, "--steps", self.size.steps, "--quiet", "-o"))
            found["merge"].append(self.riemerge("merge", *pair, "--method", "average", "--quiet", "-o"))
        return found

    def inspect(self) -> dict[str, Any]:
        """`inspect` of the four shipped adapters, beside the import of torch, in turn."""
        found: dict[str, Any] = {"inspect": [], "import torch": []}
        for _ in range(self.size.repeats):
            words = ("inspect", *SHIPPED, "--quiet")
            found["inspect"].append(common.launch(RIEMERGE, *words, apart=not self.run.quick).row())
            found["import torch"].append(common.import_torch(apart=not self.run.quick).row())
        return found

    def batch(self) -> dict[str, Any]:
        """All pairs of the four shipped adapters by two rows in one batch, and one such merge by itself."""
        plan = self.run.folder / "plan.json"  # JSON is YAML
        asked = {"models": [*map(str, SHIPPED)], "each": "pairs", "methods": ["average", "spectrum"]}
        plan.write_text(json.dumps(asked), encoding="utf-8")
        found: dict[str, Any] = {"batch": [], "merge": []}
        for _ in range(self.size.repeats):
            found["batch"].append(self.riemerge("batch", plan, "--quiet", "--output"))
            found["merges"] = sum(1 for _ in (self.run.folder / "out").rglob("adapter_model.safetensors"))
            found["merge"].append(self.riemerge("merge", *SHIPPED[:2], "--quiet", "--output"))
        return found


def measure(run: common.Run) -> dict[str, Any]:
    """Everything, in pieces."""
    size = QUICK if run.quick else FULL
    machine, bench = common.machine(os.cpu_count() or 1, "safetensors"), Bench(run, size)
    maps = {str(count): run.piece(f"map {count}", bench.map, count) for count in size.counts}
    many = {name: run.piece(name, getattr(bench, name)) for name in ("sweep", "inspect", "batch")}
    found = {
        "machine": machine,
        "setting": {"counts": list(size.counts), "steps": size.steps, "adapters": len(SHIPPED)},
        "maps": {count: {**one, "runs": spread(one["runs"])} for count, one in maps.items() if one},
        "many": {
            name: {key: spread(value) if isinstance(value, list) else value for key, value in one.items()}
            for name, one in many.items()
            if one
        },
    }
    return found | {"goals": goals(found)}


def spread(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Noise of each figure of some runs."""
    return {key: common.noise([one[key] for one in runs]) for key in ("seconds", "cpu", "mib")}


def goals(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked; a figure that is missing is not met."""
    get, asked = common.dig, []
    for count, bound in BOUNDS.items():
        one = found["maps"].get(str(count))
        asked.append(
            common.goal(f"map of {count}: seconds", get(one, "runs", "seconds", "median"), at_most=bound)
        )
    asked.append(
        common.goal(
            "map of 1000: MiB", get(found["maps"].get("1000"), "runs", "mib", "highest"), at_most=2048
        )
    )
    for count, one in found["maps"].items():
        missed = sum(row["planted"] - row["found"] for row in one["found"].values())
        asked.append(common.goal(f"map of {count}: planted things that were not found", missed, at_most=0))

    def seconds(part: str, name: str) -> float | None:
        found_seconds: float | None = get(found, "many", part, name, "seconds", "median")
        return found_seconds

    start = seconds("inspect", "import torch")
    whole = seconds("inspect", "inspect")
    above = None if start is None or whole is None else whole - start
    steps = found["setting"]["steps"]
    times = common.ratio(seconds("sweep", "sweep"), seconds("sweep", "merge"))
    return [
        *asked,
        common.goal(f"a sweep of {steps} points: times one merge", times, at_most=3),
        common.goal("`inspect` of four: seconds above `import torch`", above, at_most=1),
    ]


def tables(result: Mapping[str, Any]) -> str:
    """The README's tables."""
    show = common.number
    rows = [
        [count, common.span(one["runs"]["seconds"]), show(one["runs"]["cpu"]["median"])]
        + [show(one["runs"]["mib"]["highest"]), show(one["again"]["seconds"])]
        + ["{found} of {planted}".format(**one["found"][kind]) for kind in KINDS]
        + [str(sum(row["more"] for row in one["found"].values()))]
        for count, one in result["maps"].items()
    ]
    many = [
        [part, name, common.span(value["seconds"]), show(value["mib"]["highest"])]
        for part, one in result["many"].items()
        for name, value in one.items()
        if isinstance(value, Mapping)
    ]
    head = ["adapters", "seconds", "CPU s", "peak MiB", "again, s", *KINDS, "not planted"]
    tables = common.tables_of((head, rows), (["", "command", "seconds", "peak MiB"], many))
    return "\n\n".join([tables, common.goals_table(result["goals"])])


def picture(result: Mapping[str, Any]) -> Any:
    """Seconds and memory of a map over the number of adapters."""
    figure, ((left, right),) = common.canvas(1, 2, 9, 4)
    counts = sorted(map(int, result["maps"]))
    for axes, key, title in ((left, "seconds", "seconds"), (right, "mib", "peak MiB")):
        axes.plot(counts, [result["maps"][str(count)]["runs"][key]["median"] for count in counts], "o-")
        axes.set(xlabel="adapters", title=title, ylim=(0, None))
    return figure


def main() -> None:
    """The command."""
    common.execute("collection", "Collections of adapters, and many merges.", measure, picture, tables)


if __name__ == "__main__":
    main()
