"""A GPU against the CPU: 224 Llama modules merged from memory to memory, by three rows and in two dtypes.

Run from the root of the repository where a GPU is: python -m benchmarks.gpu [--quick] [--device cuda|cpu]
Writes benchmarks/results/gpu.json and .png; benchmarks/README.md says how to read them. It takes less than eight
minutes: a part that would take longer is measured on fewer modules, and what fails is in the result with its error.
"""  # noqa: E501

from __future__ import annotations

import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import common
from benchmarks.merge_llama import DENSITY, FULL, QUICK, Shape
from riemerge.linalg import single_threaded
from riemerge.merging.machine import find_threads
from riemerge.merging.plan import values_of, weights_of
from riemerge.methods import Options, Stack, find_method, run_method
from riemerge.recipes.recipe import make_recipe
from riemerge.recipes.resolve import Resolver
from riemerge.updates import LowRankUpdate

Modules = dict[str, tuple[LowRankUpdate, ...]]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
PARAMETERS: dict[str, dict[str, Any]] = {"spectrum": {}, "ties": {"density": DENSITY}, "geomerge": {}}
# What the CPU waits for the device with, by the names that CUDA gives it.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
SOLVER = ("solver", "tol", "cost_tol", "max_passes", "starts", "seed")


class Size(NamedTuple):
    """What is measured, and for how long."""

    shapes: Mapping[str, Shape]
    layers: int
    rank: int
    adapters: int
    few: Mapping[str, int]  # layers that the CPU merges, too, by row
    passes: int  # of a solve that is profiled: a whole one has hundreds of thousands of operations
    seconds: float  # of all parts together


SIZE = Size(FULL.shapes, 32, 16, 6, {"spectrum": 4, "ties": 1, "geomerge": 4}, passes=3, seconds=420.0)
SMALL = Size(QUICK.shapes, 1, 2, 3, dict.fromkeys(PARAMETERS, 1), passes=1, seconds=60.0)


def make_modules(size: Size, device: torch.device) -> Modules:
    """Adapters of which half is common to all and half their own, made on the device; float64, seeded."""
    generator = torch.Generator(device=device).manual_seed(17)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, device=device, dtype=torch.float64)

    modules: Modules = {}
    for layer in range(size.layers):
        for part, (m, n) in size.shapes.items():
            b, a = draw(m, size.rank), draw(size.rank, n)
            modules[f"model.layers.{layer:02}.{part}"] = tuple(
                LowRankUpdate((b + draw(m, size.rank)) / m, a + draw(size.rank, n))
                for _ in range(size.adapters)
            )
    return modules


def moved(modules: Modules, device: torch.device, dtype: torch.dtype, layers: int) -> Modules:
    """The modules of the first layers, on a device, in a dtype."""
    return {
        name: tuple(LowRankUpdate(x.B.to(device, dtype), x.A.to(device, dtype)) for x in updates)
        for name, updates in modules.items()
        if int(name.split(".")[2]) < layers
    }


def merge(method: str, modules: Modules, **changed: Any) -> Iterator[tuple[str, LowRankUpdate]]:
    """The row's mean of every module as it is done, without its scale and without records."""
    row = find_method(method)
    count = len(next(iter(modules.values())))
    device = next(iter(modules.values()))[0].B.device
    named = [{"model": f"a{i}"} for i in range(count)]
    asked = {"merge_method": method, "models": named, "parameters": PARAMETERS[method]}
    resolver = Resolver(make_recipe(asked), row, list(modules))
    stack = Stack(
        names=tuple(one["model"] for one in named),
        modules=modules,
        weights=weights_of(resolver, row, range(count)),
        storage=(torch.float32,) * count,
        values=values_of(resolver, range(count)),
    )
    given = {name: row.defaults[name] for name in SOLVER if name in row.defaults}
    options = Options(**{"threads": find_threads(None, device)} | given | changed)
    with single_threaded(), torch.no_grad():
        for name, found in run_method(row, stack, options):
            update = found.update
            assert isinstance(update, LowRankUpdate)
            yield name, update


