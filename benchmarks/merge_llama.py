"""Six adapters of Llama-3-8B's shapes, merged file to file, against PEFT, the KnOTS recipe, a dense truncated
SVD, and against the floor of reading, multiplying and writing.

Run from the root of the repository: python -m benchmarks.merge_llama [--quick]
Writes benchmarks/results/merge_llama.json and .png; benchmarks/README.md says how to read them.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import common
from riemerge.problems import Factors, adapter_family
from riemerge.updates.low_rank import LowRankUpdate, sum_updates
from tests.folders import write_folder

Shape = tuple[int, int]

WIDE, NARROW, INNER = 4096, 1024, 14336
LLAMA: dict[str, Shape] = {
    "self_attn.q_proj": (WIDE, WIDE),
    "self_attn.k_proj": (NARROW, WIDE),
    "self_attn.v_proj": (NARROW, WIDE),
    "self_attn.o_proj": (WIDE, WIDE),
    "mlp.gate_proj": (INNER, WIDE),
    "mlp.up_proj": (INNER, WIDE),
    "mlp.down_proj": (WIDE, INNER),
}
# Layer i is of family i % 4.
FAMILIES = ("close", "shared_subspace", "lora_like", "independent")
SAMPLED_LAYER = FAMILIES.index("independent")
TENSORS = "adapter_model.safetensors"
OURS = ("default", "geomerge")  # what `riemerge merge` does without a method, and the Fréchet mean
MEASURED = (*OURS, "floor")
RIEMERGE = [sys.executable, "-c", "from riemerge.cli.commands import main; main()"]


class Size(NamedTuple):
    """What is merged, and of which shapes the slow rivals are measured; the others follow by flop count."""

    shapes: Mapping[str, Shape]
    layers: tuple[int, ...]
    rank: int
    adapters: int
    truncated: tuple[Shape, ...]
    knots: tuple[Shape, ...]
    knots_float64: tuple[Shape, ...]
    apart: bool  # one process for each sample, so that its memory is its own

    @property
    def counts(self) -> dict[Shape, int]:
        """How many modules of the whole model have each shape."""
        return {shape: self.layers[-1] * count for shape, count in Counter(self.shapes.values()).items()}


FULL = Size(
    LLAMA,
    layers=(4, 16, 32),
    rank=16,
    adapters=6,
    truncated=((WIDE, WIDE), (NARROW, WIDE), (INNER, WIDE)),  # of a transpose: the same problem
    knots=((NARROW, WIDE), (WIDE, WIDE)),
    knots_float64=((NARROW, WIDE),),
    apart=True,
)
QUICK = Size(
    {"self_attn.q_proj": (24, 24), "mlp.down_proj": (24, 40)},
    layers=(1, 4),
    rank=2,
    adapters=2,
    truncated=((24, 24),),
    knots=((24, 24),),
    knots_float64=((24, 24),),
    apart=False,
)


# --- the adapters -------------------------------------------------------------------------------------------


def family_of(module: str) -> str:
    """The family of a module, by its layer."""
    return FAMILIES[int(module.split(".")[2]) % len(FAMILIES)]


def make_modules(size: Size) -> dict[str, list[Factors]]:
    """Every module's factors (B, A) of each adapter, bfloat16; seeded."""
    modules: dict[str, list[Factors]] = {}
    for layer in range(size.layers[-1]):
        for place, (part, (m, n)) in enumerate(size.shapes.items()):
            name = f"model.layers.{layer}.{part}"
            family = adapter_family(family_of(name), size.adapters, m, n, size.rank, 100 * layer + place)
            modules[name] = [(b.bfloat16(), a.bfloat16()) for b, a in family]
    return modules


def write_folders(root: Path, modules: Mapping[str, Sequence[Factors]]) -> list[Path]:
    """Write modules as one PEFT folder per adapter, bfloat16."""
    count = len(next(iter(modules.values())))
    return [
        write_folder(
            root / f"adapter{i}",
            {name: factors[i] for name, factors in modules.items()},
            dtype=torch.bfloat16,
            base_model_name_or_path=None,  # PEFT asks no hub for it
            target_modules=list(modules),
        )
        for i in range(count)
    ]


