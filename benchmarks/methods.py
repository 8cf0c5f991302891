"""Every row of the table, on adapters of Llama-3-8B's shapes, beside PEFT's combination types and mergekit's
methods.

Run from the root of the repository: python -m benchmarks.methods [--quick]
Writes benchmarks/results/methods.json and .png; benchmarks/README.md says how to read them. mergekit's
methods are measured if MERGEKIT_BIN names the `bin` folder of an environment that has it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import common, merge_llama
from benchmarks.common import RIEMERGE
from benchmarks.gauge import MERGEKIT, PEFT, TRIMMED, mergekit_version
from benchmarks.merge_llama import NARROW, WIDE, Shape, adapters_of, by_mergekit, entries, extrapolate, flops
from riemerge.methods import METHODS
from riemerge.problems import Factors, adapter_family
from riemerge.statistics.folder import INDEX, KINDS, Request, write_module
from tests.helpers import seeded

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
# What PEFT does to the factors by themselves, without a dense dW.
OF_FACTORS = tuple(kind for kind in PEFT if "svd" not in kind)
FLAT = {"weights", "gram", "span", "cores"}  # domains that see nothing of a module's width
TOKENS = 512  # of the random inputs and gradients that statistics are made from


class Size(NamedTuple):
    """What is merged by what: all modules of some layers, or one module of some shapes."""

    model: merge_llama.Size
    dense: tuple[Shape, ...]  # where dense dW's are formed
    data: Shape  # where statistics are needed
    ours: tuple[str, ...] = tuple(METHODS)
    peft: tuple[str, ...] = PEFT
    mergekit: tuple[str, ...] = MERGEKIT


FULL = Size(merge_llama.FULL._replace(layers=(4,)), ((NARROW, WIDE), (WIDE, WIDE)), data=(512, 2048))
QUICK = Size(
    merge_llama.QUICK._replace(layers=(4,)),
    dense=((24, 24),),
    data=(12, 16),
    ours=("svd", "ties", "fisher", "regmean"),
    peft=("linear", "svd"),
    mergekit=("ties",),
)


# --- statistics ---------------------------------------------------------------------------------------------


def write_data(root: Path, size: Size) -> None:
    """Write adapters of one module, and statistics for each of them."""
    m, n = size.data
    family = adapter_family("independent", size.model.adapters, m, n, size.model.rank, seed=3)
    merge_llama.write_folders(root, {"q": [one_precision(factors) for factors in family]})
    for i in range(size.model.adapters):
        write_statistics(root / f"statistics{i}", "q", size.data, seed=i)


def one_precision(factors: Factors) -> Factors:
    """Factors in bfloat16."""
    b, a = factors
    return b.bfloat16(), a.bfloat16()


def write_statistics(folder: Path, module: str, shape: Shape, seed: int) -> None:
    """Write statistics of one module, of random inputs and gradients, as `collect_statistics` stores them."""
    folder.mkdir()
    request = Request(
        kinds=KINDS, modules={module: shape}, examples=TOKENS, seed=seed, dtype="float32", version=1
    )
    (folder / INDEX).write_text(request.model_dump_json(), encoding="utf-8")
    generator = seeded(seed)
    gradients, inputs = (torch.randn(TOKENS, width, generator=generator) for width in shape)
    tensors = {
        "fisher": gradients.square().mT @ inputs.square() / TOKENS,
        "gram": symmetric(inputs),
        "covariance": symmetric(gradients),
        "tokens": torch.tensor(TOKENS),
        "examples": torch.tensor(TOKENS),
        "loss": torch.tensor(1.0, dtype=torch.float64),
    }
    write_module(folder, module, tensors)


def symmetric(rows: Tensor) -> Tensor:
    """Σ r rᵀ over the rows, symmetric to the bit."""
    product = rows.mT @ rows
    return (product + product.mT) / 2


# --- the measurement ----------------------------------------------------------------------------------------


class Bench:
    """The commands of this benchmark on one set of files.

    Args:
        run: The run.
        size: What is merged by what.
    """

    def __init__(self, run: common.Run, size: Size) -> None:
        self.run, self.size = run, size
        inputs = merge_llama.write_inputs(run, size.model)
        ((self.modules, self.whole),) = inputs.whole.items()
        self.samples = inputs.samples
        self.data = run.files(
            f"statistics-{size.data[0]}x{size.data[1]}", lambda root: write_data(root, size)
        )
        self._apart = size.model.apart

    def riemerge(self, name: str) -> dict[str, Any]:
        """A row, file to file: on all modules, or on samples where dense dW's or statistics are needed."""
        row, counts = METHODS[name], self.size.model.counts
        if row.statistics:
            folders = adapters_of(self.data)
            words = [f"--statistics={self.data / f'statistics{i}'}" for i in range(len(folders))]
            if row.base_statistics:  # those of any model will do: they are random
                words.append(f"--base-statistics={self.data / 'statistics0'}")
            measured = {self.size.data: self.merge(name, folders, *words).row()}
            # Fisher information is entrywise; Gram matrices and covariances are multiplied and decomposed.
            return extrapolate(
                measured, counts, entries if row.statistics == ("fisher",) else flops, self.start()
            )
        if row.domain == "entries":
            measured = {shape: self.merge(name, self.samples[shape]).row() for shape in self.size.dense}
            return extrapolate(measured, counts, entries, self.start())
        return self.merge(name, self.whole).row() | {"extrapolated": False}

    def merge(self, name: str, folders: Sequence[Path], *words: str) -> common.Watched:
        """One merge by the command line."""
        row, out = METHODS[name], self.run.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        said = [f"--parameter={key}={value}" for key, value in TRIMMED.items() if key in row.parameters]
        options = ["--method", name, *said, *words, "--output", out, "--quiet"]
        return common.launch(RIEMERGE, "merge", *folders[: row.models[1]], *options, apart=self._apart)

    def start(self) -> float:
        """Seconds of a merge of next to nothing: the start of Python and the imports."""
        found: float = self.run.piece("start", lambda: self.merge("average", adapters_of(self.data)).seconds)
        return found or 0.0

    def peft(self, kind: str) -> dict[str, Any]:
        """A combination type on samples, without imports, loading and saving."""
        shapes = tuple(self.samples) if kind in OF_FACTORS else self.size.dense
        roots = [self.samples[shape][0].parent for shape in shapes]
        ran = common.launch("benchmarks.methods", "--child", kind, *roots, apart=self._apart)
        seconds = zip(shapes, json.loads(ran.printed), strict=True)
        measured = {shape: {"seconds": one, "mib": ran.mib} for shape, one in seconds}
        return extrapolate(measured, self.size.model.counts, flops)

    def mergekit(self, name: str) -> dict[str, Any]:
        """A method of mergekit on dense dW's in memory, without reading, forming and writing them."""
        measured = {}
        for shape in self.size.dense:
            path = self.run.folder / f"dense-{shape[0]}x{shape[1]}.safetensors"
            if not path.exists():
                merge_llama.write_dense(path, self.samples[shape])
            measured[shape] = by_mergekit(name, path)
        return extrapolate(measured, self.size.model.counts, entries)


