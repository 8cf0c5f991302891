"""riemerge, PEFT's add_weighted_adapter and mergekit, measured side by side: `python benchmarks/peers.py`.

Writes benchmarks/results/peers.json and prints the README's table of it. benchmarks/README.md says what each figure
means. mergekit is measured where MERGEKIT_BIN names the `bin` folder of an environment that has it.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
SHIPPED = [ROOT / "examples" / "adapters" / name for name in ("snli", "mnli", "qnli", "scitail")]
RANK, REPEATS = 4, 3
TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "vocab_size": 11,
}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
SHAPES = {
    f"encoder.layer.{i}.{module}": shape
    for i in range(2)
    for module, shape in {"attention.self.query": (24, 24), "output.dense": (24, 40)}.items()
}
Folders = Sequence[Path]
Updates = Mapping[str, Any]

sys.path.insert(0, str(ROOT))  # for the families of adapters of the tests


# --- one door for all: folders in, merged updates out -------------------------------------------------------


def make_base(config: Mapping[str, int], device: str = "cpu") -> Any:
    """A BERT with random weights, the same at each call: merging does not need their values."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    with torch.device(device):
        return BertModel(BertConfig(**config))


def by_riemerge(
    name: str, folders: Folders, weights: Sequence[float], base: Callable[[], Any], out: Path
) -> Path:
    from riemerge import merge_adapters

    method, _, truncated = name.partition(" --rank ")
    rank = json.loads((folders[0] / "adapter_config.json").read_text())["r"] if truncated else None
    merge_adapters(folders, weights, method=method, rank=rank).save_pretrained(out)
    return out


def by_peft(
    name: str, folders: Folders, weights: Sequence[float], base: Callable[[], Any], out: Path
) -> Path:
    from peft import PeftModel

    names = [f"input{i}" for i in range(len(folders))]
    model = PeftModel.from_pretrained(base(), folders[0], adapter_name=names[0])
    for adapter, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter)
    more = {"density": 1.0} if name == "ties" else {}  # nothing trimmed: where copies have their best chance
    model.add_weighted_adapter(names, list(weights), "merged", combination_type=name, **more)
    model.save_pretrained(out, selected_adapters=["merged"])
    return out / "merged"


def by_mergekit(
    name: str, folders: Folders, weights: Sequence[float], base: Callable[[], Any], out: Path
) -> Path:
    """Each adapter is merged into a checkpoint of its own first, by PEFT; the output is a full checkpoint."""
    from peft import PeftModel

    baked = [out / f"baked{i}" for i in range(len(folders))]
    for folder, checkpoint in zip(folders, baked, strict=True):
        PeftModel.from_pretrained(base(), folder).merge_and_unload().save_pretrained(checkpoint)
    entries = [
        {
            "model": str(one / "model.safetensors"),
            "parameters": {"weight": weight} if name == "linear" else {},
        }
        for one, weight in zip(baked, weights, strict=True)
    ]
    (out / "recipe.yml").write_text(json.dumps({"merge_method": name, "models": entries, "dtype": "float32"}))
    command = [mergekit_bin() / "mergekit-pytorch", out / "recipe.yml", out / "merged"]
    subprocess.run(command, check=True, capture_output=True)
    return out / "merged"


def mergekit_bin() -> Path:
    return Path(os.environ["MERGEKIT_BIN"])


TOOLS = {"riemerge": by_riemerge, "PEFT": by_peft, "mergekit": by_mergekit}
METHODS = [
    *(f"riemerge {name}" for name in ("geomerge", "average", "average --rank r")),
    *(f"PEFT {name}" for name in ("linear", "ties", "cat", "svd")),
    *(f"mergekit {name}" for name in ("linear", "karcher") if "MERGEKIT_BIN" in os.environ),
]
SUMS = [name for name in METHODS if name.split()[1] in {"average", "linear", "cat", "svd"}]


def merge(
    method: str, folders: Folders, weights: Sequence[float], base: Callable[[], Any], out: Path
) -> Path:
    """Merge folders by a method of METHODS, as its users do, and return what it wrote under `out`."""
    tool, _, name = method.partition(" ")
    return TOOLS[tool](name, folders, weights, base, out)


