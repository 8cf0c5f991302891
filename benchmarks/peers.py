"""riemerge, PEFT's add_weighted_adapter and mergekit, measured side by side: `python benchmarks/peers.py`.

Writes benchmarks/results/peers.json and prints the README's table; benchmarks/README.md explains every row.
mergekit is measured if MERGEKIT_BIN names the `bin` folder of an environment that has it.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the families of adapters in `tests`

import riemerge  # noqa: E402
from benchmarks.common import watch  # noqa: E402
from tests.folders import family, write_folder  # noqa: E402
from tests.helpers import random_gauge, seeded  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
SHIPPED = [ROOT / "examples" / "adapters" / name for name in ("snli", "mnli", "qnli", "scitail")]
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
TINY = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 1}
SHAPES = {"encoder.layer.0.attention.self.query": (24, 24), "encoder.layer.0.output.dense": (24, 40)}
RANK, REPEATS = 4, 3
CASES = ("fine", "no base", "nan", "modules", "ranks")

METHODS = [
    *(f"riemerge {name}" for name in ("geomerge", "average --rank sum", "average")),
    *(f"PEFT {name}" for name in ("linear", "ties", "cat", "svd")),
    *(f"mergekit {name}" for name in ("linear", "karcher") if "MERGEKIT_BIN" in os.environ),
]
NOT_A_SUM = {"riemerge geomerge", "PEFT ties", "mergekit karcher"}  # the others mean Σ wᵢ dWᵢ

Base = Callable[[], Any]
Updates = Mapping[str, Any]


# --- one door for all: folders in, merged updates out -------------------------------------------------------


def make_base(config: Mapping[str, Any], device: str = "cpu") -> Any:
    """A BERT with random weights, the same at each call: merging does not need their values."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    with torch.device(device):
        return BertModel(BertConfig(**config))


tiny = partial(make_base, TINY)


def by_riemerge(name: str, folders: Sequence[Path], weights: Sequence[float], base: Base, out: Path) -> Path:
    from riemerge import merge_adapters

    method, _, rank = name.partition(" --rank ")
    merge_adapters(folders, weights, method=method, rank=rank or None).save_pretrained(out)
    return out


def by_peft(name: str, folders: Sequence[Path], weights: Sequence[float], base: Base, out: Path) -> Path:
    from peft import PeftModel

    names = [f"input{i}" for i in range(len(folders))]
    model = PeftModel.from_pretrained(base(), folders[0], adapter_name=names[0])
    for adapter, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter)
    density = 1.0 if name == "ties" else None  # nothing trimmed: copies have their best chance so
    model.add_weighted_adapter(names, list(weights), "merged", combination_type=name, density=density)
    model.save_pretrained(str(out), selected_adapters=["merged"])
    return out / "merged"


def by_mergekit(name: str, folders: Sequence[Path], weights: Sequence[float], base: Base, out: Path) -> Path:
    """PEFT merges each adapter into a checkpoint of its own first; the result is a checkpoint, too."""
    from peft import PeftModel

    models = []
    for i, (folder, weight) in enumerate(zip(folders, weights, strict=True)):
        merged = PeftModel.from_pretrained(base(), folder).merge_and_unload()
        merged.save_pretrained(out / str(i))
        parameters = {"weight": weight} if name == "linear" else {}  # karcher takes no weights
        models.append({"model": str(out / str(i) / "model.safetensors"), "parameters": parameters})
    (out / "recipe.yml").write_text(json.dumps({"merge_method": name, "models": models, "dtype": "float32"}))
    command = [Path(os.environ["MERGEKIT_BIN"]) / "mergekit-pytorch", out / "recipe.yml", out / "merged"]
    subprocess.run(command, check=True, capture_output=True)
    return out / "merged"


TOOLS = {"riemerge": by_riemerge, "PEFT": by_peft, "mergekit": by_mergekit}


def merge(method: str, folders: Sequence[Path], weights: Sequence[float], base: Base, out: Path) -> Path:
    """Merge folders by a method of METHODS, as its users do, and return the folder that it wrote."""
    tool, _, name = method.partition(" ")
    return TOOLS[tool](name, folders, weights, base, out)


def updates(folder: Path, base: Base) -> Updates:
    """DW of every module of what a merge wrote, in float64: as PEFT loads it, or checkpoint minus base."""
    from peft import PeftModel

    if (folder / "adapter_config.json").exists():
        model: Any = PeftModel.from_pretrained(base(), folder).double()
        layers = model.base_model.model.named_modules()
        return {k: m.get_delta_weight("default") for k, m in layers if hasattr(m, "get_delta_weight")}
    merged, before = load_file(next(folder.glob("*.safetensors"))), base().state_dict()
    return {k.removesuffix(".weight"): merged[k].double() - before[k].double() for k in merged}


def apart(one: Updates, other: Updates) -> float:
    """‖one - other‖ / ‖other‖ over the modules of `other` together."""
    square = sum(float((one[module] - delta).norm() ** 2) for module, delta in other.items())
    return math.sqrt(square / sum(float(delta.norm() ** 2) for delta in other.values()))


