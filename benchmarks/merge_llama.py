"""Six adapters of Llama-3-8B's shapes, merged file to file, against PEFT, mergekit, the KnOTS recipe, a script of
twenty lines, a dense truncated SVD, and against the floor of reading, multiplying and writing.

Run from the root of the repository: python -m benchmarks.merge_llama [--quick]
Writes benchmarks/results/merge_llama.json and .png; benchmarks/README.md says how to read them. mergekit is
measured if MERGEKIT_BIN names the `bin` folder of an environment that has it.
"""  # noqa: E501

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import common
from benchmarks.common import RIEMERGE
from benchmarks.gauge import mergekit_python, mergekit_version
from benchmarks.peers import SHIPPED
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
# What `riemerge merge` does without a method, the Fréchet mean, and the exact average.
OURS = {"default": (), "geomerge": ("--method", "geomerge"), "average": ("--method", "average")}
SCRIPTS = ("script float32", "script float64")
MEASURED = (*OURS, *SCRIPTS, "floor", "import torch")
DENSITY = 0.5
ENTRYWISE = ("ties", "dare_ties")


class Size(NamedTuple):
    """What is merged, and of which shapes the slow rivals are measured; the others follow by their size."""

    shapes: Mapping[str, Shape]
    layers: tuple[int, ...]  # the first layers alone, and all
    rank: int
    adapters: int
    dense: tuple[Shape, ...]  # where a rival decomposes dense dW's, or merges them
    knots: tuple[Shape, ...]
    rounds: int  # interleaved runs of everything that is measured whole
    imports: int  # interleaved runs of a small merge and of the import of torch
    entrywise: int  # repeats of entrywise rows
    apart: bool  # in processes of their own

    @property
    def counts(self) -> dict[Shape, int]:
        """How many modules of the whole model have each shape."""
        return {shape: self.layers[-1] * count for shape, count in Counter(self.shapes.values()).items()}