def updates(folder: Path, base: Callable[[], Any]) -> Updates:
    """dW of every module of what a merge wrote, in float64: as PEFT loads it, or checkpoint minus base."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file

    if (folder / "adapter_config.json").exists():
        model = PeftModel.from_pretrained(base(), folder).double()
        layers = {k.removeprefix("base_model.model."): m for k, m in model.named_modules()}
        return {k: m.get_delta_weight("default") for k, m in layers.items() if hasattr(m, "get_delta_weight")}
    merged, before = load_file(next(folder.glob("*.safetensors"))), base().state_dict()
    change = {k.removesuffix(".weight"): merged[k].double() - before[k].double() for k in merged}
    return {
        module: delta for module, delta in change.items() if not torch.equal(delta, torch.zeros_like(delta))
    }


def apart(one: Updates, other: Updates) -> float:
    """‖one - other‖ / ‖other‖ over the modules of `other` together; NaN counts as infinitely far."""
    square = sum(float((one[module] - delta).norm() ** 2) for module, delta in other.items())
    relative = (square / sum(float(delta.norm() ** 2) for delta in other.values())) ** 0.5
    return relative if relative == relative else float("inf")  # noqa: PLR0124


# --- the laws -----------------------------------------------------------------------------------------------


def tiny_adapters(name: str, count: int, rank: int = RANK) -> list[Any]:
    """A family of `tests.helpers`, its updates about a twentieth of the base weights, as real ones are."""
    from tests.folders import family

    return [{m: (b / 50, a) for m, (b, a) in one.items()} for one in family(name, count, rank, 0, SHAPES)]


def shipped_adapters() -> list[Any]:
    """Layer 0 of the shipped adapters, as factors (B, A) in float32."""
    from riemerge import read_adapter

    opened = [read_adapter(folder) for folder in SHIPPED]
    names = [module for module in opened[0].modules if ".layer.0." in module]
    return [
        {m: (u.B.float() * u.scale, u.A.float()) for m in names for u in [one.update(m)]} for one in opened
    ]


def write(folder: Path, modules: Mapping[str, Any], **settings: Any) -> Path:
    """Factors as a PEFT folder in float32."""
    import torch
    from tests.folders import write_folder

    return write_folder(folder, modules, dtype=torch.float32, target_modules=list(modules), **settings)


def rewritten(modules: Mapping[str, Any], condition: float, seed: int) -> dict[str, Any]:
    """The same updates by other factors (B G, G⁻¹ A), G of this condition number (1: orthogonal)."""
    import torch
    from tests.helpers import random_gauge, seeded

    generator = seeded(seed)
    gauges = [random_gauge(b.shape[1], condition, generator) for b, _ in modules.values()]
    return {
        module: (b.double() @ g, torch.linalg.solve(g, a.double()))
        for (module, (b, a)), g in zip(modules.items(), gauges, strict=True)
    }


def gauge_change(
    method: str, adapters: list[Any], condition: float, config: Mapping[str, int], root: Path
) -> float:
    """How far the merged dW moves when the first adapter is rewritten; the weights are unequal."""
    base = lambda: make_base(config)  # noqa: E731
    weights = [i / sum(range(1, len(adapters) + 1)) for i in range(len(adapters), 0, -1)]
    plain = [write(root / f"plain{i}", one) for i, one in enumerate(adapters)]
    other = [write(root / "other", rewritten(adapters[0], condition, 1)), *plain[1:]]
    before, after = (
        updates(merge(method, given, weights, base, root / out), base)
        for given, out in ((plain, "before"), (other, "after"))
    )
    return apart(after, before)


def copies_error(method: str, root: Path, **settings: Any) -> float:
    """Three copies of one adapter with weights 0.5, 0.3, 0.2: the relative error of the merge."""
    base = lambda: make_base(TINY)  # noqa: E731
    (one,) = tiny_adapters("independent", 1)
    folders = [write(root / name, one, **settings) for name in "abc"]
    return apart(
        updates(merge(method, folders, [0.5, 0.3, 0.2], base, root / "out"), base), updates(folders[0], base)
    )


def sum_error(method: str, root: Path) -> float:
    """Two unrelated adapters with weights 0.6, 0.4: the relative distance to Σ wᵢ dWᵢ."""
    base = lambda: make_base(TINY)  # noqa: E731
    adapters = tiny_adapters("independent", 2)
    folders = [write(root / name, one) for name, one in zip("ab", adapters, strict=True)]
    exact = {
        m: sum(w * one[m][0] @ one[m][1] for w, one in zip((0.6, 0.4), adapters, strict=True)) for m in SHAPES
    }
    return apart(updates(merge(method, folders, [0.6, 0.4], base, root / "out"), base), exact)


def outcome(method: str, case: str, root: Path) -> dict[str, Any]:
    """Whether a merge of two adapters is done or refused, with what error or warnings.

    Cases: `nan` (one NaN in the second), `modules` (the second lacks one), `ranks` (RANK and half of it), `no base`
    (the base model on torch's meta device: its architecture without its weights).
    """
    import torch

    first, second = tiny_adapters("independent", 2)
    if case == "nan":
        second[next(iter(second))][0][0, 0] = torch.nan
    elif case == "modules":
        second.popitem()
    elif case == "ranks":
        second = tiny_adapters("independent", 1, RANK // 2)[0]
    folders = [write(root / "a", first), write(root / "b", second)]
    base = lambda: make_base(TINY, "meta" if case == "no base" else "cpu")  # noqa: E731
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            merge(method, folders, [0.6, 0.4], base, root / "out")
        except Exception as error:  # noqa: BLE001 - whatever a tool does here is the figure
            return {"merged": False, "error": type(error).__name__, "text": str(error).replace(str(root), "")}
    said = sorted({str(one.message) for one in caught if issubclass(one.category, UserWarning)})
    return {"merged": True, "warnings": said}


def in_folder(measure: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return measure(*arguments, root=Path(folder), **settings)


def laws(method: str) -> dict[str, Any]:
    """Every row of one method but its cost."""
    sets = {
        "related": (tiny_adapters("close", 2), TINY),
        "unrelated": (tiny_adapters("independent", 2), TINY),
        "shipped": (shipped_adapters(), {**MINILM, "num_hidden_layers": 1, "vocab_size": 11}),
    }
    row: dict[str, Any] = {
        f"gauge {condition}": {
            name: in_folder(gauge_change, method, adapters, condition, config)
            for name, (adapters, config) in sets.items()
        }
        for condition in (1, 100)
    }
    row["copies"] = in_folder(copies_error, method)
    row["copies rslora"] = in_folder(copies_error, method, use_rslora=True)
    row["sum"] = in_folder(sum_error, method) if method in SUMS else None
    return row | {case: in_folder(outcome, method, case) for case in ("no base", "nan", "modules", "ranks")}


# --- the cost -----------------------------------------------------------------------------------------------


def run_once(method: str) -> None:
    """In a process of its own: merge the four shipped adapters; print the seconds after the imports."""
    import torch

    import riemerge.merge  # noqa: F401

    if not method.startswith("riemerge"):
        import peft  # noqa: F401
        from transformers import BertModel  # noqa: F401
    torch.set_num_threads(1)
    ready = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        merge(method, SHIPPED, [0.25] * 4, lambda: make_base(MINILM), Path(folder) / "out")
    print(time.perf_counter() - ready)


def peak(pid: int) -> int:
    """The largest resident memory, in KiB, that this process or a child of it has had (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return max([own, *(peak(int(child)) for child in children)])


def cost(method: str) -> dict[str, float]:
    one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    started, highest = time.perf_counter(), 0
    command = [sys.executable, str(Path(__file__)), "--once", method]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | one
    ) as child:
        while child.poll() is None:
            highest = max(highest, peak(child.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        assert child.returncode == 0 and child.stdout, method
        return {
            "seconds": seconds,
            "after_imports": float(child.stdout.read().split()[-1]),
            "mib": highest / 1024,
        }