# --- the laws -----------------------------------------------------------------------------------------------


def tiny_adapters(name: str, count: int, rank: int = RANK) -> list[Any]:
    """A family of `tests.helpers`, its updates about a twentieth of the base weights, as real ones are."""
    return [{m: (b / 50, a) for m, (b, a) in one.items()} for one in family(name, count, rank, 0, SHAPES)]


def shipped_adapters() -> list[Any]:
    """Layer 0 of the shipped adapters, as factors (B, A) in float64."""
    from riemerge import read_adapter

    read = [read_adapter(folder) for folder in SHIPPED]
    names = [module for module in read[0].modules if ".layer.0." in module]
    return [{m: (u.B.double() * u.scale, u.A.double()) for m in names for u in [a.update(m)]} for a in read]


def write(folder: Path, modules: Updates, **settings: Any) -> Path:
    """Factors as a PEFT folder in float32; without the name of a base model, PEFT asks no hub for it."""
    known = {"target_modules": list(modules), "base_model_name_or_path": None}
    return write_folder(folder, modules, dtype=torch.float32, **known, **settings)


def rewritten(modules: Updates, condition: float) -> Updates:
    """Write updates by other factors (B G, G⁻¹ A), G of this condition number (1: orthogonal)."""
    generator = seeded(1)
    gauges = {m: random_gauge(b.shape[1], condition, generator) for m, (b, _) in modules.items()}
    return {m: (b @ gauges[m], torch.linalg.solve(gauges[m], a)) for m, (b, a) in modules.items()}


def merged(method: str, folders: Sequence[Path], weights: Sequence[float], out: Path, base: Base) -> Updates:
    """DW of every module of a merge."""
    return updates(merge(method, folders, weights, base, out), base)


def gauge_changes(method: str, adapters: list[Any], base: Base, root: Path) -> dict[str, float]:
    """How far the merged dW moves when the first adapter is rewritten, G of condition 1 and 100."""
    weights = torch.arange(len(adapters), 0, -1).double().softmax(0).tolist()
    first, *others = (write(root / f"input{i}", one) for i, one in enumerate(adapters))
    before = merged(method, [first, *others], weights, root / "before", base)
    before = {module: before[module] for module in adapters[0]}
    changes = {}
    for condition in (1, 100):
        other = write(root / f"other{condition}", rewritten(adapters[0], condition))
        after = merged(method, [other, *others], weights, root / f"after{condition}", base)
        changes[str(condition)] = apart(after, before)
    return changes


def copies_error(method: str, root: Path, **settings: Any) -> float:
    """Three copies of one adapter with weights 0.5, 0.3, 0.2: the relative error of the merge."""
    (one,) = tiny_adapters("independent", 1)
    folders = [write(root / name, one, **settings) for name in "abc"]
    return apart(merged(method, folders, [0.5, 0.3, 0.2], root / "out", tiny), updates(folders[0], tiny))


def sum_error(method: str, root: Path) -> float:
    """Two unrelated adapters with weights 0.6, 0.4: the relative distance to Σ wᵢ dWᵢ."""
    one, two = tiny_adapters("independent", 2)
    exact = {m: 0.6 * one[m][0] @ one[m][1] + 0.4 * two[m][0] @ two[m][1] for m in SHAPES}
    folders = [write(root / "a", one), write(root / "b", two)]
    return apart(merged(method, folders, [0.6, 0.4], root / "out", tiny), exact)


