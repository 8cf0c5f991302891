"""Comparing solvers: the same problems, from the same starts, to equal certificates."""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import BaseModel
from pymanopt.manifolds.manifold import Manifold

from riemerge.errors import NumericalError, OutputError, RecipeError
from riemerge.formats.files.staging import check_output, overlaps, write_atomically, writing
from riemerge.formats.files.text import show
from riemerge.frechet import Point, Problem, frechet_mean
from riemerge.frechet.loss import LOSSES
from riemerge.frechet.solvers.solver import Solver
from riemerge.frechet.solvers.catalogue import SolverLike, as_solver
from riemerge.linalg import scale_modules, single_threaded
from riemerge.manifolds import GeodesicManifold
from riemerge.merging.inputs import folders_of
from riemerge.merging.verbs import merge
from riemerge.methods.reduction import in_order
from riemerge.problems import pose, read_spans
from riemerge.progress import Listener, Progress
from riemerge.recipes.recipe import Recipe
from riemerge.records.comparison_record import ComparedProblem, Comparison, SolverRun
from riemerge.records.run_record import RunRecord
from riemerge.report.comparison_figures import draw_figures
from riemerge.report.comparison_page import comparison_page
from riemerge.report.comparison_text import comparison_csv
from riemerge.study.kept_merges import study_folder

BETA_RULES = ("FletcherReeves", "PolakRibiere", "HestenesStiefel", "HagerZhang", "LiuStorey")
"""Rules of Pymanopt's conjugate gradients for the share of the last direction."""

RUNS = "runs"
"""Folder, inside that of a comparison, of the runs that are finished, a JSON file each."""

PAGE = "comparison.html"
"""The page of a comparison, in its folder."""

DEFAULT_SOLVERS = (
    "lbfgs",
    *(f"conjugate_gradient:beta={rule}" for rule in BETA_RULES),
    "steepest_descent",
    "trust_regions",
    "fixed_point",
)
"""Solvers that are compared if none are named."""

_Kept = TypeVar("_Kept", bound=BaseModel)
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
        raise RecipeError(
            f"{len(problems)} problems, {len(named)} solvers, {starts} starts: expected at least one each"
        )
    asked = {
        name: replace(as_solver(given), tol=tol, cost_tol=0.0, max_passes=max_passes)
        for name, given in named.items()
    }
    tasks = [
        _Task(problem, solver, start) for problem in problems for solver in asked for start in range(starts)
    ]
    hashes = {name: _fingerprint(problem) for name, problem in problems.items()}

    def run(task: _Task) -> SolverRun:
        solver = copy.deepcopy(asked[task.solver])  # an optimizer holds the state of its run
        key = _hash(task, _fingerprint(solver), seed, hashes[task.problem])
        return _keep(folder, key, SolverRun, partial(_solve, task, problems[task.problem], solver, seed))

    runs = []
    with _runs_folder(folder), single_threaded():
        for task, ran in zip(tasks, in_order(run, tasks, threads), strict=True):
            runs.append(ran)
            if progress is not None:
                text = f"{task.solver} on {task.problem}: {ran.passes} passes"
                progress(Progress("compare", len(runs), len(tasks), text))
    RecipeError.refuse({ran.refused for ran in runs} if all(ran.refused for ran in runs) else ())
    return Comparison(
        tol=tol,
        max_passes=max_passes,
        seed=seed,
        versions=_versions(),
        problems=tuple(described) or tuple(_describe(*item) for item in problems.items()),
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
    numbers = [weight for weight in weights if weight is not None]
    if len(numbers) < len(weights):
        raise RecipeError("a weight differs between modules: a comparison takes a number for each adapter")
    if folder is not None:
        OutputError.refuse(overlaps(folder, folders))
    sizes = read_spans(folders)

    def ask() -> RunRecord:
        options: dict[str, Any] = {"method": "geomerge", "starts": "auto"}
        return merge(folders, numbers, threads=threads, progress=progress, **options).record

    with _runs_folder(folder):
        record = _keep(folder, _hash(_fingerprint([*sizes.items()]), numbers), RunRecord, ask)
    determined = {row.module: row.determined for row in record.modules}
    problems: dict[str, Problem] = {}
    described = []
    for loss, (size, spans) in itertools.product(losses, sizes.items()):
        name, case = f"polar, {loss}, {'×'.join(map(str, size))}", f"polar, {loss}"
        stack = [[(update.B, update.A) for update in span] for span in spans.values()]
        problems[name] = pose(stack, weights=numbers, loss=LOSSES.make(loss))
        answers = tuple(determined[module] for module in spans)
        described.append(ComparedProblem(name=name, case=case, modules=tuple(spans), determined=answers))
    return compare_solvers(
        problems, solvers, described=described, folder=folder, threads=threads, progress=progress, **options
    )


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
    count = _count(problem)
    return ComparedProblem(
        name=name, case=name, modules=tuple(map(str, range(count))), determined=(None,) * count
    )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("riemerge", "torch", "pymanopt", "numpy")}


