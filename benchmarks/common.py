"""What the benchmarks share: the machine in words, noise, fits, processes watched from outside, results on
disk.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, final
from unittest import mock

import torch

import riemerge

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RIEMERGE = "riemerge.cli"
"""Module whose `main` is the command line."""

# What the thread pools of torch, of numpy's BLAS and of MKL read when they are loaded.
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


# --- the machine and its noise ------------------------------------------------------------------------------


def one_thread() -> None:
    """Start this process again with one thread in every pool, unless it runs so already."""
    if any(os.environ.get(pool) != "1" for pool in POOLS):
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, os.environ | dict.fromkeys(POOLS, "1"))


def machine(threads: int, *packages: str) -> dict[str, Any]:
    """The machine and the versions, for a result; `save` adds the load that it has by then."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "threads": threads,
        "load": {"before": os.getloadavg()[0]},
        "versions": {
            "python": platform.python_version(),
            "riemerge": riemerge.__version__,
            "torch": torch.__version__,
            **{package: version(package) for package in packages},
        },
    }


def noise(values: Sequence[float]) -> dict[str, float]:
    """Median of repeats, and how far they lie apart: spread is (highest - lowest) / median."""
    middle, low, high = statistics.median(values), min(values), max(values)
    spread = (high - low) / middle if middle else 0.0
    return {"median": middle, "lowest": low, "highest": high, "spread": spread, "repeats": len(values)}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size, by least squares on the larger half of the sizes (two at least).

    The smaller half is mostly the price of a call.
    """
    pairs = sorted(zip(sizes, costs, strict=True))[-max(2, (len(sizes) + 1) // 2) :]
    x, y = ([math.log(one[i]) for one in pairs] for i in (0, 1))
    return statistics.linear_regression(x, y).slope


def interleaved(tasks: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """CPU seconds of each task, its repeats in turn with those of the others: a busy minute hits all alike.

    One unmeasured call of each comes first, since first calls allocate and load.
    """
    for task in tasks.values():
        task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            began = time.process_time()
            task()
            seconds[name].append(time.process_time() - began)
    return {name: noise(found) for name, found in seconds.items()}


# --- processes ----------------------------------------------------------------------------------------------


class Watched(NamedTuple):
    """A process that has ended: wall seconds, CPU seconds (user and system), largest resident memory, what
    it printed.
    """

    seconds: float
    cpu: float
    mib: float
    printed: str

    def row(self) -> dict[str, float]:
        """The figures, without what was printed."""
        return {"seconds": self.seconds, "cpu": self.cpu, "mib": self.mib}


def watch(command: Sequence[str], threads: int | None = None) -> Watched:
    """Run a command from the repository's root and measure it from outside.

    Memory is VmHWM of the largest of its processes, asked for every 20 ms (Linux). The machine's own number
    of threads is used unless one is given.
    """
    environment = {name: value for name, value in os.environ.items() if name not in POOLS}
    if threads is not None:
        environment |= dict.fromkeys(POOLS, str(threads))
    before, highest = _cpu(), 0
    # Files, not pipes: a pipe that nobody empties stops the process that is being measured.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=ROOT) as child:
            while child.poll() is None:
                highest = max(highest, peak(str(child.pid)))
                time.sleep(0.02)
            seconds = time.perf_counter() - began
        out.seek(0), err.seek(0)
        if child.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{err.read()[-4000:]}")
        return Watched(seconds, _cpu() - before, highest / 1024, out.read())


def launch(module: str, *arguments: object, apart: bool = True, threads: int | None = None) -> Watched:
    """Call `main` of a module as its command does, with these arguments, and measure it.

    Args:
        module: The module's name, such as `riemerge.cli`.
        arguments: Words of its command line.
        apart: Whether to use a process of its own, which is watched from outside. What a quick run measures
            means nothing: it calls `main` in this process, and saves the import of torch.
        threads: See `watch`.
    """
    words = [*map(str, arguments)]
    if apart:
        return watch([sys.executable, "-c", f"from {module} import main; main()", *words], threads)
    main = import_module(module).main
    wall, cpu = time.perf_counter(), time.process_time()
    with (
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as said,
        mock.patch.object(sys, "argv", [module, *words]),
    ):
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(
                    f"{module} {' '.join(words)} ended with {end.code}: {said.getvalue()}"
                ) from None
    return Watched(
        time.perf_counter() - wall,
        time.process_time() - cpu,
        peak(str(os.getpid())) / 1024,
        out.getvalue(),
    )


def import_torch(*, apart: bool) -> Watched:
    """Measure the import of torch in a process of its own; of nothing in a quick run."""
    return watch([sys.executable, "-c", "import torch" if apart else ""])


def peak(pid: str) -> int:
    """The largest resident memory, in KiB, that this process or one of its children has had (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:  # it has just ended
        return 0
    return max([0, *(int(x.split()[1]) for x in status if x.startswith("VmHWM")), *map(peak, children)])


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# --- the command and its result -----------------------------------------------------------------------------


@final
class Run:
    """One run of a benchmark, in pieces that are kept: a run that was broken off goes on where it was.

    Args:
        quick: Whether to measure a tiny size.
        folder: Folder of the pieces.
        parts: What the names of pieces start with that are measured; the others are taken as they are kept,
            and left out where they are not. Empty stands for all.
        minutes: Begin no piece later than so many minutes after the start.
        device: Where a benchmark computes that can do so elsewhere than on the CPU.
    """

    def __init__(
        self,
        quick: bool,
        folder: Path,
        parts: Sequence[str] = (),
        minutes: float = math.inf,
        device: str = "cpu",
    ) -> None:
        self.quick, self.folder, self.device = quick, folder, device
        self._parts, self._end = tuple(parts), time.monotonic() + 60 * minutes
        self.loads: list[float] = []
        (folder / "pieces").mkdir(parents=True, exist_ok=True)

    def piece(self, name: str, make: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a piece found, measured unless it is kept; None where it is left out."""
        path = self.folder / "pieces" / f"{name.replace('/', '-')}.json"
        if not path.exists():
            if time.monotonic() > self._end or (self._parts and not name.startswith(self._parts)):
                return None
            tell(name)
            found = {"found": make(*arguments), "load": os.getloadavg()[0]}
            path.with_suffix(".part").write_text(json.dumps(found), encoding="utf-8")
            path.with_suffix(".part").replace(path)
        kept = json.loads(path.read_text(encoding="utf-8"))
        self.loads.append(kept["load"])
        return kept["found"]

    def files(self, name: str, write: Callable[[Path], object]) -> Path:
        """Return a folder of files to measure on, written unless it is there; benchmarks share them."""
        path = self.folder.parent / "files" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            begun = path.with_name(f"{path.name}.part")
            shutil.rmtree(begun, ignore_errors=True)
            write(begun)
            begun.rename(path)
        return path


def options(
    name: str, text: str, results: Path = RESULTS, *, in_pieces: bool = False, on_device: bool = False
) -> argparse.Namespace:
    """The options that every benchmark has; the result goes into `results` if nothing else is asked for.

    Benchmarks that are measured in pieces have those of `Run`, too.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=text)
    parser.add_argument(
        "--quick", action="store_true", help="Run a tiny size, in seconds: shows that the benchmark works."
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"Folder of the result [default: {results.relative_to(ROOT)}; a temporary one with --quick].",
    )
    parser.add_argument(
        "--table", action="store_true", help="Measure nothing; print the tables of the result."
    )
    if in_pieces:
        add = parser.add_argument
        add("--work", type=Path, help="Folder that keeps finished pieces: a run that was broken off goes on.")
        add(
            "--parts", default="", help="Comma-separated starts of names of pieces to measure [default: all]."
        )
        add("--minutes", type=float, default=math.inf, help="Begin no piece later than that [default: none].")
    parser.set_defaults(device="cpu")
    if on_device:
        parser.add_argument("--device", default="cuda", help="Where to compute [default: %(default)s].")
    asked = parser.parse_args()
    if asked.out is None:
        asked.out = Path(tempfile.mkdtemp(prefix=f"{name}-")) if asked.quick and not asked.table else results
    return asked


def execute(
    name: str,
    text: str,
    measure: Callable[[Run], dict[str, Any]],
    picture: Callable[[Mapping[str, Any]], Any],
    tables: Callable[[Mapping[str, Any]], str],
    *,
    on_device: bool = False,
) -> None:
    """The body of a benchmark: measure, write NAME.json and NAME.png, and print the tables for the README.

    The tables of a full run are put between their marks in the README, where its result is put among the
    committed ones.

    Args:
        name: Name of the benchmark and its files.
        text: What the benchmark asks, for --help.
        measure: Takes the run, returns the result; its key `machine` is `machine(...)`. Keys that begin with
            _ are for the picture alone.
        picture: Makes a figure of matplotlib from a result.
        tables: Makes Markdown from a result.
        on_device: Whether it computes on a GPU, unless it is told otherwise.
    """
    asked = options(name, text, in_pieces=True, on_device=on_device)
    path = asked.out / f"{name}.json"
    if not asked.table:
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
            parts = [part for part in asked.parts.split(",") if part]
            run = Run(asked.quick, (asked.work or Path(folder)) / name, parts, asked.minutes, asked.device)
            result = measure(run)
        result["machine"]["load"]["after"] = os.getloadavg()[0]
        if run.loads:
            result["machine"]["load"]["of pieces"] = noise(run.loads)
        result = {"date": datetime.now(UTC).date().isoformat(), "quick": asked.quick, **result}
        asked.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_rounded(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        picture(result).savefig(path.with_suffix(".png"), dpi=(110, 30)[asked.quick])
        tell(f"wrote {path} and {path.with_suffix('.png').name}")
    shown = tables(json.loads(path.read_text(encoding="utf-8")))
    print(shown)
    if path == RESULTS / f"{name}.json":
        page = ROOT / "benchmarks" / "README.md"
        page.write_text(paste(page.read_text(encoding="utf-8"), name, shown), encoding="utf-8")


def paste(page: str, name: str, text: str) -> str:
    """Return a page with this text between the marks of this name."""
    marks = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    return re.sub(rf"{marks[0]}.*?{marks[1]}", lambda _: text.join(marks), page, flags=re.DOTALL)


def tell(text: str) -> None:
    """Say on stderr how far a benchmark is."""
    print(text, file=sys.stderr, flush=True)


def goal(
    text: str, found: float | None, *, at_least: float = -math.inf, at_most: float = math.inf
) -> dict[str, Any]:
    """One thing that is asked of a benchmark, and whether it was found; None found is not met."""
    bound = at_most if at_least == -math.inf else at_least
    met = found is not None and at_least <= found <= at_most
    return {
        "goal": text,
        "found": found,
        "bound": f"{'at most' if bound == at_most else 'at least'} {bound:g}",
        "met": met,
    }


def goals_table(goals: Sequence[Mapping[str, Any]]) -> str:
    """Goals as Markdown."""
    rows = [[x["goal"], x["bound"], number(x["found"]), "yes" if x["met"] else "**no**"] for x in goals]
    return markdown(["asked", "bound", "found", "met"], rows)


def dig(value: Any, *path: str) -> Any:
    """What stands at the end of a path of keys; None where it ends early."""
    for key in path:
        value = (value or {}).get(key)
    return value


def ratio(one: float | None, other: float | None) -> float | None:
    """A quotient; None where a part of it is missing."""
    return None if one is None or other is None else one / other


def span(one: Mapping[str, float]) -> str:
    """Median, lowest and highest of a figure that was repeated."""
    return "{} ({}–{})".format(*(number(one[key]) for key in ("median", "lowest", "highest")))


def canvas(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes (an array of rows x columns), drawn without a screen."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables_of(*tables: tuple[Sequence[str], Sequence[Sequence[str]]]) -> str:
    """Those of some tables, each a head and its rows, that have rows, in Markdown."""
    return "\n\n".join(markdown(head, rows) for head, rows in tables if rows)


def number(value: float | None) -> str:
    """A figure in a table: three digits, in powers of ten where it is far from one."""
    if value is None:
        return "–"
    return f"{value:.1e}" if value and not 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"


def _rounded(value: Any) -> Any:
    """Six digits of every float, in whatever containers; without keys that begin with _."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items() if not str(name).startswith("_")}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