def outcome(method: str, case: str, root: Path) -> dict[str, Any]:
    """Whether a merge of two adapters is done or refused, with what error or warnings.

    Cases: `fine` (nothing wrong), `nan` (one NaN in the second), `modules` (the second lacks one), `ranks`
    (RANK and half of it), `no base` (on torch's meta device, where a model has shapes but no weights).
    """
    first, second = tiny_adapters("independent", 2)
    if case == "nan":
        next(iter(second.values()))[0][0, 0] = torch.nan
    elif case == "modules":
        second.popitem()
    elif case == "ranks":
        (second,) = tiny_adapters("independent", 1, RANK // 2)
    folders = [write(root / "a", first), write(root / "b", second)]
    base = partial(make_base, TINY, "meta") if case == "no base" else tiny
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            written = merge(method, folders, [0.6, 0.4], base, root / "out")
        except Exception as error:  # noqa: BLE001 - whatever a tool does here is the figure
            return {"merged": False, "error": type(error).__name__, "text": str(error).replace(str(root), "")}
    said = sorted({str(one.message) for one in caught if issubclass(one.category, UserWarning)})
    finite = all(bool(x.isfinite().all()) for x in updates(written, tiny).values())
    return {"merged": True, "finite": finite, "warnings": said}


def laws(method: str) -> dict[str, Any]:
    """Every row of one method but its cost."""
    families = {"related": tiny_adapters("close", 2), "unrelated": tiny_adapters("independent", 2)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        gauge = {name: gauge_changes(method, one, tiny, root / name) for name, one in families.items()}
        base = partial(make_base, {**MINILM, "num_hidden_layers": 1, "vocab_size": 11})
        gauge["shipped"] = gauge_changes(method, shipped_adapters(), base, root / "shipped")
        return {
            "gauge": gauge,
            "copies": copies_error(method, root / "copies"),
            "copies rslora": copies_error(method, root / "rslora", use_rslora=True),
            "sum": None if method in NOT_A_SUM else sum_error(method, root / "sum"),
            **{case: outcome(method, case, root / case) for case in CASES},
        }


# --- the cost -----------------------------------------------------------------------------------------------


def run_once(method: str) -> None:
    """In a process of its own: merge the four shipped adapters; print the seconds after the imports."""
    ours = method.startswith("riemerge")
    for name in ("riemerge.merging.run",) if ours else ("peft", "transformers.models.bert.modeling_bert"):
        import_module(name)
    ready = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        merge(method, SHIPPED, [0.25] * 4, partial(make_base, MINILM), Path(folder) / "out")
    print(time.perf_counter() - ready)


def cost(method: str) -> dict[str, float]:
    """Return seconds and peak memory of one merge of the four shipped adapters, with one thread."""
    once = watch([sys.executable, __file__, "--once", method], threads=1)
    return {"seconds": once.seconds, "after_imports": float(once.printed.split()[-1]), "mib": once.mib}


# --- the result ---------------------------------------------------------------------------------------------


def measure() -> dict[str, Any]:
    versions = {name: version(name) for name in ("torch", "peft", "transformers", "numpy")}
    if "MERGEKIT_BIN" in os.environ:
        ask = "import importlib.metadata as m; print(m.version('mergekit'))"
        python = Path(os.environ["MERGEKIT_BIN"]) / "python"
        versions["mergekit"] = subprocess.check_output([python, "-c", ask], text=True).strip()
    found: dict[str, Any] = {}
    for method in METHODS:
        print(f"laws: {method}", file=sys.stderr, flush=True)
        found[method] = laws(method)
    load = [os.getloadavg()[0]]
    costs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for repeat in range(REPEATS):
        for method in METHODS:  # interleaved: a busy minute of the machine hits all alike
            print(f"cost {repeat + 1} of {REPEATS}: {method}", file=sys.stderr, flush=True)
            costs[method].append(cost(method))
            load.append(os.getloadavg()[0])
    cpu = next(x for x in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in x)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{cpu.partition(': ')[2]}, {os.cpu_count()} cores, {platform.system()}, one thread used",
        "load": {"lowest": min(load), "highest": max(load)},
        "versions": {"python": platform.python_version(), "riemerge": riemerge.__version__, **versions},
        "laws": found,
        "cost": costs,
    }


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}" if value < 1e-3 else f"{value:.2g}"


def worst(law: Mapping[str, Any], condition: str) -> str:
    return number(max(one[condition] for one in law["gauge"].values()))


def ended(case: Mapping[str, Any]) -> str:
    return "merged" if case["merged"] else f"refused: `{case['error'].lstrip('_')}`"


def spread(rows: list[dict[str, float]], name: str) -> str:
    """The median, and the lowest and highest, of the repeats."""
    lowest, *_, highest = values = sorted(row[name] for row in rows)
    middle, low, high = (
        f"{x:.0f}" if x >= 100 else f"{x:.3g}" for x in (statistics.median(values), lowest, highest)
    )
    return f"{middle} ({low}–{high})"


def table(result: Mapping[str, Any]) -> str:
    """The README's table of a result of `measure`, in Markdown."""
    lines: dict[str, Callable[[Any], str]] = {
        "dW moves when one input is given as (B G, G⁻¹ A), G orthogonal": partial(worst, condition="1"),
        "the same, G of condition 100": partial(worst, condition="100"),
        "three copies of one adapter: error": lambda law: number(law["copies"]),
        "three copies, rsLoRA: error": lambda law: number(law["copies rslora"]),
        "distance to Σ wᵢ dWᵢ, where that is meant": lambda law: number(law["sum"]),
        "needs the base model's weights": lambda law: "no" if law["no base"]["merged"] else "yes",
        "one NaN in an adapter": lambda law: ended(law["nan"]),
        "a module missing": lambda law: ended(law["modules"]),
        "ranks differ": lambda law: ended(law["ranks"]),
    }
    return _markdown(
        result["laws"], [[name, *map(cell, result["laws"].values())] for name, cell in lines.items()]
    )


def costs(result: Mapping[str, Any]) -> str:
    """The table of memory and seconds of a result of `measure`, in Markdown."""
    names = {"mib": "peak MiB", "seconds": "seconds", "after_imports": "seconds after imports"}
    return _markdown(
        result["cost"],
        [[name, *(spread(one, key) for one in result["cost"].values())] for key, name in names.items()],
    )


def _markdown(methods: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows under a head with each method's tool and name."""
    head = ["", *(f"{tool}<br>{name}" for tool, _, name in (method.partition(" ") for method in methods))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, so that no network enters the seconds
    if "--once" in sys.argv:
        run_once(sys.argv[-1])
        return
    warnings.simplefilter("ignore")  # what third parties deprecate; outcome() listens by itself
    result = measure()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(result), costs(result), sep="\n\n")


if __name__ == "__main__":
    main()