# --- one run ------------------------------------------------------------------------------------------------


def _solve(task: _Task, problem: Problem, solver: Solver, seed: int) -> SolverRun:
    try:
        start = draw_start(problem, seed, task.start) if task.start else None
        solution = frechet_mean(problem, solver, start)
    except (RecipeError, NumericalError) as fault:
        return _refuse(task, _count(problem), str(fault))
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


def _refuse(task: _Task, count: int, why: str) -> SolverRun:
    """Return the run of a solver that does not take its problem, of K modules."""
    none = (None,) * count
    return SolverRun(
        problem=task.problem,
        solver=task.solver,
        start=task.start,
        status=("REFUSED",) * count,
        cost=none,
        gradient_norm=none,
        bound=none,
        horizontality=none,
        passes=0,
        counts={},
        seconds=0.0,
        spent_passes=(0,) * count,
        spent_seconds=(0.0,) * count,
        trace_passes=(),
        trace_seconds=(),
        trace_cost=(),
        trace_gradient=(),
        refused=why,
    )


def _count(problem: Problem) -> int:
    """Return the number K of modules of a problem: 1 on a manifold that is not of this package."""
    return getattr(problem.manifold, "k", 1)


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


@contextmanager
def _runs_folder(folder: str | Path | None) -> Iterator[None]:
    """Make the folder of kept runs, where one is asked for; a fault says what is in it."""
    if folder is None:
        yield
        return
    root = Path(folder).absolute()
    if not (root / RUNS).is_dir():
        check_output(root, [])

    def describe(names: list[str]) -> str:
        return f"keeps {len(list((root / RUNS).iterdir()))} finished runs"

    with study_folder(root, [RUNS], describe, "them"):
        with writing(root):
            (root / RUNS).mkdir(exist_ok=True)
        yield


def _keep(folder: str | Path | None, key: str, kind: type[_Kept], make: Callable[[], _Kept]) -> _Kept:
    """Return what the folder keeps under a key; make it and write it where there is none that can be read."""
    if folder is None:
        return make()
    path = Path(folder, RUNS, f"{key}.json")
    with writing(path), suppress(FileNotFoundError):
        try:
            return kind.model_validate_json(path.read_bytes())
        except ValueError:
            _log.warning("%s: cannot be read as a run: it is made again", show(str(path)))
    made = make()
    write_atomically(path, made.model_dump_json().encode())
    return made


def _hash(*parts: object) -> str:
    """Return a name for what is computed from these parts by the versions of the packages at hand."""
    return hashlib.sha256(repr((parts, _versions())).encode()).hexdigest()[:32]


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


# --- what is written ----------------------------------------------------------------------------------------


def write_comparison(comparison: Comparison, folder: str | Path) -> list[str]:
    """Write the page, the tables and the pictures of a comparison into its folder, each file whole.

    Args:
        comparison: The comparison.
        folder: The folder, which is there.

    Returns:
        Remarks: that there are no pictures, where matplotlib is not installed.
    """
    note, pictures = "", {}
    try:
        pictures = draw_figures(comparison)
    except ImportError:
        note = "No pictures: matplotlib is not installed (pip install 'riemerge[plot]')."
    drawn = {Path(name).stem: content.decode() for name, content in pictures.items() if name.endswith(".svg")}
    files = {
        "comparison.json": comparison.model_dump_json(indent=1).encode(),
        "comparison.csv": comparison_csv(comparison).encode(),
        PAGE: comparison_page(comparison, drawn, note).encode(),
    }
    for name, content in {**files, **pictures}.items():
        write_atomically(Path(folder, name), content)
    return [note] if note else []
