"""How merges grow: with the number of adapters, their rank, the number of modules, the width of a model.

Run from the root of the repository: python -m benchmarks.scaling [--quick]
Writes benchmarks/results/scaling.json and .png; benchmarks/README.md says how to read them. One thread.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import common
from riemerge import merge_adapters
from tests.folders import write_folder
from tests.helpers import seeded


class Case(NamedTuple):
    """What is merged: T adapters of K modules of one square shape."""

    adapters: int
    rank: int
    modules: int
    width: int


class Axis(NamedTuple):
    """A quantity that grows, the others fixed.

    Attributes:
        base: The other fields of the cases.
        points: Row of the table to the values of the field, rising.
        repeats: Repeats of a case, of which none is begun after `LONG` seconds.
    """

    base: Case
    points: Mapping[str, tuple[int, ...]]
    repeats: int

    def cases(self, field: str) -> list[tuple[str, Case]]:
        """Every row at every value of a field, the least first, so that rows take turns."""
        pairs = [(value, method) for method, values in self.points.items() for value in values]
        return [(method, self.base._replace(**{field: value})) for value, method in sorted(pairs)]


LONG = 10.0
UP_TO_WIDTH, BEYOND = (6, 20, 50, 100, 128), (250, 500, 1000)
FLAT = ("average", "spectrum")
FULL = {
    "adapters": Axis(
        Case(6, 8, 2, 1024),
        {
            **dict.fromkeys(FLAT, UP_TO_WIDTH + BEYOND),
            "tsv": (20, 50, 100, 250),
            "ties": (6, 20, 50),
        },
        repeats=3,
    ),
    "rank": Axis(Case(6, 8, 2, 4096), dict.fromkeys(FLAT, (8, 16, 32, 64, 128)), repeats=2),
    "modules": Axis(Case(4, 4, 1, 64), dict.fromkeys(FLAT, (10, 100, 500, 2000)), repeats=2),
    "width": Axis(Case(6, 16, 2, 64), dict.fromkeys((*FLAT, "geomerge"), (1024, 4096, 14336)), repeats=2),
}
QUICK = {
    "adapters": Axis(Case(2, 3, 1, 12), {"average": (2, 4, 8, 12), "spectrum": (2, 4)}, repeats=1),
    "modules": Axis(Case(2, 2, 1, 12), {"average": (1, 3)}, repeats=1),
}


def write_case(root: Path, case: Case) -> None:
    """Write a case as PEFT folders in float32: half of each adapter common to all, half its own."""
    generator = seeded(case.adapters + 7 * case.rank)
    shape = (case.modules, case.width, case.rank)
    b, a = (torch.randn(shape, generator=generator) for _ in range(2))
    names = [f"layers.{i}.q" for i in range(case.modules)]
    settings: dict[str, Any] = {"base_model_name_or_path": None, "target_modules": names}
    for i in range(case.adapters):
        own_b, own_a = (torch.randn(shape, generator=generator) for _ in range(2))
        factors = zip(names, b + own_b, (a + own_a).mT.contiguous(), strict=True)
        modules = {name: (left, right) for name, left, right in factors}
        write_folder(root / f"adapter{i:04}", modules, dtype=torch.float32, **settings)


def child(root: str, method: str, repeats: str) -> None:
    """What a process of its own does: merge a case to files; prints the CPU seconds of each repeat."""
    folders, seconds = sorted(Path(root).glob("adapter*")), list[float]()
    while len(seconds) < int(repeats) and sum(seconds) < LONG:
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            merge_adapters(folders, method=method, threads=1).save_pretrained(Path(folder) / "merged")
            seconds.append(time.process_time() - began)
    print(json.dumps(seconds))


def measure_case(run: common.Run, method: str, case: Case, repeats: int) -> dict[str, Any]:
    """Merge a case in a process of its own: its seconds without the imports, and its memory with them."""
    root = run.files("growth-" + "-".join(map(str, case)), lambda folder: write_case(folder, case))
    words = ("--child", root, method, repeats)
    ran = common.launch("benchmarks.scaling", *words, apart=not run.quick, threads=1)
    return {"seconds": common.noise(json.loads(ran.printed)), "mib": ran.mib}


def measure(run: common.Run) -> dict[str, Any]:
    """Every axis, case by case."""
    axes = QUICK if run.quick else FULL
    found: dict[str, Any] = {"machine": common.machine(1, "safetensors"), "axes": {}}
    for name, axis in axes.items():
        rows: dict[str, list[dict[str, Any]]] = {method: [] for method in axis.points}
        for method, case in axis.cases(name):
            value = getattr(case, name)
            one = run.piece(f"{name} {method} {value}", measure_case, run, method, case, axis.repeats)
            if one:
                rows[method].append({name: value, **one})
        found["axes"][name] = {
            "base": axis.base._asdict(),
            "rows": rows,
            "exponents": {method: exponents(name, axis, one) for method, one in rows.items()},
        }
    return found | {"goals": goals(found["axes"]["adapters"]["rows"], found["axes"]["adapters"]["exponents"])}


def exponents(name: str, axis: Axis, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The slope of log seconds over log size; over adapters below the width and above it, one for each.

    Below, T r adapters do not fill the width, and a row works in T r; above it works in the width.
    """
    parts = {"": rows}
    if name == "adapters":
        edge = axis.base.width // axis.base.rank
        parts = {
            "T r up to the width": [row for row in rows if row[name] <= edge],
            "T r from the width on": [row for row in rows if row[name] >= edge],
        }
    return {
        part: common.exponent([row[name] for row in some], [row["seconds"]["median"] for row in some])
        for part, some in parts.items()
        if len(some) > 1
    }


