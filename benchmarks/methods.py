"""Every row of the table that needs no data, on adapters of Llama-3-8B's shapes, beside PEFT's combination
types and mergekit's methods.

Run from the root of the repository: python -m benchmarks.methods [--quick]
Writes benchmarks/results/methods.json and .png; benchmarks/README.md says how to read them. mergekit's
methods are measured if MERGEKIT_BIN names the `bin` folder of an environment that has it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from benchmarks import common, merge_llama
from benchmarks.gauge import MERGEKIT, OURS, PEFT, TRIMMED, mergekit_python
from benchmarks.merge_llama import INNER, NARROW, RIEMERGE, WIDE, Shape
from riemerge.methods import METHODS

# The same function of dW here and there; what PEFT does to the factors A and B by themselves is not here.
PEERS = {
    "average": (None, "linear"),
    "task_arithmetic": (None, "task_arithmetic"),
    "cat": ("cat", None),
    "svd": ("svd", None),
    "magnitude_prune": ("magnitude_prune_svd", None),
    "ties_peft": ("ties_svd", None),
    "dare_linear": ("dare_linear_svd", "dare_linear"),
    "dare_ties_peft": ("dare_ties_svd", None),
    **{name: (None, name) for name in MERGEKIT if name not in {"linear", "task_arithmetic", "dare_linear"}},
}
SMALL: tuple[Shape, ...] = ((NARROW, WIDE), (WIDE, WIDE))


class Size(NamedTuple):
    """What is merged by what: all modules of some layers, or one module of some of the shapes."""

    model: merge_llama.Size
    dense: tuple[Shape, ...]  # where dense dW's are formed
    factors: tuple[Shape, ...]  # where they are not
    ours: tuple[str, ...] = OURS
    peft: tuple[str, ...] = PEFT
    mergekit: tuple[str, ...] = MERGEKIT


FULL = Size(merge_llama.FULL._replace(layers=(4,)), SMALL, (*SMALL, (INNER, WIDE), (WIDE, INNER)))
QUICK = Size(
    merge_llama.QUICK._replace(layers=(4,)),
    dense=((24, 24),),
    factors=((24, 24), (24, 40)),
    ours=("svd", "ties"),
    peft=("linear", "svd"),
    mergekit=("ties",),
)


# --- one merge in a process of its own ----------------------------------------------------------------------


def by_riemerge(name: str, folders: Sequence[Path], root: Path) -> common.Watched:
    """File to file, by the command line."""
    row = METHODS[name]
    options = [
        f"--{key.replace('_', '-')}={value}" for key, value in TRIMMED.items() if key in row.parameters
    ]
    folders = folders[: row.models[1]]
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        output = ["--output", f"{scratch}/merged", "--quiet"]
        return common.watch([*RIEMERGE, "merge", *map(str, folders), "--method", name, *options, *output])


def by_peft(kind: str, samples: Sequence[Sequence[Path]]) -> list[dict[str, float]]:
    """add_weighted_adapter on models of one module, in turn, without imports, loading and saving."""
    parents = (str(folders[0].parent) for folders in samples)
    ran = common.watch([sys.executable, "-m", "benchmarks.methods", "--child", kind, *parents])
    return [{"seconds": seconds, "mib": ran.mib} for seconds in json.loads(ran.printed)]


def child(kind: str, *samples: str) -> None:
    """What a process of its own does for PEFT; prints the seconds of each sample."""
    torch.linalg.svd(torch.eye(8))  # the first call of all loads LAPACK
    density = None if kind in {"linear", "cat", "svd"} else TRIMMED["density"]
    folders = [sorted(Path(sample).iterdir()) for sample in samples]
    print(json.dumps([merge_llama.peft(one, kind, density)[0] for one in folders]))


def by_mergekit(name: str, tensors: Path) -> dict[str, float]:
    """The method on dense dW's in memory, without reading, forming and writing them."""
    script = common.ROOT / "benchmarks" / "in_mergekit.py"
    ran = common.watch([str(mergekit_python()), str(script), str(tensors), "-", name])
    (seconds,) = json.loads(ran.printed).values()
    return {"seconds": seconds, "mib": ran.mib}


