"""What the pieces of a merge cost: log, exp, alignment, one pass over all logarithms, against geomstats and
against the floor of one symmetric eigendecomposition; how the pass grows; what is decomposed in a solve.

Run from the root of the repository: python -m benchmarks.primitives [--quick]
Writes benchmarks/results/primitives.json and .png; benchmarks/README.md says how to read them. CPU seconds of
one thread.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import common
from riemerge import Problem, frechet_mean
from riemerge.frechet import Evaluation, Search, TracePoint
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold, Stiefel
from riemerge.methods import find_method
from riemerge.problems import FAMILIES, family, random_orthonormal
from riemerge.solvers import LBFGS
from tests.helpers import import_geomstats, seeded

Array = NDArray[np.float64]


class Size(NamedTuple):
    """The points of each measurement; what is not varied stands in `base`."""

    logs: tuple[tuple[int, int], ...]
    batch: int
    alignments: int
    geomstats_repeats: int
    repeats: int
    ranks: tuple[int, ...]
    widths: tuple[int, ...]
    counts: tuple[int, ...]
    pass_ranks: tuple[int, ...]
    modules: tuple[int, ...]
    passes: int
    solve: tuple[int, int, int, int]  # m, n, r, modules of a family
    solved: tuple[str, ...]  # the families


FULL = Size(
    logs=((96, 16), (768, 8), (1024, 16), (4096, 16)),
    batch=48,
    alignments=8,
    geomstats_repeats=3,
    repeats=9,
    ranks=(4, 8, 16),
    widths=(1024, 4096, 14336),
    counts=(3, 6, 12, 25, 50, 100),
    pass_ranks=(4, 8, 16, 32, 64, 128),
    modules=(1, 8, 64, 500, 2000),
    passes=4,
    solve=(128, 120, 16, 3),
    solved=tuple(FAMILIES),
)
QUICK = Size(
    logs=((24, 4),),
    batch=4,
    alignments=2,
    geomstats_repeats=1,
    repeats=2,
    ranks=(2,),
    widths=(32, 64),
    counts=(2, 3),
    pass_ranks=(2, 3),
    modules=(1, 2),
    passes=2,
    solve=(20, 18, 3, 1),
    solved=("close", "independent"),
)


# --- log and exp against geomstats --------------------------------------------------------------------------


def closed_exp(u: Array, tangent: Array) -> Array:
    """Edelman, Arias, Smith 1998, eq. 2.42, by numpy's QR and scipy's expm: neither ours nor geomstats'."""
    p = u.shape[1]
    a = u.T @ tangent
    q, r = np.linalg.qr(tangent - u @ a)
    generator = np.block([[a, -r.T], [r, np.zeros((p, p))]])
    moved: Array = np.hstack([u, q]) @ scipy.linalg.expm(generator)[:, :p]
    return moved


def pairs(n: int, r: int, count: int, kind: str) -> tuple[Tensor, Tensor]:
    """Pairs of frames: `near` (a length of one apart) or `independent` (both uniform)."""
    generator = seeded(1000 * n + r)
    u, y = (torch.stack([random_orthonormal(n, r, generator) for _ in range(count)]) for _ in range(2))
    if kind == "independent":
        return u, y
    manifold = Stiefel(n, r, k=count)
    vector = manifold.projection(u, y)
    return u, manifold.exp(u, vector / manifold.norms(u, vector)[:, None, None])


def accuracy(u: Tensor, y: Tensor, tangent: Any) -> float:
    """The largest ‖exp(log) - y‖ of a batch, by `closed_exp`."""
    ends = [closed_exp(a, v) for a, v in zip(u.numpy(), np.asarray(tangent), strict=True)]
    return max(float(np.linalg.norm(end - b)) for end, b in zip(ends, y.numpy(), strict=True))