def write_all(root: Path, size: Size) -> tuple[dict[int, list[Path]], dict[Shape, list[Path]]]:
    """Write the whole model, its first layers alone, and one module of each shape alone."""
    modules = make_modules(size)
    whole = {}
    for layers in size.layers:
        part = {name: one for name, one in modules.items() if int(name.split(".")[2]) < layers}
        whole[len(part)] = write_folders(root / f"{layers}-layers", part)
    samples = {}
    for suffix, shape in size.shapes.items():
        if shape not in samples:
            module = f"model.layers.{SAMPLED_LAYER}.{suffix}"
            samples[shape] = write_folders(root / f"sample-{shape[0]}x{shape[1]}", {module: modules[module]})
    return whole, samples


def read_factors(folder: Path) -> Factors:
    """The factors (B, A) of a folder of one module, float32."""
    with safe_open(folder / TENSORS, "pt") as file:
        b, a = (next(key for key in file.keys() if f"lora_{side}" in key) for side in "BA")  # noqa: SIM118
        return file.get_tensor(b).float(), file.get_tensor(a).float()


# --- what is measured in processes of their own -------------------------------------------------------------


def floor(folders: Sequence[Path], out: Path) -> None:
    """The least that a merge can do: read all factors, one Gram matrix a side, one product a side, write."""
    files = [safe_open(folder / TENSORS, "pt") for folder in folders]
    merged = {}
    for key in files[0].keys():  # noqa: SIM118
        factors = [file.get_tensor(key).float() for file in files]
        rank = min(factors[0].shape)
        if "lora_B" in key:
            tall = torch.cat(factors, dim=1)
            gram = tall.mT @ tall
            product = tall @ (gram[:, :rank] / gram.norm())
        else:
            tall = torch.cat(factors, dim=0)
            gram = tall @ tall.mT
            product = (gram[:rank] / gram.norm()) @ tall
        merged[key] = product.bfloat16()
    save_file(merged, out)


def average(factors: Sequence[Factors]) -> LowRankUpdate:
    """The average of the updates, exactly, as one update of rank T r."""
    return sum_updates([LowRankUpdate(b, a) for b, a in factors], [1 / len(factors)] * len(factors))


def truncated_svd(factors: Sequence[Factors]) -> Tensor:
    """The dense average, truncated to the rank of the inputs."""
    whole = average(factors)
    u, s, vt = torch.linalg.svd(whole.B @ whole.A, full_matrices=False)
    rank = factors[0][1].shape[0]
    result: Tensor = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return result


def knots(factors: Sequence[Factors], dtype: torch.dtype = torch.float32) -> Tensor:
    """KnOTS with the average as its rule: SVD of [dW_1 .. dW_T], the parts of V merged, multiplied out.

    As the authors' code does it (Stoica et al. 2024, arXiv 2410.19735): dense, thin, directions below 1e-5
    left out; their code decomposes in float64.
    """
    columns = torch.cat([b @ a for b, a in factors], dim=1)
    u, s, vt = torch.linalg.svd(columns.to(dtype), full_matrices=False)
    kept = s > 1e-5
    parts = (s[kept, None] * vt[kept]).float().chunk(len(factors), dim=1)
    return u[:, kept].float() @ torch.stack(parts).mean(dim=0)


def peft(folders: Sequence[Path], method: str, density: float | None = None) -> tuple[float, Tensor]:
    """Seconds of PEFT's add_weighted_adapter on a model of this one module, without loading and saving.

    Once for `svd` and what ends in it. The others are a matter of milliseconds: median of three with one
    thread, or with all if that is less.
    """
    from peft import PeftModel
    from torch import nn

    config = json.loads((folders[0] / "adapter_config.json").read_text(encoding="utf-8"))
    (name,) = config["target_modules"]
    b, a = read_factors(folders[0])
    model = nn.Module()
    inner = model
    *path, last = name.split(".")
    for step in path:
        inner.add_module(step, nn.Module())
        inner = inner.get_submodule(step)
    # Base weights are not looked at: uninitialised.
    m, n = b.shape[0], a.shape[1]
    linear = nn.utils.skip_init(nn.Linear, n, m, bias=False, device="cpu", dtype=torch.bfloat16)
    inner.add_module(last, linear)
    names = [folder.name for folder in folders]
    loaded = PeftModel.from_pretrained(model, folders[0], adapter_name=names[0])
    for folder in folders[1:]:
        loaded.load_adapter(folder, folder.name)
    weights, all_threads = [1 / len(names)] * len(names), torch.get_num_threads()
    loaded.add_weighted_adapter(names, weights, "unmeasured", combination_type="cat")  # loads and allocates
    medians, merged, brief = [], "", not method.endswith("svd")
    for threads in (1, all_threads) if brief else (all_threads,):
        torch.set_num_threads(threads)
        seconds = []
        for repeat in range(3 if brief else 1):
            merged = f"merged-{threads}-{repeat}"
            began = time.perf_counter()
            loaded.add_weighted_adapter(names, weights, merged, combination_type=method, density=density)
            seconds.append(time.perf_counter() - began)
        medians.append(statistics.median(seconds))
    layer: Any = next(one for one in loaded.modules() if hasattr(one, "get_delta_weight"))
    return min(medians), layer.get_delta_weight(merged).detach()