# --- the measurement ----------------------------------------------------------------------------------------


def entries(shape: Shape) -> float:
    return float(shape[0] * shape[1])


def extrapolate(
    measured: Mapping[Shape, Mapping[str, float]],
    counts: Mapping[Shape, int],
    *,
    by_flops: bool,
    start: float = 0,
) -> dict[str, Any]:
    """Seconds of all modules from those of one module of some shapes.

    A shape that was not measured takes the seconds of the largest that was, times the ratio of their sizes.

    Args:
        measured: Shape to what was measured of one such module.
        counts: Shape to the number of modules.
        by_flops: Whether size is the flops of an SVD (min² · max); the number of entries otherwise.
        start: Seconds of each measured run that do not come with each module.
    """
    size = merge_llama.flops if by_flops else entries
    largest = max(measured, key=size)
    seconds = {
        shape: (measured[shape]["seconds"] - start)
        if shape in measured
        else (measured[largest]["seconds"] - start) * size(shape) / size(largest)
        for shape in counts
    }
    return {
        "seconds": start + sum(max(seconds[shape], 0.0) * count for shape, count in counts.items()),
        "mib": max(one["mib"] for one in measured.values()),
        "extrapolated": True,
        "sampled": [{"shape": list(shape), **one} for shape, one in measured.items()],
    }


def measure_ours(
    size: Size, whole: Sequence[Path], samples: Mapping[Shape, Sequence[Path]], root: Path
) -> dict[str, Any]:
    """Every row: on all modules where no dense dW is formed, on samples where one is."""
    found: dict[str, Any] = {}
    nothing = by_riemerge("average", samples[size.dense[0]], root)  # the start of Python, and little else
    for name in size.ours:
        common.tell(f"riemerge {name}")
        if METHODS[name].domain != "entries":
            found[name] = by_riemerge(name, whole, root).row() | {"extrapolated": False}
            continue
        measured = {shape: by_riemerge(name, samples[shape], root).row() for shape in size.dense}
        found[name] = extrapolate(measured, size.model.counts, by_flops=False, start=nothing.seconds)
    return found


def measure_peft(size: Size, samples: Mapping[Shape, Sequence[Path]]) -> dict[str, Any]:
    """Every combination type, on samples."""
    found = {}
    for kind in size.peft:
        common.tell(f"PEFT {kind}")
        dense = "svd" in kind
        shapes = size.dense if dense else size.factors
        measured = dict(zip(shapes, by_peft(kind, [samples[shape] for shape in shapes]), strict=True))
        found[kind] = extrapolate(measured, size.model.counts, by_flops=dense)
    return found


def measure_mergekit(size: Size, samples: Mapping[Shape, Sequence[Path]], root: Path) -> dict[str, Any]:
    """Every method, on samples."""
    files = {}
    for shape in size.dense:
        factors = [merge_llama.read_factors(folder) for folder in samples[shape]]
        files[shape] = root / f"dense-{shape[0]}x{shape[1]}.safetensors"
        save_file({f"all/{i}": b @ a for i, (b, a) in enumerate(factors)}, files[shape])
    found = {}
    for name in size.mergekit:
        common.tell(f"mergekit {name}")
        measured = {shape: by_mergekit(name, files[shape]) for shape in size.dense}
        found[name] = extrapolate(measured, size.model.counts, by_flops=False)
    return found


