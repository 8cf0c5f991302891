"""Comparing solvers: the same problems, from the same starts, to equal certificates."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from riemerge._version import __version__
from riemerge.errors import RecipeError
from riemerge.formats.files.staging import write_atomically, writing
from riemerge.formats.files.text import show
from riemerge.frechet import Problem, Solution, frechet_mean
from riemerge.frechet.solvers.table import SolverLike, as_solver
from riemerge.linalg import single_threaded
from riemerge.methods.reduction import in_order
from riemerge.progress import Listener, Progress
from riemerge.records.comparison_record import ComparedProblem, Comparison, SolverRun
from riemerge.study.kept_merges import study_folder

RUNS = "runs"
"""Folder, inside that of a comparison, of the runs that are finished, a JSON file each."""

_log = logging.getLogger(__name__)
# Length of the step off a drawn average: a small part of the distances between adapters, which are one and more.
_OFF = 0.3


class _Task(NamedTuple):
    """One run: a problem and a solver by name, and the number of the start."""

    problem: str
    solver: str
    start: int


def compare_solvers(
    problems: Mapping[str, Problem],
    solvers: Sequence[SolverLike] | Mapping[str, SolverLike],
    *,
    starts: int = 1,
    seed: int = 0,
    tol: float = 1e-6,
    max_passes: int = 1000,
    described: Sequence[ComparedProblem] = (),
    folder: str | Path | None = None,
    threads: int = 1,
    progress: Listener | None = None,
) -> Comparison:
    """Solve the same problems by several solvers to equal certificates, and measure what each spent.

    Law: every solver has the same tolerance and the same budget, whatever its own are, and no rule that stops
    it where the cost is flat; what it ends with is certified anew. All but seconds is a function of the
    problems, the solvers and the seed, whatever the threads are.

    Args:
        problems: The problems by name, of K modules each.
        solvers: Solvers as `frechet_mean` takes them, in a list or by name.
        starts: Number of starts: the solver's own, then drawn ones, which are the same for all solvers.
        seed: Random seed of the drawn starts.
        tol: Each module is solved until ‖gradient‖ <= tol · max(1, √(2 F)).
        max_passes: Budget of passes over all logarithms, of each run.
        described: What else is known of the problems, in their order: cases, names of modules, whether their
            mean is determined.  [default: each problem is a case of its own, and nothing is known]
        folder: Folder that keeps each finished run; a run that is there already is not made again, unless its
            problem, its solver or the versions of the packages have changed.  [default: nothing is kept]
        threads: Number of runs at once. Seconds are comparable where it is 1.
        progress: Called after each run.

    Raises:
        RecipeError: No problem, no solver, two of one name, or what `frechet_mean` refuses.

    Example:
        >>> from riemerge import problems
        >>> comparison = compare_solvers({"close": problems.family("close", 3, 9, 8, 2)}, ["lbfgs", "fixed_point"])
        >>> comparison.outcomes("close", "lbfgs")
        Counter({'reached': 1})
    """
    named = _name_solvers(solvers)
    if not problems or not named or starts < 1:
        raise RecipeError(f"{len(problems)} problems, {len(named)} solvers, {starts} starts: expected at least one each")
    asked = {name: replace(as_solver(given), tol=tol, cost_tol=0.0, max_passes=max_passes) for name, given in named.items()}
    tasks = [_Task(problem, solver, start) for problem in problems for solver in asked for start in range(starts)]
    hashes = {name: _hash(problem) for name, problem in problems.items()}

    def run(task: _Task) -> SolverRun:
        problem, solver = problems[task.problem], copy.deepcopy(asked[task.solver])
        solve = partial(_solve, task, problem, solver, seed)
        if folder is None:
            return solve()
        key = hashlib.sha256(repr((task, solver, seed, hashes[task.problem], _versions())).encode()).hexdigest()
        return _keep(Path(folder, RUNS, f"{key[:32]}.json"), solve)

    runs = []
    with single_threaded():
        for task, ran in zip(tasks, in_order(run, tasks, threads), strict=True):
            runs.append(ran)
            if progress is not None:
                text = f"{task.solver} on {task.problem}: {ran.passes} passes"
                progress(Progress("compare", len(runs), len(tasks), text))
    return Comparison(
        tol=tol,
        max_passes=max_passes,
        seed=seed,
        versions=_versions(),
        problems=tuple(described) or tuple(_describe(name, problems[name], runs) for name in problems),
        runs=tuple(runs),
    )


def compare_adapters(
    recipe: Recipe,
    solvers: Sequence[str],
    *,
    losses: Sequence[str] = ("square",),
    folder: str | Path | None = None,
    threads: int = 1,
    progress: Listener | None = None,
    **options: Any,
) -> Comparison:
    """Compare solvers on the modules of real adapters, under several losses.

    Law: modules of one size in their joint span are one problem. Whether a module's mean is determined is what
    `geomerge` with `starts: auto` says of it.

    Args:
        recipe: The adapters and their weights; its method is not asked.
        solvers: Texts of solvers, such as `conjugate_gradient:beta=LiuStorey`.
        losses: Texts of losses.
        folder: Folder of the comparison, which keeps each finished run.  [default: nothing is kept]
        threads: Number of runs at once. Seconds are comparable where it is 1.
        progress: Called after each run.
        options: `starts`, `seed`, `tol` and `max_passes` of `compare_solvers`.

    Raises:
        RiemergeError: What `problems.read_spans`, `geomerge` and `compare_solvers` raise.
    """
    weights, folders = recipe.weights, folders_of(recipe)
    if None in weights:
        raise RecipeError("a weight that differs between modules: a comparison takes a number for each adapter")
    sizes = read_spans(folders)
    record = merge(folders, weights, method="geomerge", starts="auto", threads=threads, progress=progress).record
    determined = {row.module: row.determined for row in record.modules}
    problems: dict[str, Problem] = {}
    described = []
    for loss, (size, spans) in itertools.product(losses, sizes.items()):
        name, case = f"polar, {loss}, {'×'.join(map(str, size))}", f"polar, {loss}"
        stack = [[(update.B, update.A) for update in span] for span in spans.values()]
        problems[name] = pose(stack, weights=weights, loss=LOSSES.make(loss))
        answers = tuple(determined[module] for module in spans)
        described.append(ComparedProblem(name=name, case=case, modules=tuple(spans), determined=answers))
    return compare_solvers(problems, solvers, described=described, folder=folder, threads=threads, progress=progress, **options)


def _name_solvers(solvers: Sequence[SolverLike] | Mapping[str, SolverLike]) -> dict[str, SolverLike]:
    """Return solvers by name: a text by itself, an object by its representation, a class by its name."""
    if isinstance(solvers, Mapping):
        return dict(solvers)
    named: dict[str, SolverLike] = {}
    for solver in solvers:
        name = solver if isinstance(solver, str) else getattr(solver, "__name__", str(solver))
        if named.setdefault(name, solver) is not solver:
            raise RecipeError(f"two solvers are called {name}: give them in a mapping, by names of their own")
    return named


def _describe(name: str, problem: Problem) -> ComparedProblem:
    """Describe a problem of which nothing more is known."""
    count = getattr(problem.manifold, "k", 1)
    return ComparedProblem(
        name=name, case=name, modules=tuple(map(str, range(count))), determined=(None,) * count
    )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("riemerge", "torch", "pymanopt", "numpy")}


# --- one run ------------------------------------------------------------------------------------------------


def _solve(task: _Task, problem: Problem, solver: Solver, seed: int) -> SolverRun:
    start = draw_start(problem, seed, task.start) if task.start else None
    solution = frechet_mean(problem, solver, start)
    bound = solver.tol * np.maximum(1.0, np.sqrt(2 * np.maximum(solution.cost, 0.0)))
    first = [
        next((step for step in solution.trace if step.gradient_norm[module] <= bound[module]), solution)
        for module in range(len(bound))
    ]
    return SolverRun(
        problem=task.problem,
        solver=task.solver,
        start=task.start,
        status=tuple(status.name for status in solution.status),
        cost=_finite(solution.cost),
        gradient_norm=_finite(solution.gradient_norm),
        bound=_finite(bound),
        horizontality=_finite(solution.horizontality),
        passes=solution.passes,
        counts=dict(getattr(solution, "counts", {})),
        seconds=solution.seconds,
        spent_passes=tuple(step.passes for step in first),
        spent_seconds=tuple(step.seconds for step in first),
        trace_passes=tuple(step.passes for step in solution.trace),
        trace_seconds=tuple(step.seconds for step in solution.trace),
        trace_cost=_finite(step.cost.sum() for step in solution.trace),
        trace_gradient=tuple(
            _finite(float(f"{x:.3g}") for x in step.gradient_norm) for step in solution.trace
        ),
    )


def draw_start(problem: Problem, seed: int, number: int) -> Point:
    """Draw a start: a cheap mean of the points under drawn weights and a step off it, in each module.

    The weights are Dirichlet(1). The step is there since that mean may lie at the cut locus of points that
    share a subspace. On a manifold that is not of this package the start is one of the points.

    Args:
        problem: The problem to start on.
        seed: Random seed.
        number: Number of the start, from 1.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    manifold, count = problem.manifold, len(problem.points)
    if not isinstance(manifold, GeodesicManifold):
        return problem.points[int(torch.randint(count, (), generator=generator))]
    points = torch.stack([point.double() for point in problem.points])
    weights = torch.empty(count, 1, dtype=torch.float64).exponential_(generator=generator)
    mean = manifold.extrinsic_mean(points, (weights / weights.sum()).to(points.device))
    noise = torch.randn(mean.shape[1:], generator=generator, dtype=torch.float64)
    step = manifold.projection(mean, noise.to(mean.device).expand_as(mean))
    return manifold.exp(mean, scale_modules(_OFF / manifold.norms(mean, step), step))


def _finite(values: Iterable[float]) -> tuple[float | None, ...]:
    """Return numbers as JSON has them: None for what is not finite."""
    return tuple(float(value) if np.isfinite(value) else None for value in values)


# --- runs that are kept -------------------------------------------------------------------------------------


def _keep(path: Path, solve: Callable[[], SolverRun]) -> SolverRun:
    """Return the run that a file holds; make it and write it where there is none that can be read."""
    with suppress(FileNotFoundError), writing(path):
        try:
            return SolverRun.model_validate_json(path.read_bytes())
        except ValueError:
            _log.warning("%s: cannot be read as a run: it is made again", show(str(path)))
    run = solve()
    write_atomically(path, run.model_dump_json().encode())
    return run


def _fingerprint(value: Any) -> str:
    """Return a text that is equal for equal values, whatever process they are in."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_fingerprint(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"({','.join(map(_fingerprint, value))})"
    if isinstance(value, Manifold):
        return f"{type(value).__qualname__} {value}"
    if hasattr(value, "__dict__"):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{name}{'' if isinstance(value, type) else _fingerprint(vars(value))}"
    return repr(value)