def eigh_seconds(r: int, batch: int, repeats: int) -> float:
    """CPU seconds of the floor: one symmetric eigendecomposition of size 2 r, float64, in a batch."""
    noise = torch.randn(batch, 2 * r, 2 * r, generator=seeded(r), dtype=torch.float64)
    symmetric = noise + noise.mT
    found = common.interleaved({"eigh": lambda: torch.linalg.eigh(symmetric)}, repeats)
    return found["eigh"]["median"] / batch


def measure_log(n: int, r: int, kind: str, size: Size) -> dict[str, Any]:
    """Log and exp at St(n, r): ours one by one and in a batch, geomstats', the floor; and accuracies."""
    module = import_geomstats("geomstats.geometry.stiefel")
    space = module.Stiefel(n, r, equip=False)
    space.equip_with_metric(module.StiefelCanonicalMetric)
    u, y = pairs(n, r, size.batch, kind)
    one, many = Stiefel(n, r), Stiefel(n, r, k=size.batch)
    logs = many.logarithm(u, y)
    theirs_u, theirs_y = u[0].numpy(), y[0].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it logs a warning where it does not converge; its error says so
        seconds = common.interleaved(
            {
                "geomstats": lambda: space.metric.log(theirs_y, theirs_u),
                "one": lambda: one.logarithm(u[:1], y[:1]),
                "batch": lambda: many.logarithm(u, y),
            },
            size.geomstats_repeats,
        )
        theirs = space.metric.log(theirs_y, theirs_u)
    exps = common.interleaved(
        {
            "geomstats": lambda: space.metric.exp(theirs, theirs_u),
            "one": lambda: one.exp(u[:1], logs.tangent[:1]),
            "batch": lambda: many.exp(u, logs.tangent),
        },
        size.repeats,
    )
    floor = eigh_seconds(r, size.batch, size.repeats)
    in_batch = seconds["batch"]["median"] / size.batch
    return {
        "n": n,
        "r": r,
        "pairs": kind,
        "batch": size.batch,
        "log": seconds,
        "exp": exps,
        "eigh_seconds": floor,
        "log_seconds_in_batch": in_batch,
        "times_faster": seconds["geomstats"]["median"] / seconds["one"]["median"],
        "times_faster_in_batch": seconds["geomstats"]["median"] / in_batch,
        "log_in_eighs": in_batch / floor,
        "exp_in_eighs": exps["batch"]["median"] / size.batch / floor,
        "error": accuracy(u[:1], y[:1], logs.tangent[:1]),
        "largest_error_in_batch": accuracy(u, y, logs.tangent),
        "geomstats_error": accuracy(u[:1], y[:1], theirs[None]),
        "geomstats_length_over_ours": _length(theirs_u, theirs) / float(logs.squared[0].sqrt()),
    }


def _length(u: Array, tangent: Array) -> float:
    """The canonical length of a tangent vector."""
    return float(np.sqrt((tangent**2).sum() - ((u.T @ tangent) ** 2).sum() / 2))


# --- alignment ----------------------------------------------------------------------------------------------


def measure_alignment(name: str, r: int, size: Size) -> dict[str, Any]:
    """The nearest representative of updates of a family, in the joint span of two, and the floor."""
    problem = family(name, 2, 2 * r, 2 * r, r, size.alignments)
    total, (first, second) = problem.manifold.total, problem.points
    action = Orthogonal(r)
    tasks = {"nearest": lambda: action.nearest(total, second, first)}
    found = common.interleaved(tasks, min(size.repeats, 2))["nearest"]
    floor, each = eigh_seconds(r, size.batch, size.repeats), found["median"] / size.alignments
    row = {"family": name, "r": r, "batch": size.alignments, "seconds": each, "noise": found}
    return row | {"in_eighs": each / floor}


# --- one pass -----------------------------------------------------------------------------------------------


def embedded(problem: Problem, width: int) -> Problem:
    """The same problem in wider space: frames multiplied by a random isometry, so that distances stay."""
    small = problem.manifold.total
    assert isinstance(small, FixedRank)
    wide = FixedRank(width, width, small.r, k=small.k)
    left, right = (random_orthonormal(width, rows, seeded(width)) for rows in (small.m, small.n))
    lifted = []
    for point in problem.points:
        u, core, v = small.split(point)
        lifted.append(wide.join(left @ u, core, right @ v))
    return Problem(QuotientManifold(wide, Orthogonal(small.r)), lifted)