def goals(rows: Mapping[str, Any], slopes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked of the growth over adapters; a figure that is missing is not met."""

    def at(method: str, count: int, *path: str) -> Any:
        return next((common.dig(row, *path) for row in rows[method] if row["adapters"] == count), None)

    asked = []
    for method, seconds, slope in (("average", 3, 2.2), ("spectrum", 6, 2.6)):
        below, above = (
            common.dig(slopes, method, f"T r {part}") for part in ("up to the width", "from the width on")
        )
        found = at(method, 100, "seconds", "median")
        asked += [
            common.goal(f"{method} of 100 adapters: CPU seconds", found, at_most=seconds),
            common.goal(f"{method} of 1,000 adapters: MiB", at(method, 1000, "mib"), at_most=2048),
            common.goal(f"{method}: exponent in T up to T r = width", below, at_most=slope),
            common.goal(f"{method}: exponent in T from there", above, at_most=1.25),
        ]
    return asked


def tables(result: Mapping[str, Any]) -> str:
    """The README's tables."""
    show, rows = common.number, []
    for name, axis in result["axes"].items():
        for method, points in axis["rows"].items():
            seconds = ", ".join(f"{row[name]}: {show(row['seconds']['median'])}" for row in points)
            noise = max((row["seconds"]["spread"] for row in points), default=0.0)
            mib = ", ".join(f"{row[name]}: {row['mib']:.0f}" for row in points[-2:])
            slope = ", ".join(
                f"{show(one)} {part}".strip() for part, one in axis["exponents"][method].items()
            )
            rows.append([name, f"`{method}`", seconds, f"{noise:.0%}", mib, slope])
    head = ["over", "row", "CPU seconds", "largest spread", "MiB", "exponent"]
    return "\n\n".join([common.markdown(head, rows), common.goals_table(result["goals"])])


def picture(result: Mapping[str, Any]) -> Any:
    """Seconds over each axis."""
    figure, axes = common.canvas(1, len(result["axes"]), 4.5 * len(result["axes"]), 4)
    for panel, (name, axis) in zip(axes.flat, result["axes"].items(), strict=True):
        for method, points in axis["rows"].items():
            seconds = [row["seconds"]["median"] for row in points]
            panel.plot([row[name] for row in points], seconds, "o-", label=method)
        fixed = ", ".join(f"{key} {value}" for key, value in axis["base"].items() if key != name)
        panel.set(xscale="log", yscale="log", xlabel=name)
        panel.set_title(f"CPU seconds; {fixed}", fontsize=9)
        panel.legend()
    return figure


def main() -> None:
    """The command, and the merges' own processes."""
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        common.execute("scaling", "How do merges grow?", measure, picture, tables)


if __name__ == "__main__":
    main()
