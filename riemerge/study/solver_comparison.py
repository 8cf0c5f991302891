"""Comparing solvers: the same problems, from the same starts, to equal certificates."""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from riemerge.errors import NumericalError, OutputError, RecipeError
from riemerge.formats.files.staging import check_output, overlaps, write_atomically, writing
from riemerge.formats.files.text import show
from riemerge.frechet import Problem, frechet_mean
from riemerge.frechet.solvers.catalogue import SolverLike, as_solver
from riemerge.frechet.solvers.solver import Solver
from riemerge.frechet.starts import draw_start
from riemerge.linalg import single_threaded
from riemerge.merging.inputs import folders_of
from riemerge.merging.plan import plan
from riemerge.merging.run import run
from riemerge.methods.fingerprint import fingerprint
from riemerge.methods.threads import in_order
from riemerge.problems import pose
from riemerge.progress import Listener, Progress
from riemerge.recipes.recipe import read_recipe
from riemerge.records.comparison_record import MEASURES, ComparedProblem, Comparison, SolverRun
from riemerge.records.run_record import RunRecord
from riemerge.report.comparison_figures import draw_figures
from riemerge.report.comparison_page import comparison_page
from riemerge.report.comparison_text import comparison_csv
from riemerge.study.kept_merges import study_folder

BETA_RULES = ("FletcherReeves", "PolakRibiere", "HestenesStiefel", "HagerZhang", "LiuStorey")
"""Rules of Pymanopt's conjugate gradients for the share of the last direction."""

CONJUGATE = tuple(f"conjugate_gradient:beta={rule}" for rule in BETA_RULES)
_MODELS = ("finite_difference", "gauss_newton", "identity")
_HESSIANS = tuple(f"trust_regions:hessian={name}" for name in _MODELS)
DEFAULT_SOLVERS = ("lbfgs", *CONJUGATE, "steepest_descent", *_HESSIANS, "fixed_point")
"""Solvers that are compared if none are named."""

RUNS = "runs"
"""Folder, inside that of a comparison, of what is finished, a JSON file each."""

PAGE = "comparison.html"
"""The page of a comparison, in its folder."""

_Kept = TypeVar("_Kept", bound=BaseModel)
_log = logging.getLogger(__name__)