RIVALS = ("PEFT svd", "PEFT cat", "KnOTS", "KnOTS float64", "truncated SVD")
EXACT_AVERAGE = ("PEFT cat", "KnOTS", "KnOTS float64")


def rival(name: str, folders: Sequence[Path]) -> dict[str, float]:
    """Seconds of one rival on one module, and its distance to what it means to compute."""
    factors = [read_factors(folder) for folder in folders]
    torch.linalg.svd(factors[0][0][:8])  # the first call of all loads LAPACK
    began = time.perf_counter()
    if name.startswith("PEFT"):
        seconds, found = peft(folders, name.partition(" ")[2])
    elif name == "truncated SVD":
        found = truncated_svd(factors)
        seconds = time.perf_counter() - began
    else:
        found = knots(factors, torch.float64 if name.endswith("float64") else torch.float32)
        seconds = time.perf_counter() - began
    meant = average(factors)
    if name not in EXACT_AVERAGE:
        meant = meant.truncate(factors[0][1].shape[0])
    error = found.sub_(meant.B @ meant.A).norm() / meant.norm()
    return {"seconds": seconds, "error": float(error)}


def child(task: str, paths: Sequence[str]) -> None:
    """What a process of its own does: the floor, or a rival on some samples; prints JSON."""
    if task == "floor":
        *folders, out = map(Path, paths)
        floor(folders, out)
        return
    rows = [rival(task, sorted(Path(sample).iterdir())) for sample in paths]
    print(json.dumps(rows))


def start(task: str, *paths: Path, threads: int | None = None) -> common.Watched:
    """Run `child` in a process of its own, with the machine's own number of threads unless one is given."""
    command = [sys.executable, "-m", "benchmarks.merge_llama", "--child", task, *map(str, paths)]
    return common.watch(command, threads)


def measure_floor(folders: Sequence[Path], out: Path) -> dict[str, float]:
    """The floor with one thread and with all: the faster of the two, and the seconds of the other.

    Threads that wait for each other at small products may cost more than they bring, on a busy machine by
    far.
    """
    cores = os.cpu_count() or 1
    runs = [
        {
            "threads": threads,
            **start("floor", *folders, out / f"{threads}.safetensors", threads=threads).row(),
        }
        for threads in (1, cores)
    ]
    faster, slower = sorted(runs, key=lambda run: run["seconds"])
    return faster | {"seconds_otherwise": slower["seconds"]}


# --- the measurement ----------------------------------------------------------------------------------------


def flops(shape: Shape) -> float:
    """What an SVD of this shape costs, up to a constant."""
    return float(min(shape) ** 2 * max(shape))


def extrapolate(
    measured: Mapping[Shape, Mapping[str, float]], counts: Mapping[Shape, int], copies: int = 1
) -> dict[str, Any]:
    """The seconds of a whole model from those of one module of some of its shapes.

    Args:
        measured: Shape to what was measured of one such module.
        counts: Shape to the number of modules. A shape that was not measured takes the seconds of the
            measured one nearest in flops, times the ratio of their flops.
        copies: How many updates stand side by side in the matrix that is decomposed.
    """
    cost = {(m, n): flops((m, copies * n)) for m, n in counts}
    rows, total = [], 0.0
    for shape, count in counts.items():
        source = min(measured, key=lambda one: (one != shape, abs(math.log(cost[one] / cost[shape]))))
        factor = cost[shape] / cost[source]
        seconds = measured[source]["seconds"] * factor
        total += count * seconds
        taken = measured[shape] if source == shape else {"from": list(source), "factor": factor}
        rows.append({"shape": list(shape), "modules": count, **taken, "seconds": seconds})
    sampled = [list(shape) for shape in counts if shape in measured]
    return {"seconds": total, "extrapolated": True, "sampled": sampled, "rows": rows}