def measure(quick: bool) -> dict[str, Any]:
    """Everything, once: the rows differ by far more than repeats do."""
    size = QUICK if quick else FULL
    machine = common.machine(os.cpu_count() or 1, "peft", "safetensors")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        common.tell("writing the adapters")
        whole, samples = merge_llama.write_all(root / "in", size.model)
        ((modules, folders),) = whole.items()
        found: dict[str, Any] = {
            "machine": machine,
            "setting": {
                "shapes": {name: list(shape) for name, shape in size.model.shapes.items()},
                "layers": size.model.layers[-1],
                "modules": modules,
                "adapters": size.model.adapters,
                "rank": size.model.rank,
                "dtype": "bfloat16",
                "parameters": TRIMMED,
                "dense_on": [list(shape) for shape in size.dense],
            },
            "riemerge": measure_ours(size, folders, samples, root),
            "PEFT": measure_peft(size, samples),
        }
        found["mergekit"] = {}
        if "MERGEKIT_BIN" in os.environ:
            found["mergekit"] = measure_mergekit(size, samples, root)
    return found | {"goals": goals(found)}


def goals(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked of the rows, by where they work."""
    ours = found["riemerge"]
    flat = [name for name in ours if METHODS[name].domain in {"gram", "span"}]
    dense = [name for name in ours if METHODS[name].domain == "entries"]
    ratio = found["PEFT"]["svd"]["seconds"] / ours["svd"]["seconds"]
    return [
        common.goal(
            "gram and span: seconds of the slowest", max(ours[x]["seconds"] for x in flat), at_most=15
        ),
        common.goal("gram and span: MiB of the largest", max(ours[x]["mib"] for x in flat), at_most=1000),
        common.goal("entries: MiB of the largest", max(ours[x]["mib"] for x in dense), at_most=10240),
        common.goal("`svd`: times faster than PEFT's", ratio, at_least=100),
    ]


# --- what is shown ------------------------------------------------------------------------------------------


def tables(result: Mapping[str, Any]) -> str:
    """The README's tables."""
    head = [
        *("row", "works on", "riemerge, s", "MiB"),
        *("PEFT's", "s", "MiB", "mergekit's", "s", "MiB"),
    ]
    rows = []
    for name, one in result["riemerge"].items():
        peft, mergekit = PEERS.get(name, (None, None))
        row = [f"`{name}`", METHODS[name].domain, *cells(one)]
        for tool, peer in (("PEFT", peft), ("mergekit", mergekit)):
            figures = result[tool].get(peer)
            row += [f"`{peer}`", *cells(figures)] if figures else ["–", "", ""]
        rows.append(row)
    matched = {peft for peft, _ in PEERS.values()}
    rows += [
        ["–", "", "", "", f"`{kind}`, of A and B", *cells(one), "–", "", ""]
        for kind, one in result["PEFT"].items()
        if kind not in matched
    ]
    missing = ", ".join(f"`{name}`" for name in OURS if name not in result["riemerge"])
    said = [f"Not in this run: {missing}."] if missing else []
    return "\n\n".join([common.markdown(head, rows), *said, common.goals_table(result["goals"])])


def cells(one: Mapping[str, Any]) -> list[str]:
    """Seconds, with a ~ where they are extrapolated, and MiB."""
    return ["~ " * one["extrapolated"] + common.number(one["seconds"]), f"{one['mib']:.0f}"]


def picture(result: Mapping[str, Any]) -> Any:
    """Seconds of every row, and of what PEFT and mergekit have for it."""
    figure, ((axes,),) = common.canvas(1, 1, 9, 9)
    names = list(result["riemerge"])
    for tool, marker in (("riemerge", "o"), ("PEFT", "^"), ("mergekit", "x")):
        places, seconds = [], []
        for place, name in enumerate(reversed(names)):
            known = {
                "riemerge": name,
                **dict(zip(("PEFT", "mergekit"), PEERS.get(name, (None, None)), strict=True)),
            }
            if figures := result[tool].get(known[tool]):
                places.append(place)
                seconds.append(figures["seconds"])
        axes.plot(seconds, places, marker, label=tool)
    axes.set(xscale="log", yticks=range(len(names)), yticklabels=names[::-1])
    axes.set(title=f"seconds for {result['setting']['modules']} modules")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        common.execute("methods", "What does every row of the table cost?", measure, picture, tables)