def wait(device: torch.device) -> None:
    """Wait for all that the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(method: str, modules: Modules, end: float) -> tuple[dict[str, Any], dict[str, LowRankUpdate]]:
    """Merge modules until a time of the monotonic clock; the seconds, and the results on the CPU.

    Results wait on the device until the clock is stopped; they are as small as adapters.
    """
    device = next(iter(modules.values()))[0].B.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    wait(device)
    began, results = time.perf_counter(), {}
    for name, update in merge(method, modules):
        results[name] = update
        if time.monotonic() > end:
            break
    wait(device)
    row = {"seconds": time.perf_counter() - began, "modules": len(results), "asked": len(modules)}
    if device.type == "cuda":
        row["mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    cpu = torch.device("cpu")
    return row, {
        name: LowRankUpdate(x.B.to(cpu, torch.float64), x.A.to(cpu, torch.float64), x.scale)
        for name, x in results.items()
    }


def counted(method: str, modules: Modules, passes: int) -> dict[str, Any]:
    """Operations, kernels, synchronisations and downloads of a merge, as torch's profiler sees them."""
    device = next(iter(modules.values()))[0].B.device
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
    few = {"max_passes": passes} if method == "geomerge" else {}
    few["threads"] = 1  # it sees no other
    wait(device)
    with profile(activities=activities) as profiler:
        for _ in merge(method, modules, **few):
            pass
        wait(device)
    found = {"modules": len(modules), "operations": 0, "kernels": 0, "synchronisations": -1, "downloads": 0}
    for one in profiler.key_averages():
        on_device = one.device_type == DeviceType.CUDA
        copies = one.key.startswith(("Memcpy", "Memset"))
        found["operations"] += one.count * one.key.startswith("aten::")
        found["kernels"] += one.count * (on_device and not copies)
        found["downloads"] += one.count * (on_device and "DtoH" in one.key)
        found["synchronisations"] += one.count * (one.key in WAITS)
    # One wait, at the end, is this function's own; on the CPU nothing waits.
    found["synchronisations"] = max(found["synchronisations"], 0)
    return found


def measure_part(
    method: str,
    dtype: str,
    every: Modules,
    size: Size,
    ends: tuple[float, float],
    note: Callable[[dict[str, Any]], None],
) -> None:
    """One row in one dtype: a few modules on both, what is counted, then all modules if there is time.

    Args:
        method: The row.
        dtype: The dtype of the factors.
        every: All modules on the device, in float64.
        size: What is measured.
        ends: When to stop on the device, and on the CPU, by the monotonic clock.
        note: Called with each figure once it is known.
    """
    device, layers = next(iter(every.values()))[0].B.device, size.few[method]
    end, last = ends
    few = moved(every, device, DTYPES[dtype], layers)
    for _ in merge(method, moved(every, device, DTYPES[dtype], 1)):
        pass  # first calls load kernels, and allocate
    row, theirs = timed(method, few, end)
    note({"device": row})
    note({"counted": counted(method, few, size.passes)})
    if row["seconds"] / row["modules"] * len(every) < end - time.monotonic() or layers == size.layers:
        whole, _ = timed(method, moved(every, device, DTYPES[dtype], size.layers), end)
        note({"whole": whole})
    row, ours = timed(method, moved(few, torch.device("cpu"), DTYPES[dtype], layers), last)
    note({"cpu": row})
    apart = [ours[name].distance(theirs[name]) / ours[name].norm() for name in ours if name in theirs]
    note({"apart": {"median": statistics.median(apart), "most": max(apart)}})