def measure_rival(name: str, samples: Mapping[Shape, Sequence[Path]], size: Size) -> dict[str, Any]:
    """Measure one rival on its sample of shapes."""
    wanted = {
        "KnOTS": size.knots,
        "KnOTS float64": size.knots_float64,
        "truncated SVD": size.truncated,
    }.get(name, tuple(samples))
    measured: dict[Shape, dict[str, float]] = {}
    for group in [[shape] for shape in wanted] if size.apart else [list(wanted)]:
        common.tell(f"{name}: {', '.join(f'{m} x {n}' for m, n in group)}")
        ran = start(name, *(samples[shape][0].parent for shape in group))
        for shape, row in zip(group, json.loads(ran.printed), strict=True):
            measured[shape] = {**row, "mib": ran.mib}
    return extrapolate(measured, size.counts, size.adapters if name.startswith("KnOTS") else 1)


def merge(folders: Sequence[Path], out: Path, *options: str) -> tuple[dict[str, float], dict[str, Any]]:
    """One merge by the command line, its defaults but for `options`: figures, and how the modules ended."""
    ran = common.watch([*RIEMERGE, "merge", *map(str, folders), "--output", str(out), "--json", *options])
    record = json.loads(ran.printed)["record"]
    ended: dict[str, Any] = {}
    for row in record["modules"]:
        one = ended.setdefault(family_of(row["module"]), {"statuses": Counter(), "passes": []})
        one["statuses"][row["status"]] += 1
        one["passes"].append(row["passes"])
    for one in ended.values():
        one["passes"] = {"median": statistics.median(one["passes"]), "most": max(one["passes"])}
    return ran.row() | {"read": record["timing"]["read"], "solve": record["timing"]["solve"]}, ended