FULL = Size(
    LLAMA,
    layers=(4, 16, 32),
    rank=16,
    adapters=6,
    dense=((NARROW, WIDE), (WIDE, WIDE)),
    knots=((NARROW, WIDE),),
    rounds=3,
    imports=5,
    entrywise=2,
    apart=True,
)
QUICK = Size(
    {"self_attn.q_proj": (24, 24), "mlp.down_proj": (24, 40)},
    layers=(1, 4),
    rank=2,
    adapters=2,
    dense=((24, 24),),
    knots=((24, 24),),
    rounds=1,
    imports=1,
    entrywise=1,
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


def write_folders(
    root: Path, modules: Mapping[str, Sequence[Factors]], dtype: torch.dtype = torch.bfloat16
) -> list[Path]:
    """Write modules as one PEFT folder per adapter."""
    count = len(next(iter(modules.values())))
    return [
        write_folder(
            root / f"adapter{i}",
            {name: factors[i] for name, factors in modules.items()},
            dtype=dtype,
            base_model_name_or_path=None,  # PEFT asks no hub for it
            target_modules=list(modules),
        )
        for i in range(count)
    ]


class Inputs(NamedTuple):
    """Folders of what is merged.

    Attributes:
        whole: Number of modules to the folders of its adapters: of the first layers, and of all.
        samples: Shape to the folders of one such module.
        exact: Folders of the first layers, in float32.
    """

    whole: dict[int, list[Path]]
    samples: dict[Shape, list[Path]]
    exact: list[Path]


def adapters_of(root: Path) -> list[Path]:
    """The folders of adapters in a folder."""
    return sorted(root.glob("adapter*"))


def write_inputs(run: common.Run, size: Size) -> Inputs:
    """Write the whole model, its first layers alone, and one module of each shape, unless they are there."""

    def write(root: Path) -> None:
        modules = make_modules(size)
        for layers in size.layers:
            part = {name: one for name, one in modules.items() if int(name.split(".")[2]) < layers}
            write_folders(root / f"{len(part)}", part)
            if layers == size.layers[0]:
                write_folders(root / "exact", part, torch.float32)
        for suffix, shape in size.shapes.items():
            if not (root / sample_name(shape)).exists():
                module = f"model.layers.{SAMPLED_LAYER}.{suffix}"
                write_folders(root / sample_name(shape), {module: modules[module]})

    root = run.files(f"llama-{size.layers[-1]}-layers-of-rank-{size.rank}", write)
    return Inputs(
        {len(size.shapes) * n: adapters_of(root / f"{len(size.shapes) * n}") for n in size.layers},
        {shape: adapters_of(root / sample_name(shape)) for shape in size.shapes.values()},
        adapters_of(root / "exact"),
    )


def sample_name(shape: Shape) -> str:
    """The name of the folder of one module of a shape."""
    return f"sample-{shape[0]}x{shape[1]}"


def read_factors(folder: Path) -> Factors:
    """The factors (B, A) of a folder of one module, float32."""
    with safe_open(folder / TENSORS, "pt") as file:
        b, a = (next(key for key in file.keys() if f"lora_{side}" in key) for side in "BA")  # noqa: SIM118
        return file.get_tensor(b).float(), file.get_tensor(a).float()


# --- the rivals ---------------------------------------------------------------------------------------------


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


# --- the measurement ----------------------------------------------------------------------------------------


def flops(shape: Shape) -> float:
    """What an SVD of this shape costs, up to a constant."""
    return float(min(shape) ** 2 * max(shape))


def entries(shape: Shape) -> float:
    """How many numbers a matrix of this shape has."""
    return float(shape[0] * shape[1])


def extrapolate(
    measured: Mapping[Shape, Mapping[str, float]],
    counts: Mapping[Shape, int],
    cost: Callable[[Shape], float] = flops,
    start: float = 0.0,
) -> dict[str, Any]:
    """The figures of a whole model from those of one module of some of its shapes.

    Args:
        measured: Shape to what was measured of one such module.
        counts: Shape to the number of modules. A shape that was not measured takes the seconds of the
            measured one of the nearest cost, times the ratio of their costs.
        cost: What a module of a shape costs, up to a constant.
        start: Seconds of each measured run that do not come with each module.
    """
    rows, total = [], start
    for shape, count in counts.items():
        source = min(measured, key=lambda one: (one != shape, abs(math.log(cost(one) / cost(shape)))))
        factor = cost(shape) / cost(source)
        seconds = max(measured[source]["seconds"] - start, 0.0) * factor
        total += count * seconds
        taken = measured[shape] if source == shape else {"from": list(source), "factor": factor}
        rows.append({"shape": list(shape), "modules": count, **taken, "seconds": seconds})
    most = max(one["mib"] for one in measured.values())
    return {"seconds": total, "mib": most, "extrapolated": True, "rows": rows}


def sampled(one: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of an extrapolation that were measured."""
    return [row for row in one["rows"] if "from" not in row]


class Bench:
    """The commands of this benchmark on one set of files.

    Args:
        run: The run.
        size: What is merged.
    """

    def __init__(self, run: common.Run, size: Size) -> None:
        self.run, self.size, self.inputs = run, size, write_inputs(run, size)
        self._out = run.folder / "out"

    def launch(self, module: str, *words: object, threads: int | None = None) -> common.Watched:
        """Run `main` of a module, whose last word is a new folder; the folder is left for the caller."""
        shutil.rmtree(self._out, ignore_errors=True)
        return common.launch(module, *words, self._out, apart=self.size.apart, threads=threads)

    def merge(self, folders: Sequence[Path], *options: object) -> dict[str, Any]:
        """One merge by the command line, its defaults but for `options`."""
        ran = self.launch(RIEMERGE, "merge", *folders, "--json", *options, "--output")
        record = json.loads(ran.printed)["record"]
        timing = {"read": record["timing"]["read"], "solve": record["timing"]["solve"]}
        rows = [[row["module"], row["status"], row["passes"]] for row in record["modules"]]
        return ran.row() | timing | {"modules": rows}

    def fastest(self, module: str, *words: object) -> dict[str, Any]:
        """Run a module with one thread and with all: the faster of the two, and the seconds of the other.

        Threads that wait for each other at small products may cost more than they bring.
        """
        runs = [
            {"threads": threads, **self.launch(module, *words, threads=threads).row()}
            for threads in dict.fromkeys((1, os.cpu_count() or 1))
        ]
        faster, slower = (pick(runs, key=lambda one: one["seconds"]) for pick in (min, max))
        return faster | {"seconds_otherwise": slower["seconds"]}

    def round(self, count: int) -> dict[str, Any]:
        """Everything that is measured whole, in turn, on so many modules."""
        folders = self.inputs.whole[count]
        found: dict[str, Any] = {}
        for name, options in OURS.items():
            found[name] = self.merge(folders, *options)
            if name == "geomerge":
                found["output_bytes"] = (self._out / TENSORS).stat().st_size
        for name in SCRIPTS:
            found[name] = self.fastest("benchmarks.short_script", name.split()[1], *folders)
        found["floor"] = self.fastest("benchmarks.floor", *folders)
        found["import torch"] = common.import_torch(apart=self.size.apart).row()
        return found

    def accuracy(self) -> dict[str, dict[str, float]]:
        """How far the average of float32 files is from the exact one in float64: ours, and the scripts'."""
        folders, found = self.inputs.exact, {}
        meant = {
            name: average(factors).truncate(self.size.rank) for name, factors in read_all(folders).items()
        }
        for name in ("average", *SCRIPTS):
            if name == "average":
                self.merge(folders, *OURS[name])
            else:
                self.launch("benchmarks.short_script", name.split()[1], *folders)
            apart = [
                meant[module].distance(LowRankUpdate(*factors[0])) / meant[module].norm()
                for module, factors in read_all([self._out]).items()
            ]
            found[name] = {"median": statistics.median(apart), "most": max(apart)}
        return found

    def imports(self) -> dict[str, list[float]]:
        """Seconds of a merge of the four shipped adapters, and of the import of torch, in turn."""
        found: dict[str, list[float]] = {"merge": [], "import torch": []}
        for _ in range(self.size.imports):
            found["merge"].append(self.launch(RIEMERGE, "merge", *SHIPPED, "--quiet", "--output").seconds)
            found["import torch"].append(common.import_torch(apart=self.size.apart).seconds)
        return found

    def entrywise(self, name: str) -> dict[str, Any]:
        """An entrywise row on one module of each shape, and the start of a process that merges one."""
        words = ("--method", name, "-p", f"density={DENSITY}")
        found: dict[str, Any] = {"modules": {}}
        for _ in range(self.size.entrywise):
            for shape, folders in self.inputs.samples.items():
                runs = found["modules"].setdefault("{} {}".format(*shape), {"row": [], "average": []})
                runs["row"].append(self.merge(folders, *words))
                runs["average"].append(self.merge(folders, *OURS["average"]))
        return found

    def mergekit(self, name: str) -> dict[str, dict[str, float]]:
        """mergekit's method on dense dW's that are in memory, by shape."""
        found = {}
        for shape in self.size.dense:
            path = self.run.folder / f"dense-{shape[0]}x{shape[1]}.safetensors"
            if not path.exists():
                write_dense(path, self.inputs.samples[shape])
            found["{} {}".format(*shape)] = by_mergekit(name, path)
        return found

    def rival(self, name: str) -> dict[str, Any]:
        """A rival on one module of each shape that it is measured on."""
        shapes = {"PEFT cat": tuple(self.inputs.samples), "PEFT svd": self.size.dense}.get(name)
        if shapes is None:
            shapes = self.size.knots if name.startswith("KnOTS") else self.size.dense
        roots = [self.inputs.samples[shape][0].parent for shape in shapes]
        ran = common.launch("benchmarks.merge_llama", "--child", name, *roots, apart=self.size.apart)
        rows = {
            shape: {**row, "mib": ran.mib} for shape, row in zip(shapes, json.loads(ran.printed), strict=True)
        }
        copies = self.size.adapters if name.startswith("KnOTS") else 1
        return extrapolate(rows, self.size.counts, lambda shape: flops((shape[0], copies * shape[1])))


def read_all(folders: Sequence[Path]) -> dict[str, list[Factors]]:
    """The factors (B, A) of every module of some adapters, float64."""
    found: dict[str, list[Factors]] = {}
    for folder in folders:
        with safe_open(folder / TENSORS, "pt") as file:
            for key in (key for key in file.keys() if "lora_A" in key):  # noqa: SIM118
                b, a = (file.get_tensor(name).double() for name in (key.replace("lora_A", "lora_B"), key))
                found.setdefault(key, []).append((b, a))
    return found


def write_dense(path: Path, folders: Sequence[Path]) -> None:
    """Write the dense dW's of adapters of one module, float32, for mergekit."""
    factors = [read_factors(folder) for folder in folders]
    save_file({f"all/{i}": b @ a for i, (b, a) in enumerate(factors)}, path)


def by_mergekit(name: str, tensors: Path) -> dict[str, float]:
    """A method of mergekit on dense dW's in memory, without reading, forming and writing them."""
    script = common.ROOT / "benchmarks" / "in_mergekit.py"
    ran = common.watch([str(mergekit_python()), str(script), str(tensors), "-", name])
    (seconds,) = json.loads(ran.printed).values()
    return {"seconds": seconds, "mib": ran.mib}


def measure(run: common.Run) -> dict[str, Any]:
    """Everything, in pieces, the most important first."""
    size = QUICK if run.quick else FULL
    machine = common.machine(os.cpu_count() or 1, "peft", "safetensors")
    machine["versions"] |= mergekit_version()
    bench = Bench(run, size)
    counts = sorted(bench.inputs.whole)
    most = counts[-1]
    rounds = [run.piece("round 0", bench.round, most)]
    entrywise = {name: run.piece(f"entrywise {name}", bench.entrywise, name) for name in ENTRYWISE}
    accuracy = run.piece("accuracy", bench.accuracy)
    imports = run.piece("imports", bench.imports)
    rounds += [run.piece(f"round {i}", bench.round, most) for i in range(1, size.rounds)]
    grown = {count: run.piece(f"growth {count}", bench.round, count) for count in counts[:-1]}
    rivals = {name: run.piece(f"rival {name}", bench.rival, name) for name in RIVALS}
    with_mergekit = ENTRYWISE if "MERGEKIT_BIN" in os.environ else ()
    mergekit = {name: run.piece(f"mergekit {name}", bench.mergekit, name) for name in with_mergekit}
    rounds = [one for one in rounds if one]
    runs = {most: rounds} | {count: [one] for count, one in grown.items() if one}
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
            "density": DENSITY,
            "input_bytes": sum((one / TENSORS).stat().st_size for one in bench.inputs.whole[most]),
            "output_bytes": rounds[0]["output_bytes"] if rounds else None,
        },
        **{
            name: {str(n): [figures(one[name]) for one in runs[n]] for n in sorted(runs)} for name in MEASURED
        },
        "ended": how_it_ended(rounds[0]["geomerge"]["modules"]) if rounds else {},
        "accuracy": accuracy,
        "imports": imports and {name: common.noise(values) for name, values in imports.items()},
        "entrywise": {name: whole_model(one, size) for name, one in entrywise.items() if one},
        "rivals": {name: one for name, one in rivals.items() if one},
    }
    for name, one in mergekit.items():
        if one:
            by_shape = {shape_of(text): row for text, row in one.items()}
            found["rivals"][f"mergekit {name}"] = extrapolate(by_shape, size.counts, entries)
    return found | summary(found)


