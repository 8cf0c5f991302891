"""Which merge moves when one adapter is written by other factors of the same update?

Run from the root of the repository: python -m benchmarks.gauge [--quick]
Writes benchmarks/results/gauge.json and .png; benchmarks/README.md says how to read them. mergekit's methods
are measured if MERGEKIT_BIN names the `bin` folder of an environment that has it; otherwise the committed
figures of them are kept, with their date.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import common
from riemerge import merge_adapters, read_adapter
from riemerge.methods import METHODS
from riemerge.problems import Factors, adapter_family
from tests.folders import write_folder
from tests.helpers import random_gauge, seeded

MODULE, SHAPE, RANK = "q", (24, 40), 4
FAMILIES = ("close", "independent")
SEEDS, QUICK_SEEDS = 3, 1
GAUGES = (1, 100)  # condition numbers: 1 is orthogonal

# float32 keeps 6e-8 of factors, and a gauge of condition 100 loses up to two digits of that; an entry that
# meets a threshold to round-off is a share of 1e-3 here. What is no function of dW moves by its whole size.
MOVES = 1e-2

# What there is to say where a method's default would leave out its very point.
TRIMMED = {"density": 0.5, "select_topk": 0.5}
WEIGHTS = (0.6, 0.4)

PEFT = (
    *("linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd"),
    *("dare_ties_svd", "magnitude_prune", "magnitude_prune_svd"),
)
MERGEKIT = (
    *("linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear"),
    *("dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "model_stock", "sce"),
)
OURS = tuple(name for name, row in METHODS.items() if not row.statistics)

COMMITTED = Path(__file__).parent / "results" / "gauge.json"

# The folders of one set: each with the first adapter as it is, and by other factors.
Folders = Sequence[Path]
Tool = Callable[[Sequence[str], Sequence[Folders], Path], dict[str, list[Tensor]]]


# --- the adapters -------------------------------------------------------------------------------------------


def rewritten(factors: Factors, condition: float, seed: int) -> Factors:
    """Write an update by other factors (B G, G⁻¹ A), G of this condition number."""
    b, a = factors
    gauge = random_gauge(b.shape[1], condition, seeded(seed))
    return b @ gauge, torch.linalg.solve(gauge, a)


def write_set(root: Path, family: str, seed: int) -> list[Folders]:
    """Two adapters in float32; the first as it is, and rewritten by each of GAUGES."""
    first, second = ((b / 50, a) for b, a in adapter_family(family, 2, *SHAPE, RANK, seed))
    firsts = [first, *(rewritten(first, condition, seed) for condition in GAUGES)]
    write = partial(write_folder, dtype=torch.float32, base_model_name_or_path=None, target_modules=[MODULE])
    other = write(root / "second", {MODULE: second})
    return [(write(root / f"first{place}", {MODULE: one}), other) for place, one in enumerate(firsts)]


def base_weights() -> Tensor:
    """Weights that the updates are about a twentieth of, as of real adapters."""
    return 0.02 * torch.randn(SHAPE, generator=seeded(9))


# --- the tools: folders in, merged dW out, for each method --------------------------------------------------


def by_riemerge(methods: Sequence[str], folders: Sequence[Folders], root: Path) -> dict[str, list[Tensor]]:
    return {method: [_ours(method, pair, root) for pair in folders] for method in methods}


def _ours(method: str, pair: Folders, root: Path) -> Tensor:
    row = METHODS[method]
    said: dict[str, Any] = {name: value for name, value in TRIMMED.items() if name in row.parameters}
    weights = None if row.ordered else WEIGHTS
    with tempfile.TemporaryDirectory(dir=root) as folder:
        merge_adapters(pair, weights, method=method, **said).save_pretrained(Path(folder) / "merged")
        return read_adapter(Path(folder) / "merged").update(MODULE).dense()


def peft_model(pair: Folders) -> Any:
    """A model of one linear layer with both adapters."""
    from peft import PeftModel

    model = nn.Module()
    linear = nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    linear.weight.data.copy_(base_weights())
    model.add_module(MODULE, linear)
    loaded = PeftModel.from_pretrained(model, pair[0], adapter_name="input0")
    loaded.load_adapter(pair[1], "input1")
    return loaded


def by_peft(methods: Sequence[str], folders: Sequence[Folders], root: Path) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {method: [] for method in methods}
    for pair in folders:
        model = peft_model(pair)
        layer = next(one for one in model.modules() if hasattr(one, "get_delta_weight"))
        for method in methods:
            torch.manual_seed(0)  # the same random numbers for the same update
            trimming = {"density": TRIMMED["density"]} if method not in {"linear", "cat", "svd"} else {}
            model.add_weighted_adapter(
                ["input0", "input1"], list(WEIGHTS), method, combination_type=method, **trimming
            )
            found[method].append(layer.get_delta_weight(method).detach().double())
    return found


def by_mergekit(methods: Sequence[str], folders: Sequence[Folders], root: Path) -> dict[str, list[Tensor]]:
    """PEFT merges each adapter into weights of its own first; dW is what comes out minus the base."""
    base, tensors = base_weights(), {}
    for i, pair in enumerate(folders):
        tensors[f"{i}/base"] = base.clone()
        for place in range(len(pair)):
            model = peft_model(pair)
            whole = model.merge_and_unload(adapter_names=[f"input{place}"]).get_submodule(MODULE)
            tensors[f"{i}/{place}"] = whole.weight.detach().contiguous()
    save_file(tensors, root / "in.safetensors")
    script = common.ROOT / "benchmarks" / "in_mergekit.py"
    files = [root / "in.safetensors", root / "out.safetensors"]
    subprocess.run([mergekit_python(), script, *files, *methods], check=True, stdout=subprocess.DEVNULL)
    merged = load_file(files[1])
    return {m: [merged[f"{m}/{i}"].double() - base.double() for i in range(len(folders))] for m in methods}


def mergekit_python() -> Path:
    """The Python of the environment that has mergekit."""
    return Path(os.environ["MERGEKIT_BIN"]) / "python"


def mergekit_version() -> dict[str, str]:
    """The version of mergekit, by its name; nothing where there is none."""
    if "MERGEKIT_BIN" not in os.environ:
        return {}
    ask = "import importlib.metadata as m; print(m.version('mergekit'))"
    return {"mergekit": subprocess.check_output([mergekit_python(), "-c", ask], text=True).strip()}


TOOLS: dict[str, tuple[Tool, tuple[str, ...]]] = {
    "riemerge": (by_riemerge, OURS),
    "PEFT": (by_peft, PEFT),
    "mergekit": (by_mergekit, MERGEKIT),
}


# --- the measurement ----------------------------------------------------------------------------------------


def changes(tool: str, seeds: int, families: Sequence[str] = FAMILIES) -> dict[str, dict[str, list[float]]]:
    """For each method and each of GAUGES: how far dW moved, relative to it, in each set of adapters."""
    merge, methods = TOOLS[tool]
    found: dict[str, dict[str, list[float]]] = {
        method: {str(condition): [] for condition in GAUGES} for method in methods
    }
    for family in families:
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                merged = merge(methods, write_set(Path(folder) / "set", family, seed), Path(folder))
            for method, (before, *after) in merged.items():
                for condition, one in zip(GAUGES, after, strict=True):
                    found[method][str(condition)].append(float((one - before).norm() / before.norm()))
    return found


def measure(run: common.Run) -> dict[str, Any]:
    """Every method of every tool that is there."""
    warnings.simplefilter("ignore")  # what third parties deprecate
    seeds = QUICK_SEEDS if run.quick else SEEDS
    tools = [tool for tool in TOOLS if tool != "mergekit" or "MERGEKIT_BIN" in os.environ]
    found: dict[str, Any] = {
        "machine": common.machine(torch.get_num_threads(), "peft"),
        "setting": {
            "shape": list(SHAPE),
            "rank": RANK,
            "dtype": "float32",
            "families": list(FAMILIES),
            "seeds": seeds,
            "weights": list(WEIGHTS),
            "parameters": TRIMMED,
            "moves_from": MOVES,
        },
    }
    if "mergekit" in tools:
        found["machine"]["versions"] |= mergekit_version()
    found["tools"] = {tool: {} for tool in tools}
    for tool in tools:
        common.tell(tool)
        for method, of in changes(tool, seeds).items():
            found["tools"][tool][method] = {condition: common.noise(one) for condition, one in of.items()}
    if "mergekit" not in tools and COMMITTED.exists():
        before = json.loads(COMMITTED.read_text(encoding="utf-8"))
        found["tools"]["mergekit"] = before["tools"]["mergekit"]
        found["machine"]["versions"]["mergekit"] = before["machine"]["versions"]["mergekit"]
        found["setting"]["mergekit_of"] = before["setting"].get("mergekit_of", before["date"])
    most = max(max(medians(one)) for one in found["tools"]["riemerge"].values())
    found["goals"] = [common.goal("the row of riemerge that moves most", most, at_most=MOVES)]
    return found


def medians(row: Mapping[str, Mapping[str, float]]) -> list[float]:
    """Return how far one method moves, for each of GAUGES."""
    return [row[str(condition)]["median"] for condition in GAUGES]


def moves(row: Mapping[str, Mapping[str, float]]) -> bool:
    """The verdict on one method."""
    return max(medians(row)) >= MOVES


def tables(result: Mapping[str, Any]) -> str:
    """The README's tables: what moves, method by method; and the rest, tool by tool."""
    head = ["", "moves", "G orthogonal", "largest", "G of condition 100", "largest"]
    rows = [
        [f"{tool} `{method}`", "**yes**" if moves(row) else "no"]
        + [common.number(row[str(c)][key]) for c in GAUGES for key in ("median", "highest")]
        for tool, methods in result["tools"].items()
        for method, row in methods.items()
    ]
    counted = [
        [tool, str(len(methods)), str(sum(map(moves, methods.values())))]
        for tool, methods in result["tools"].items()
    ]
    return "\n\n".join(
        [
            common.markdown(["", "methods", "that move"], counted),
            common.markdown(head, rows),
            common.goals_table(result["goals"]),
        ]
    )