class Pass(NamedTuple):
    """One pass over all logarithms: its CPU seconds, how many modules were in it, and whether it belongs to
    the choice of a start.
    """

    seconds: float
    modules: int
    of_start: bool


class Enough(Exception):  # noqa: N818 - not an error: the way out of a solve
    """Raised by a callback to leave a solve."""


@contextmanager
def watched(seen: Callable[[Pass], None], phases: list[str] | None = None) -> Iterator[None]:
    """Sees every pass of every solve meanwhile. The last of `phases`, if a list is given, says what is being
    done: `start`, `pass`, or `step` for all that is neither.
    """
    evaluate, begin = Search.evaluate, Search.start
    again = Search.evaluate_again
    phases = ["step"] if phases is None else phases

    def watched_pass(make: Callable[[], Evaluation], modules: int, made: Callable[[], bool]) -> Evaluation:
        of_start = "start" in phases
        phases.append("start" if of_start else "pass")
        began = time.process_time()
        try:
            found = make()
        finally:
            phases.pop()
        if made():
            seen(Pass(time.process_time() - began, modules, of_start))
        return found

    def watched_evaluate(self: Search, point: Any) -> Evaluation:
        before = self.passes
        return watched_pass(lambda: evaluate(self, point), self.k, lambda: self.passes > before)

    def watched_again(self: Search, point: Any, modules: Tensor) -> Evaluation:
        return watched_pass(lambda: again(self, point, modules), len(modules), lambda: True)

    def watched_start(self: Search, *args: Any, **kwargs: Any) -> Any:
        phases.append("start")
        try:
            return begin(self, *args, **kwargs)
        finally:
            phases.pop()

    with (
        mock.patch.object(Search, "evaluate", watched_evaluate),
        mock.patch.object(Search, "evaluate_again", watched_again),
        mock.patch.object(Search, "start", watched_start),
    ):
        yield


def solve_passes(problem: Problem, passes: int) -> dict[str, float]:
    """CPU seconds of the first passes of a solve (their median), and of all before its first iterate."""
    seen: list[float] = []
    starts: list[float] = []
    began = time.process_time()

    def on_pass(one: Pass) -> None:
        if not one.of_start:
            seen.append(one.seconds)

    def on_iterate(_: TracePoint) -> None:
        starts.append(time.process_time() - began)
        if len(seen) >= passes:
            raise Enough

    with watched(on_pass), suppress(Enough):
        frechet_mean(problem, LBFGS(tol=0.0), callback=on_iterate)
    return {"start": starts[0], "pass": statistics.median(seen[:passes])}


def measure_passes(cases: Mapping[int, Callable[[], Problem]], repeats: int, passes: int) -> dict[str, Any]:
    """The cost of a pass over cases of growing size, repeats interleaved, with the fitted exponent."""
    problems = {size: make() for size, make in cases.items()}
    found: dict[int, list[dict[str, float]]] = {size: [] for size in cases}
    for _ in range(repeats):
        for size, problem in problems.items():
            found[size].append(solve_passes(problem, passes))
    rows: list[dict[str, Any]] = [
        {
            "size": size,
            "pass": common.noise([one["pass"] for one in runs]),
            "start": common.noise([one["start"] for one in runs]),
        }
        for size, runs in found.items()
    ]
    medians = {key: [row[key]["median"] for row in rows] for key in ("pass", "start")}
    return {
        "rows": rows,
        "exponent": common.exponent(list(cases), medians["pass"]),
        "start_exponent": common.exponent(list(cases), medians["start"]),
    }