def measure(run: common.Run) -> dict[str, Any]:
    """Every row in every dtype; each part has an equal share of the time that is left."""
    size, device = SMALL if run.quick else SIZE, torch.device(run.device)
    on_gpu = device.type == "cuda"
    found: dict[str, Any] = {
        "machine": common.machine(os.cpu_count() or 1),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "setting": {**size._asdict(), "modules": size.layers * len(size.shapes)},
        "parts": {},
    }
    end, every = time.monotonic() + size.seconds, make_modules(size, device)
    names = [(method, dtype) for method in PARAMETERS for dtype in DTYPES]
    for left, (method, dtype) in zip(range(len(names), 0, -1), names, strict=True):
        part: dict[str, Any] = found["parts"].setdefault(f"{method} {dtype}", {})
        common.tell(f"{method} {dtype}")
        now = time.monotonic()
        share = max(end - now, 1.0) / left
        try:
            measure_part(method, dtype, every, size, (now + share / 2, now + share), part.update)
        except Exception:  # noqa: BLE001 - whatever stops a part, the others are measured
            part["error"] = traceback.format_exc().strip().splitlines()[-1]
            common.tell(traceback.format_exc())
        if on_gpu:
            torch.cuda.empty_cache()
        (run.folder / "gpu-so-far.json").write_text(json.dumps(found), encoding="utf-8")
    return found | {"goals": goals(found)}


def goals(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked of a device; a figure that is missing is not met."""
    get, parts = common.dig, found["parts"]
    shapes = len(set(map(tuple, found["setting"]["shapes"].values())))
    asked = []
    for method in PARAMETERS:
        apart = get(parts, f"{method} float64", "apart", "most")
        bound = 1e-8 if method != "geomerge" else 1e-2  # its tolerance: see convergence
        asked.append(common.goal(f"{method} float64: largest relative distance of dW", apart, at_most=bound))
    waits = get(parts, "spectrum float64", "counted", "synchronisations")
    return [
        *asked,
        common.goal("spectrum: synchronisations for each shape", common.ratio(waits, shapes), at_most=5),
        common.goal("parts that failed", sum("error" in one for one in parts.values()), at_most=0),
    ]


def per_module(row: Mapping[str, float] | None) -> float | None:
    """Milliseconds of one module."""
    return 1e3 * row["seconds"] / row["modules"] if row else None


def tables(result: Mapping[str, Any]) -> str:
    """The README's tables."""
    show, get, rows = common.number, common.dig, []
    for name, one in result["parts"].items():
        whole, counts = one.get("whole") or {}, one.get("counted") or {}
        device, cpu = (per_module(one.get(where)) for where in ("device", "cpu"))
        rows.append(
            [
                name,
                f"{show(whole.get('seconds'))} for {whole.get('modules', 0)}",
                *map(show, (device, cpu, common.ratio(cpu, device))),
                *(
                    str(counts.get(key, "–"))
                    for key in ("operations", "kernels", "synchronisations", "downloads")
                ),
                *map(
                    show, (get(one, "device", "mib"), get(one, "apart", "median"), get(one, "apart", "most"))
                ),
                one.get("error", ""),
            ]
        )
    head = [
        *("", "s for modules", "ms a module", "ms on the CPU", "times faster", "operations", "kernels"),
        *("synchronisations", "downloads", "MiB", "apart, median", "most", "error"),
    ]
    return "\n\n".join(
        [f"On {result['device']}.", common.markdown(head, rows), common.goals_table(result["goals"])]
    )


def picture(result: Mapping[str, Any]) -> Any:
    """Milliseconds of a module, on the device and on the CPU."""
    figure, ((axes,),) = common.canvas(1, 1, 7, 4)
    for where, marker in (("device", "o"), ("cpu", "x")):
        times = {name: per_module(one.get(where)) for name, one in result["parts"].items()}
        axes.plot([x or float("nan") for x in times.values()], list(times), marker, label=where)
    axes.set(xscale="log", title=f"milliseconds a module, {result['device']}")
    axes.legend()
    return figure


def main() -> None:
    """The command."""
    common.execute("gpu", "Rows on a GPU against the CPU.", measure, picture, tables, on_device=True)


if __name__ == "__main__":
    main()