def summary(result: Mapping[str, Any]) -> str:
    """The README's short table: how many methods of each tool move, which, and how far."""

    def span(rows: Iterable[Mapping[str, Mapping[str, float]]], condition: str) -> str:
        values = sorted(row[condition]["median"] for row in rows)
        return " to ".join(f"{value:.2g}" for value in (values[0], values[-1]))

    lines = []
    for tool, rows in result["tools"].items():
        moving = {name: row for name, row in rows.items() if moves(row)}
        resting = [row for name, row in rows.items() if name not in moving]
        for kind, names, some in (
            ("none" if not moving else f"{len(resting)} do not", "", resting),
            ("move", ", ".join(f"`{name}`" for name in moving), list(moving.values())),
        ):
            if some:
                what = f"{kind}: {names}" if names else kind
                lines.append((f"{tool}, {len(rows)} methods", what, span(some, "1"), span(some, "100")))
    head = ("", "move with one adapter's factors", "G orthogonal", "G of condition 100")
    return common.markdown(head, lines)


def picture(result: Mapping[str, Any]) -> Any:
    """The medians of every method, on one axis for each tool."""
    figure, ((axes,),) = common.canvas(1, 1, 9, 3)
    for height, methods in enumerate(result["tools"].values()):
        for place, condition in enumerate(GAUGES):
            found = [max(row[str(condition)]["median"], 1e-9) for row in methods.values()]
            axes.plot(found, [height + 0.2 * place - 0.1] * len(found), "o+"[place], color=f"C{height}")
    axes.axvline(MOVES, color="grey", linestyle=":")
    names = list(result["tools"])
    axes.set(xscale="log", yticks=range(len(names)), yticklabels=names, ylim=(-0.5, len(names) - 0.5))
    axes.set(title="change of the merged dW by a change of one adapter's factors (+: condition 100)")
    return figure


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched
    question = "Which merge moves when one adapter is written by other factors of the same update?"
    common.execute("gauge", question, measure, picture, tables)