def growth(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """What each module more costs, between the fewest and the most modules, by the medians."""
    counts = sorted(map(int, runs))
    (few, many), found = (counts[0], counts[-1]), {}
    for key in ("seconds", "cpu", "mib"):
        low, high = (statistics.median(run[key] for run in runs[str(count)]) for count in (few, many))
        found[f"{key}_per_module"] = (high - low) / (many - few)
    return found


def measure(quick: bool) -> dict[str, Any]:
    """Everything, in one run: our merges and the floor in turn, before, between and after the rivals."""
    size = QUICK if quick else FULL
    machine = common.machine(os.cpu_count() or 1, "peft", "safetensors")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scratch = root / "floor"
        scratch.mkdir()
        common.tell("writing the adapters")
        began = time.perf_counter()
        whole, samples = write_all(root, size)
        gc.collect()
        most = max(whole)
        found: dict[str, Any] = {
            "machine": machine,
            "setting": {
                "shapes": {name: list(shape) for name, shape in size.shapes.items()},
                "layers": size.layers[-1],
                "modules": most,
                "adapters": size.adapters,
                "rank": size.rank,
                "dtype": "bfloat16",
                "families": list(FAMILIES),
                "sampled_family": FAMILIES[SAMPLED_LAYER],
                "input_bytes": sum((one / TENSORS).stat().st_size for one in whole[most]),
                "seconds_to_write_the_inputs": time.perf_counter() - began,
            },
            "default": {str(count): [] for count in whole},
            "geomerge": {str(count): [] for count in whole},
            "floor": {str(count): [] for count in whole},
            "rivals": {},
        }

        def in_turn(counts: Sequence[int]) -> None:
            for count in counts:
                run = sum(map(len, found["geomerge"].values()))
                common.tell(f"ours and the floor: {count} modules")
                row, ended = merge(whole[count], root / f"merged{run}", "--method", "geomerge")
                found["geomerge"][str(count)].append(row)
                found["ended"] = ended if count == most else found.get("ended")
                found["default"][str(count)].append(merge(whole[count], root / f"default{run}")[0])
                found["floor"][str(count)].append(measure_floor(whole[count], scratch))

        in_turn(sorted(whole, reverse=True))
        for name in RIVALS:
            found["rivals"][name] = measure_rival(name, samples, size)
        if not quick:
            in_turn([most, min(whole)])
            found["floor"][str(most)].append(measure_floor(whole[most], scratch))
        found["setting"]["output_bytes"] = (root / "merged0" / TENSORS).stat().st_size
    return found | summary(found)


# --- what follows from it -----------------------------------------------------------------------------------


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Noise, ratios, growth and goals of what was measured."""
    most = str(found["setting"]["modules"])
    spread = {
        name: {
            key: common.noise([run[key] for run in found[name][most]]) for key in ("seconds", "cpu", "mib")
        }
        for name in MEASURED
    }
    ratios: dict[str, dict[str, float]] = {}
    goals = []
    for name in OURS:
        ours = spread[name]["seconds"]["median"]
        ratio = {rival: one["seconds"] / ours for rival, one in found["rivals"].items()}
        ratio["floor"] = spread["floor"]["seconds"]["median"] / ours
        ratios[name] = ratio
        gigabytes = spread[name]["mib"]["highest"] * 2**20 / 1e9
        goals += [
            common.goal(f"{name}: times faster than PEFT svd", ratio["PEFT svd"], at_least=100),
            common.goal(f"{name}: times faster than KnOTS", ratio["KnOTS"], at_least=20),
            common.goal(f"{name}: times the floor", 1 / ratio["floor"], at_most=10),
            common.goal(f"{name}: seconds", ours, at_most=90),
            common.goal(f"{name}: peak memory, GB", gigabytes, at_most=2.5),
        ]
    return {
        "noise": spread,
        "ratios": ratios,
        "growth": {name: growth(found[name]) for name in MEASURED},
        "goals": goals,
    }


def tables(result: Mapping[str, Any]) -> str:
    """The README's tables."""
    most, show, names = str(result["setting"]["modules"]), common.number, MEASURED
    rows = []
    for name in names:
        one = result["noise"][name]
        seconds = [show(one["seconds"][key]) for key in ("median", "lowest", "highest")]
        rows.append([name, "{} ({}–{})".format(*seconds), show(one["mib"]["median"]), "measured", "", "", ""])
    for name, one in result["rivals"].items():
        measured = [row for row in one["rows"] if "from" not in row]
        shapes = ", ".join("{} × {}".format(*row["shape"]) for row in measured)
        memory, error = (show(max(row[key] for row in measured)) for key in ("mib", "error"))
        how = f"extrapolated from one module each of {shapes}"
        times = [show(result["ratios"][ours][name]) for ours in OURS]
        rows.append([name, show(one["seconds"]), memory, how, *times, error])
    keys = {"s": "seconds", "CPU s": "cpu", "MiB": "mib"}
    sizes = [
        [count]
        + [
            show(statistics.median(x[key] for x in result[name][count]))
            for name in names
            for key in keys.values()
        ]
        for count in sorted(result["floor"], key=int)
    ]
    ended = [
        [family, ", ".join(f"{count} {status}" for status, count in one["statuses"].items())]
        + [show(one["passes"][key]) for key in ("median", "most")]
        for family, one in result["ended"].items()
    ]
    ratios = (f"times {name}" for name in OURS)
    head = ["", f"seconds for {most} modules", "peak MiB", "how", *ratios, "error"]
    return "\n\n".join(
        [
            common.markdown(head, rows),
            common.markdown(["modules", *(f"{name}, {key}" for name in names for key in keys)], sizes),
            common.markdown(["family", "ended", "passes, median", "most"], ended),
            common.goals_table(result["goals"]),
        ]
    )


def picture(result: Mapping[str, Any]) -> Any:
    """Seconds of all (left), memory and seconds over the number of modules (right)."""
    figure, ((left, middle, right),) = common.canvas(1, 3, 13, 4)
    most = str(result["setting"]["modules"])
    ours = MEASURED[::-1]
    names = [*ours, *result["rivals"]]
    seconds = [result["noise"][name]["seconds"]["median"] for name in ours]
    seconds += [one["seconds"] for one in result["rivals"].values()]
    bars = left.barh(names, seconds, color=["C7", "C0", "C2"] + ["C1"] * len(result["rivals"]))
    for bar in list(bars)[len(ours) :]:
        bar.set_hatch("//")
    left.bar_label(bars, [f"{one:.3g} s" for one in seconds], padding=3)
    left.set(xscale="log", title=f"seconds for {most} modules (hatched: extrapolated)")
    left.margins(x=0.3)
    for axes, key, title in ((middle, "seconds", "seconds"), (right, "mib", "peak MiB")):
        for name in MEASURED:
            runs = result[name]
            counts = sorted(map(int, runs))
            medians = [statistics.median(run[key] for run in runs[str(count)]) for count in counts]
            axes.plot(counts, medians, "o-", label=name)
        axes.set(xlabel="modules", title=title, ylim=(0, None))
        axes.legend()
    return figure


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    else:
        common.execute(
            "merge_llama",
            "Six adapters of Llama-3-8B's shapes, merged file to file.",
            measure,
            picture,
            tables,
        )