# No adapter is written.
_NO_HEADS = {"heads": "drop"}


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
        described: What else is known of the problems: cases, names of modules, whether their mean is
            determined.  [default: each problem is a case of its own, and nothing is known]
        folder: Folder that keeps each finished run; a run that is there already is not made again, unless its
            problem, its solver or the versions of the packages have changed.  [default: nothing is kept]
        threads: Number of runs at once. Seconds are comparable where it is 1.
        progress: Called after each run.

    Raises:
        RecipeError: No problem, no solver, two of one name, or problems that every solver refuses.

    Example:
        >>> from riemerge import problems
        >>> made = compare_solvers({"close": problems.family("close", 3, 9, 8, 2)}, ["lbfgs", "fixed_point"])
        >>> made.outcomes("close", "lbfgs")
        Counter({'reached': 1})
    """
    if not problems or not solvers or starts < 1:
        found = f"{len(problems)} problems, {len(solvers)} solvers, {starts} starts"
        raise RecipeError(f"{found}: expected at least one of each")
    limits: dict[str, Any] = {"tol": tol, "cost_tol": 0.0, "max_passes": max_passes}
    asked = {name: replace(as_solver(given), **limits) for name, given in _name_solvers(solvers).items()}
    texts = {name: fingerprint(problem) for name, problem in problems.items()}
    tasks = [*itertools.product(problems, asked, range(starts))]

    def solve(task: tuple[str, str, int]) -> SolverRun:
        solver = copy.deepcopy(asked[task[1]])  # an optimizer holds the state of its run
        key = _hash(task, fingerprint(solver), seed, texts[task[0]])
        return _keep(folder, key, SolverRun, partial(_solve, *task, problems[task[0]], solver, seed))

    runs: list[SolverRun] = []
    with _runs_folder(folder), single_threaded():
        for made in in_order(solve, tasks, threads):
            runs.append(made)
            if progress is not None:
                text = f"{made.solver} on {made.problem}: {made.spent['passes']:.0f} passes"
                progress(Progress("compare", len(runs), len(tasks), text))
    if all(made.refused for made in runs):
        raise RecipeError({made.refused for made in runs})
    return Comparison(
        tol=tol,
        max_passes=max_passes,
        seed=seed,
        versions=_versions(),
        problems=tuple(described) or tuple(_describe(*item) for item in problems.items()),
        runs=tuple(runs),
    )


def compare_adapters(
    sources: Sequence[str],
    solvers: Sequence[str],
    geometries: Sequence[str] = ("polar",),
    losses: Sequence[str] = ("square",),
    **options: Any,
) -> Comparison:
    """Compare solvers on the modules of real adapters, in several geometries and under several losses.

    Law: the problems are those that a merge solves; heads saved beside the factors are in none. Whether the
    adapters determine the mean of a module is what geometry `polar` with `starts: auto` says; it is not known
    where that geometry is not compared.

    Args:
        sources: A recipe, whose edits and weights count, or adapters as `folder[:weight]`.
        solvers: Texts of solvers, such as `conjugate_gradient:beta=LiuStorey`.
        geometries: Texts of geometries.
        losses: Texts of losses.
        options: What `compare_solvers` takes beside problems, solvers and their description.

    Raises:
        RiemergeError: What `problems.pose` and `compare_solvers` raise.
    """
    asked = {name: as_solver(given) for name, given in _name_solvers(solvers).items()}
    recipes = {
        pair: read_recipe(sources, {"geometry": pair[0], "loss": pair[1], **_NO_HEADS})
        for pair in itertools.product(geometries, losses)
    }
    problems: dict[str, Problem] = {}
    described: list[ComparedProblem] = []
    notes: list[str] = []
    polar: list[Problem] = []
    folder, progress = options.get("folder"), options.get("progress")
    for (geometry, loss), recipe in recipes.items():
        if folder is not None:
            OutputError.refuse(overlaps(folder, folders_of(recipe)))
        posed = pose(recipe)
        if not posed:
            notes.append(f"{geometry}, {loss}: the mean of every module is a closed form: nothing to solve.")
        if geometry == "polar":
            polar = polar or [problem for _, problem in posed]
        for place, (modules, problem) in enumerate(posed, 1):
            case = f"{geometry}, {loss}"
            name = f"{case}, {place} of {len(posed)}"
            problems[name] = problem
            unknown = (None,) * len(modules)
            described.append(ComparedProblem(name=name, case=case, modules=modules, determined=unknown))
    if not problems:
        raise RecipeError(notes)
    made = compare_solvers(problems, asked, described=described, **options)
    # Last, since it takes long: what every solver refuses is refused before it.
    determined = _ask_determined(sources, polar, folder, progress) if polar else {}
    answered = tuple(
        one.model_copy(update={"determined": tuple(map(determined.get, one.modules))})
        for one in made.problems
    )
    return made.model_copy(update={"problems": answered, "notes": tuple(notes)})


def _ask_determined(
    sources: Sequence[str],
    problems: Sequence[Problem],
    folder: str | Path | None,
    progress: Listener | None,
) -> Mapping[str, str | None]:
    """Return whether the adapters determine the mean of each module, by overlap or by several starts."""
    planned = plan(read_recipe(sources, {"geometry": "polar", "starts": "auto", **_NO_HEADS}), threads=1)
    key = _hash(fingerprint([(problem.points, problem.weights) for problem in problems]))
    with _runs_folder(folder):
        record = _keep(folder, key, RunRecord, lambda: run(planned, lambda *_: None, progress))
    return {row.module: row.determined for row in record.modules}


def write_comparison(comparison: Comparison, folder: str | Path) -> str:
    """Write the page, the tables and the pictures of a comparison into its folder, each file whole.

    Args:
        comparison: The comparison.
        folder: The folder, which is there.

    Returns:
        What is missing, and why; empty where nothing is.
    """
    note, pictures = "", {}
    try:
        pictures = draw_figures(comparison)
    except ImportError:
        note = "No pictures: matplotlib is not installed (pip install 'riemerge[plot]')."
    files = {
        "comparison.json": comparison.model_dump_json(indent=1),
        "comparison.csv": comparison_csv(comparison),
        PAGE: comparison_page(comparison, pictures, note),
    }
    for name, content in {**{name: text.encode() for name, text in files.items()}, **pictures}.items():
        write_atomically(Path(folder, name), content)
    return note


def _name_solvers(solvers: Sequence[SolverLike] | Mapping[str, SolverLike]) -> Mapping[str, SolverLike]:
    """Return solvers by name: a text by itself, a class by its name, an object as it prints."""
    if isinstance(solvers, Mapping):
        return solvers
    names = [
        solver if isinstance(solver, str) else getattr(solver, "__name__", str(solver)) for solver in solvers
    ]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise RecipeError(f"two solvers are called {min(repeated)}: give them by names of their own")
    return dict(zip(names, solvers, strict=True))


def _describe(name: str, problem: Problem) -> ComparedProblem:
    """Describe a problem of which nothing more is known."""
    modules = tuple(map(str, range(_count(problem))))
    return ComparedProblem(name=name, case=name, modules=modules, determined=(None,) * len(modules))


def _count(problem: Problem) -> int:
    """Return the number K of modules of a problem: 1 on a manifold that is not of this package."""
    return getattr(problem.manifold, "k", 1)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("riemerge", "torch", "pymanopt", "numpy")}


# --- one run ------------------------------------------------------------------------------------------------


def _solve(name: str, text: str, start: int, problem: Problem, solver: Solver, seed: int) -> SolverRun:
    """Run a solver on a problem from a start; a problem that it refuses is an outcome, too."""
    k = _count(problem)
    try:
        solution = frechet_mean(problem, solver, draw_start(problem, seed, start))
    except (RecipeError, NumericalError) as fault:
        none, nothing = dict.fromkeys(("cost", "gradient_norm", "horizontality"), (np.inf,) * k), (0.0,) * k
        facts = {"spent": dict.fromkeys(MEASURES, 0.0), "needed": dict.fromkeys(MEASURES, nothing)}
        facts |= {"status": ("REFUSED",) * k, "refused": str(fault), **none}
    else:
        bounds = solver.tol * np.maximum(1.0, np.sqrt(2 * np.abs(solution.cost)))
        within = [
            next((step for step in solution.trace if step.gradient_norm[module] <= bound), solution)
            for module, bound in enumerate(bounds)
        ]
        facts = {
            "status": [status.name for status in solution.status],
            **{name: getattr(solution, name).tolist() for name in ("cost", "gradient_norm", "horizontality")},
            "spent": {name: getattr(solution, name) for name in MEASURES},
            "needed": {name: [getattr(step, name) for step in within] for name in MEASURES},
            "counts": dict(solution.counts),
            "trace": {name: [getattr(step, name) for step in solution.trace] for name in MEASURES},
            "trace_gradient": [[float(f"{x:.3g}") for x in step.gradient_norm] for step in solution.trace],
        }
    return SolverRun.model_validate({"problem": name, "solver": text, "start": start, **facts})


# --- what is kept -------------------------------------------------------------------------------------------


@contextmanager
def _runs_folder(folder: str | Path | None) -> Iterator[None]:
    """Make the folder of what is kept, where one is asked for; a fault says that it is there."""
    if folder is None:
        yield
        return
    root = Path(folder).absolute()
    if not (root / RUNS).is_dir():
        check_output(root, [])
    with study_folder(root, [RUNS], lambda _: "keeps the finished runs", "them"):
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