def measure_width(size: Size, count: int, r: int, k: int) -> dict[str, Any]:
    """One pass over the same six adapters in spaces of several widths."""
    span = count * r
    base = family("mix", count, span, span, r, k)
    cases = {width: lambda width=width: embedded(base, width) for width in size.widths}
    found = measure_passes(cases, size.repeats, size.passes)
    medians = [row["pass"]["median"] for row in found["rows"]]
    return {"count": count, "r": r, "modules": k, **found, "unevenness": max(medians) / min(medians) - 1}


def mix(count: int, r: int, k: int) -> Problem:
    """Adapters of the family mix; a few modules, repeated: a pass costs by how far apart the points are."""
    distinct = min(k, 8)
    few = family("mix", count, count * r, count * r, r, distinct)
    many = QuotientManifold(few.manifold.total.with_modules(k), Orthogonal(r))
    return Problem(many, [point.repeat(-(-k // distinct), 1, 1)[:k] for point in few.points])


def measure_growth(values: tuple[int, ...], size: Size, make: Callable[[int], Problem]) -> dict[str, Any]:
    """One pass over problems of growing size."""
    cases = {value: partial(make, value) for value in values}
    return measure_passes(cases, min(size.repeats, 3), size.passes)


GROWTH: dict[str, Callable[[Size], dict[str, Any]]] = {
    "adapters": lambda size: measure_growth(size.counts, size, lambda t: mix(t, 8, 1)),
    "rank": lambda size: measure_growth(size.pass_ranks, size, lambda r: mix(4, r, 1)),
    "modules": lambda size: measure_growth(size.modules, size, lambda k: mix(4, 4, k)),
}


# --- what a solve decomposes --------------------------------------------------------------------------------

KINDS = {
    "aten::_linalg_eigh": "eigh",
    "aten::_linalg_svd": "svd",
    "aten::linalg_qr": "qr",
    "aten::linalg_cholesky_ex": "cholesky",
    "aten::_linalg_solve_ex": "solve",
    "aten::linalg_lu_factor_ex": "lu",
    "aten::_linalg_det": "det",
    "aten::linalg_inv_ex": "inv",
}


class Decompositions(TorchDispatchMode):
    """Counts matrices, not calls, that torch decomposes: (phase, kind, size) to number.

    Asked of torch's dispatcher, so no way of calling one escapes. Size is the smaller side of a matrix.

    Args:
        phases: What is being done: its last entry is noted (see `watched`).
    """

    def __init__(self, phases: list[str]) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str, int]] = Counter()
        self.phases = phases

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = KINDS.get(func._schema.name)
        if kind is not None:
            *leading, rows, columns = args[0].shape
            self.counts[self.phases[-1], kind, min(rows, columns)] += math.prod(leading)
        return func(*args, **(kwargs or {}))


def count_decompositions(name: str, size: Size) -> dict[str, Any]:
    """What a solve with the defaults of the method decomposes: in its start, in its passes, in its steps (all
    else: the reduction, retractions, transports, preconditioning), and after its last iterate (certificate).
    """
    m, n, r, k = size.solve
    count, phases = 6, ["step"]
    problem = family(name, count, m, n, r, k)
    defaults = find_method("geomerge").defaults
    stops = {name: defaults[name] for name in ("tol", "cost_tol", "max_passes")}
    counter = Decompositions(phases)
    logs = {"needed": 0, "computed": 0, "passes": 0}
    settled: Counter[tuple[str, str, int]] = Counter()
    active = k

    def on_pass(one: Pass) -> None:
        if not one.of_start:
            logs["passes"] += 1
            logs["computed"] += 2 * count * one.modules
            logs["needed"] += 2 * count * active

    def on_iterate(point: TracePoint) -> None:
        nonlocal active, settled
        active, settled = point.active, counter.counts.copy()

    with watched(on_pass, phases), counter:
        solution = frechet_mean(problem, LBFGS(**stops), callback=on_iterate)
    found: dict[str, dict[str, int]] = {phase: {} for phase in ("start", "pass", "step", "certificate")}
    for (phase, kind, side), number in sorted(settled.items()):
        found[phase][f"{kind} {side}"] = number
    for (_, kind, side), number in sorted((counter.counts - settled).items()):
        key = f"{kind} {side}"
        found["certificate"][key] = found["certificate"].get(key, 0) + number
    of_log, of_newton = (found["pass"].get(f"eigh {side}", 0) for side in (2 * r, r))
    return {
        "family": name,
        "size": {"m": m, "n": n, "r": r, "modules": k, "count": count},
        "solver": defaults["solver"],
        "statuses": [status.name for status in solution.status],
        "passes": solution.passes,
        "logs": logs,
        "phases": found,
        "eigh_per_log": {
            "size 2r": of_log / logs["needed"],
            "size r": of_newton / logs["needed"],
            "both": (of_log + of_newton) / logs["needed"],
        },
        "per_log": {key: number / logs["needed"] for key, number in found["pass"].items()},
    }


# --- all ----------------------------------------------------------------------------------------------------


def measure(run: common.Run) -> dict[str, Any]:
    """Everything, on one thread, in pieces."""
    torch.set_num_threads(1)
    size = QUICK if run.quick else FULL
    machine = common.machine(1, "geomstats", "numpy", "scipy")
    wide = (3, 3, 2) if run.quick else (6, 16, 2)
    with torch.no_grad():
        logs = [
            run.piece(f"log {n} {r} {kind}", measure_log, n, r, kind, size)
            for n, r in size.logs
            for kind in ("near", "independent")
        ]
        aligned = [
            run.piece(f"alignment {name} {r}", measure_alignment, name, r, size)
            for name in ("close", "independent")
            for r in size.ranks
        ]
        grown = {
            "width": run.piece("pass width", measure_width, size, *wide),
            **{name: run.piece(f"pass {name}", grow, size) for name, grow in GROWTH.items()},
        }
        counted = [
            run.piece(f"decompositions {name}", count_decompositions, name, size) for name in size.solved
        ]
    found = {
        "machine": machine,
        "setting": size._asdict(),
        "logs": [one for one in logs if one],
        "alignment": [one for one in aligned if one],
        "growth": {name: one for name, one in grown.items() if one},
        "decompositions": [one for one in counted if one],
    }
    return found | {"goals": goals(found)}


def goals(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked of the engine here."""
    at = [one for one in found["logs"] if (one["n"], one["r"]) == (1024, 16)]
    alone, batched = (
        min((one[key] for one in at), default=None) for key in ("times_faster", "times_faster_in_batch")
    )
    eighs = {
        key: max((one["eigh_per_log"][key] for one in found["decompositions"]), default=None)
        for key in ("size 2r", "both")
    }
    worse = max((one["error"] / one["geomstats_error"] for one in at), default=None)
    return [
        common.goal(
            "pass: unevenness over width", common.dig(found, "growth", "width", "unevenness"), at_most=0.15
        ),
        common.goal("eigh(2r) per log in the loop, the worst family", eighs["size 2r"], at_most=3),
        common.goal("eigh(2r) and eigh(r), those of the cores included", eighs["both"], at_most=3),
        common.goal("a log at 1024 × 16 alone: times faster than geomstats", alone, at_least=20),
        common.goal("the same, one of a batch", batched, at_least=20),
        common.goal("the same: our error over geomstats'", worse, at_most=1),
    ]


def tables(result: Mapping[str, Any]) -> str:
    """The README's tables."""
    show = common.number

    def milli(one: Mapping[str, float]) -> str:
        return f"{show(1e3 * one['median'])} (± {one['spread'] / 2:.0%})"

    logs = []
    for x in result["logs"]:
        ours = [milli(x["log"]["one"]), show(1e3 * x["log_seconds_in_batch"])]
        faster = [show(x["times_faster"]), show(x["times_faster_in_batch"])]
        floor = [show(x["log_in_eighs"]), show(x["exp_in_eighs"])]
        errors = [show(x["error"]), show(x["geomstats_error"])]
        pair = f"{x['n']} × {x['r']}, {x['pairs']}"
        logs.append([pair, *ours, milli(x["log"]["geomstats"]), *faster, *floor, *errors])
    head = ["pairs", "log, ms", "in a batch, ms", "geomstats, ms", "times faster", "in a batch"]
    head += ["log / eigh(2r)", "exp / eigh(2r)", "error", "geomstats' error"]
    aligned = [
        [x["family"], str(x["r"]), show(1e3 * x["seconds"]), show(x["in_eighs"])] for x in result["alignment"]
    ]
    grown = []
    for name, one in result["growth"].items():
        points = ", ".join(f"{row['size']}: {show(1e3 * row['pass']['median'])}" for row in one["rows"])
        noise = max(row["pass"]["spread"] for row in one["rows"])
        grown.append([name, points, f"{noise:.0%}", show(one["exponent"]), show(one["start_exponent"])])
    counted = []
    for one in result["decompositions"]:
        others = {key: value for key, value in one["per_log"].items() if value >= 0.005}
        shown = ", ".join(f"{key}: {value:.2f}" for key, value in others.items())
        eighs = [show(one["eigh_per_log"][key]) for key in ("size 2r", "size r", "both")]
        counted.append([one["family"], str(one["passes"]), *eighs, shown])
    return "\n\n".join(
        [
            common.markdown(head, logs),
            common.markdown(["pairs", "r", "alignment, ms", "/ eigh(2r)"], aligned),
            common.markdown(["over", "ms a pass", "largest spread", "exponent", "of the start"], grown),
            common.markdown(
                ["family", "passes", "eigh(2r) per log", "eigh(r)", "both", "all decompositions per log"],
                counted,
            ),
            common.goals_table(result["goals"]),
        ]
    )


def picture(result: Mapping[str, Any]) -> Any:
    """Logs against geomstats and the floor (top left), and one pass over width, adapters, rank, modules."""
    figure, axes = common.canvas(2, 3, 14, 7.5)
    log_axes, error_axes, *rest = axes.flat
    names = [f"{x['n']}×{x['r']}\n{x['pairs'][:5]}" for x in result["logs"]]
    places = np.arange(len(names))
    series = {
        "geomstats": [x["log"]["geomstats"]["median"] for x in result["logs"]],
        "one log": [x["log"]["one"]["median"] for x in result["logs"]],
        "one of a batch": [x["log_seconds_in_batch"] for x in result["logs"]],
        "eigh(2r)": [x["eigh_seconds"] for x in result["logs"]],
    }
    for name, seconds in series.items():
        log_axes.plot(places, seconds, "o", label=name)
    log_axes.set(yscale="log", title="CPU seconds of a Stiefel log")
    errors = {"geomstats": "geomstats_error", "riemerge": "error"}
    for name, key in errors.items():
        error_axes.plot(places, [x[key] for x in result["logs"]], "o", label=name)
    error_axes.set(yscale="log", title="‖exp(log) - y‖")
    low, high = log_axes.get_ylim()
    log_axes.set_ylim(low, 10 * high)
    for one in (log_axes, error_axes):
        one.set_xticks(places, names, fontsize=7)
        one.legend(fontsize=8)
    for one, (name, grown) in zip(rest, result["growth"].items(), strict=False):
        sizes = [row["size"] for row in grown["rows"]]
        medians = [row["pass"]["median"] for row in grown["rows"]]
        low, high = (
            [abs(row["pass"][key] - row["pass"]["median"]) for row in grown["rows"]]
            for key in ("lowest", "highest")
        )
        one.errorbar(sizes, medians, yerr=[low, high], fmt="o-")
        bottom = min(medians) / (3 if name == "width" else 1.5)
        one.set(xscale="log", yscale="log", xlabel=name, ylim=(bottom, max(medians) * 3))
        one.set_title(f"CPU seconds of a pass, exponent {grown['exponent']:.2f}")
    return figure


def main() -> None:
    """The command."""
    common.execute("primitives", "What log, exp, alignment and one pass cost.", measure, picture, tables)


if __name__ == "__main__":
    common.one_thread()
    main()