def shape_of(text: str) -> Shape:
    """A shape from its two numbers."""
    m, n = map(int, text.split())
    return m, n


def figures(one: Mapping[str, Any]) -> dict[str, float]:
    """What was measured of a run, without how its modules ended."""
    return {key: value for key, value in one.items() if key != "modules"}


def how_it_ended(rows: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    """How the modules of each family ended, and in how many passes."""
    ended: dict[str, Any] = {}
    for module, status, passes in rows:
        one = ended.setdefault(family_of(module), {"statuses": Counter(), "passes": []})
        one["statuses"][status] += 1
        one["passes"].append(passes)
    for one in ended.values():
        one["passes"] = {"median": statistics.median(one["passes"]), "most": max(one["passes"])}
    return ended


def whole_model(one: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Seconds of an entrywise row on the whole model, and its memory above that of `average` on the same
    module, which reads the same inputs and holds next to nothing beside them.
    """
    rows, start = {}, []
    for text, runs in one["modules"].items():
        start += [run["seconds"] for run in runs["average"]]
        seconds = common.noise([run["seconds"] for run in runs["row"]])
        mib, above = (max(run["mib"] for run in runs[name]) for name in ("row", "average"))
        rows[shape_of(text)] = {
            "seconds": seconds["median"],
            "noise": seconds,
            "mib": mib,
            "above": mib - above,
        }
    return extrapolate(rows, size.counts, entries, min(start))


def growth(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """What each module more costs, between the fewest and the most modules, by the medians."""
    counts = sorted(map(int, runs))
    (few, many), found = (counts[0], counts[-1]), {}
    for key in ("seconds", "cpu", "mib"):
        low, high = (statistics.median(run[key] for run in runs[str(count)]) for count in (few, many))
        found[f"{key}_per_module"] = (high - low) / (many - few)
    return found


# --- what follows from it -----------------------------------------------------------------------------------


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Noise, ratios, growth and goals of what was measured."""
    most = str(found["setting"]["modules"])
    spread = {
        name: {
            key: common.noise([run[key] for run in found[name][most]]) for key in ("seconds", "cpu", "mib")
        }
        for name in MEASURED
        if found[name][most]
    }
    # In one round they were interleaved, so a ratio is of the runs of one round; its median over the rounds.
    times: dict[str, Any] = {name: {} for name in OURS}
    for name in OURS:
        for other in (*SCRIPTS, "floor"):
            pairs = zip(found[name][most], found[other][most], strict=False)
            ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
            times[name][other] = common.noise(ratios) if ratios else None
    rivals = {
        ours: {
            name: one["seconds"] / spread[ours]["seconds"]["median"] for name, one in found["rivals"].items()
        }
        for ours in OURS
        if ours in spread
    }
    return {
        "noise": spread,
        "times": times,
        "rivals_over_ours": rivals,
        "growth": {
            name: growth(found[name])
            for name in MEASURED
            if len(found[name]) > 1 and all(found[name].values())
        },
        "goals": goals(found, times, rivals, spread),
    }


def goals(
    found: Mapping[str, Any], times: Mapping[str, Any], rivals: Mapping[str, Any], spread: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What is asked; a figure that is missing is not met."""
    get, widest = common.dig, "{} {}".format(*max(FULL.counts, key=entries))
    of_ties = get(found, "rivals", "mergekit ties", "seconds")
    above = [
        row["above"]
        for one in found["entrywise"].values()
        for row in sampled(one)
        if "{} {}".format(*row["shape"]) == widest
    ]
    errors = (get(found, "accuracy", name, "most") for name in ("average", SCRIPTS[1]))
    small = (get(found, "imports", name, "median") for name in ("merge", "import torch"))
    asked = [
        common.goal("default: times the floor", get(times, "default", "floor", "median"), at_most=1.8),
        common.goal("geomerge: times the floor", get(times, "geomerge", "floor", "median"), at_most=5),
        common.goal(
            "average: times the script in float32", get(times, "average", SCRIPTS[0], "median"), at_most=1
        ),
        common.goal(
            "average of float32 files: times the error of the script in float64",
            common.ratio(*errors),
            at_most=1.1,
        ),
        common.goal("four MiniLM adapters: times `import torch`", common.ratio(*small), at_most=1.3),
        common.goal("entrywise at 14336 × 4096: MiB above the inputs", max(above, default=None), at_most=600),
    ]
    for name in ENTRYWISE:
        seconds, own = (
            get(found, "entrywise", name, "seconds"),
            get(found, "rivals", f"mergekit {name}", "seconds"),
        )
        asked += [
            common.goal(
                f"{name}: times faster than mergekit's ties", common.ratio(of_ties, seconds), at_least=5
            ),
            common.goal(f"{name}: times faster than mergekit's", common.ratio(own, seconds), at_least=1),
        ]
    for name in ("default", "geomerge"):
        mib = get(spread, name, "mib", "highest")
        asked += [
            common.goal(f"{name}: times faster than PEFT svd", get(rivals, name, "PEFT svd"), at_least=100),
            common.goal(f"{name}: times faster than KnOTS", get(rivals, name, "KnOTS"), at_least=20),
            common.goal(f"{name}: peak memory, GB", mib and mib * 2**20 / 1e9, at_most=2.5),
        ]
    return asked


def tables(result: Mapping[str, Any]) -> str:
    """The README's tables."""
    most, show = str(result["setting"]["modules"]), common.number
    rows = []
    for name, one in result["noise"].items():
        of_floor, of_script = (
            common.dig(result, "times", name, other, "median") for other in ("floor", SCRIPTS[0])
        )
        mib = show(one["mib"]["median"])
        ratios = [show(of_floor), show(of_script)]
        rows.append([name, common.span(one["seconds"]), show(one["cpu"]["median"]), mib, *ratios, "measured"])
    for name, one in {**result["entrywise"], **result["rivals"]}.items():
        how = ", ".join("{} × {}".format(*row["shape"]) for row in sampled(one))
        rows.append([name, show(one["seconds"]), "", show(one["mib"]), "", "", f"one module each of {how}"])
    compared = result["rivals_over_ours"]
    rivals = [
        [
            name,
            *(show(compared[ours][name]) for ours in compared),
            show(max((row["error"] for row in sampled(one) if "error" in row), default=None)),
        ]
        for name, one in result["rivals"].items()
    ]
    wide = [
        [
            f"{name}, " + "{} × {}".format(*row["shape"]),
            common.span(row["noise"]),
            show(row["mib"]),
            show(row["above"]),
        ]
        for name, one in result["entrywise"].items()
        for row in sampled(one)
    ]
    exact = [
        [name, show(one["median"]), show(one["most"])] for name, one in (result["accuracy"] or {}).items()
    ]
    small = [[name, common.span(one)] for name, one in (result["imports"] or {}).items()]
    names = [name for name in (*OURS, *SCRIPTS, "floor") if all(result[name].values())]
    sizes = [
        [count]
        + [
            show(statistics.median(x[key] for x in result[name][count]))
            for name in names
            for key in ("seconds", "mib")
        ]
        for count in sorted(result["floor"], key=int)
    ]
    ended = [
        [family, ", ".join(f"{count} {status}" for status, count in one["statuses"].items())]
        + [show(one["passes"][key]) for key in ("median", "most")]
        for family, one in result["ended"].items()
    ]
    head = ["", f"seconds for {most} modules", "CPU s", "peak MiB", "× floor", "× script float32", "how"]
    return "\n\n".join(
        [
            common.tables_of(
                (head, rows),
                (["", *(f"times {name}" for name in compared), "error"], rivals),
                (["one module", "seconds, with the start", "MiB", "above the inputs"], wide),
                (["average of float32 files", "relative error, median", "most"], exact),
                (["four MiniLM adapters", "seconds"], small),
                (["modules", *(f"{name}, {key}" for name in names for key in ("s", "MiB"))], sizes),
                (["family", "ended", "passes, median", "most"], ended),
            ),
            common.goals_table(result["goals"]),
        ]
    )


def picture(result: Mapping[str, Any]) -> Any:
    """Seconds of all (left), seconds and memory over the number of modules (right)."""
    figure, ((left, middle, right),) = common.canvas(1, 3, 13, 5)
    most = str(result["setting"]["modules"])
    seconds = {name: one["seconds"]["median"] for name, one in result["noise"].items()}
    guessed = {name: one["seconds"] for name, one in {**result["entrywise"], **result["rivals"]}.items()}
    bars = left.barh([*seconds, *guessed], [*seconds.values(), *guessed.values()], color="C0")
    for bar in list(bars)[len(seconds) :]:
        bar.set(hatch="//", facecolor="C1")
    left.bar_label(bars, [f"{one:.3g} s" for one in (*seconds.values(), *guessed.values())], padding=3)
    left.set(xscale="log", title=f"seconds for {most} modules (hatched: extrapolated)")
    left.margins(x=0.3)
    for axes, key, title in ((middle, "seconds", "seconds"), (right, "mib", "peak MiB")):
        for name in (*OURS, *SCRIPTS, "floor"):
            runs = {int(count): one for count, one in result[name].items() if one}
            medians = [statistics.median(run[key] for run in runs[count]) for count in sorted(runs)]
            axes.plot(sorted(runs), medians, "o-", label=name)
        axes.set(xlabel="modules", title=title, ylim=(0, None))
        axes.legend()
    return figure


def main() -> None:
    """The command, and its rivals' own processes: `--child RIVAL SAMPLE...` prints a row for each sample."""
    if sys.argv[1:2] != ["--child"]:
        text = "Six adapters of Llama-3-8B's shapes, merged file to file."
        common.execute("merge_llama", text, measure, picture, tables)
        return
    _, _, name, *roots = sys.argv
    print(json.dumps([rival(name, adapters_of(Path(root))) for root in roots]))


if __name__ == "__main__":
    main()