def child(kind: str, *samples: str) -> None:
    """What a process of its own does for PEFT; prints the seconds of each sample."""
    torch.linalg.svd(torch.eye(8))  # the first call of all loads LAPACK
    density = None if kind in {"linear", "cat", "svd"} else TRIMMED["density"]
    folders = [adapters_of(Path(sample)) for sample in samples]
    print(json.dumps([merge_llama.peft(one, kind, density)[0] for one in folders]))


def measure(run: common.Run) -> dict[str, Any]:
    """Everything, once, each row followed by its peers: the rows differ by far more than repeats do."""
    size = QUICK if run.quick else FULL
    machine = common.machine(os.cpu_count() or 1, "peft", "safetensors")
    machine["versions"] |= mergekit_version()
    bench = Bench(run, size)
    found: dict[str, Any] = {
        "machine": machine,
        "setting": {
            "shapes": {name: list(shape) for name, shape in size.model.shapes.items()},
            "layers": size.model.layers[-1],
            "modules": bench.modules,
            "adapters": size.model.adapters,
            "rank": size.model.rank,
            "dtype": "bfloat16",
            "parameters": TRIMMED,
            "dense_on": [list(shape) for shape in size.dense],
            "statistics_on": list(size.data),
        },
        **{tool: {} for tool in ("riemerge", "PEFT", "mergekit")},
    }

    def note(tool: str, name: str | None) -> None:
        known = {"riemerge": size.ours, "PEFT": size.peft, "mergekit": size.mergekit}[tool]
        if name in known and (tool != "mergekit" or "MERGEKIT_BIN" in os.environ):
            make = getattr(bench, tool.lower())
            if one := run.piece(f"{tool} {name}", make, name):
                found[tool][name] = one

    for name in size.ours:
        note("riemerge", name)
        for tool, peer in zip(("PEFT", "mergekit"), PEERS.get(name, (None, None)), strict=True):
            note(tool, peer)
    for kind in OF_FACTORS:
        note("PEFT", kind)
    return found | {"goals": goals(found)}


def goals(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked of the rows, by where they work."""
    ours, rivals = found["riemerge"], found["mergekit"]
    flat = [one for name, one in ours.items() if METHODS[name].domain in FLAT]
    plain = [name for name in ours if METHODS[name].domain == "entries" and not METHODS[name].statistics]
    peers = {name: rivals.get(PEERS.get(name, (None, None))[1]) for name in plain}
    slower = [ours[name]["seconds"] / peer["seconds"] for name, peer in peers.items() if peer]
    of_ties = common.dig(rivals, "ties", "seconds")
    elections = [
        common.ratio(of_ties, ours[name]["seconds"]) or 0.0 for name in ("ties", "dare_ties") if name in ours
    ]
    faster = common.ratio(common.dig(found, "PEFT", "svd", "seconds"), common.dig(ours, "svd", "seconds"))
    most = [max((one[key] for one in flat), default=None) for key in ("seconds", "mib")]
    mib = max((ours[name]["mib"] for name in plain), default=None)
    return [
        common.goal("inner products and cores: seconds of the slowest", most[0], at_most=15),
        common.goal("inner products and cores: MiB of the largest", most[1], at_most=1000),
        common.goal("entries, without statistics: MiB of the largest", mib, at_most=1000),
        common.goal("entries: times mergekit's own, the slowest", max(slower, default=None), at_most=1),
        common.goal(
            "`ties` and `dare_ties`: times faster than mergekit's `ties`",
            min(elections, default=None),
            at_least=5,
        ),
        common.goal("`svd`: times faster than PEFT's", faster, at_least=100),
        common.goal("rows of the table without a figure", len(METHODS) - len(ours), at_most=0),
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
    missing = ", ".join(f"`{name}`" for name in METHODS if name not in result["riemerge"])
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


def main() -> None:
    """The command, and PEFT's own processes."""
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        common.execute("methods", "What does every row of the table cost?", measure, picture, tables)


if __name__ == "__main__":
    main()
