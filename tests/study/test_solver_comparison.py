"""Comparing solvers: equal numbers for equal problems, kept runs, and solvers that are slow or wrong."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pymanopt
import pytest
import torch
from torch import Tensor

from riemerge import Problem, frechet_mean, problems
from riemerge.errors import OutputError, RecipeError
from riemerge.losses import FunctionLoss
from riemerge.manifolds import Euclidean, MetricManifold
from riemerge.records.comparison_record import Comparison
from riemerge.solvers import LBFGS, Guest, Solver
from riemerge.study import solver_comparison
from riemerge.study.solver_comparison import PAGE, RUNS, compare_adapters, compare_solvers, write_comparison
from tests.folders import content, family, write_family
from tests.merging.test_heads import head, make
from tests.study.comparisons import made_comparison, made_run

SOLVERS = ("lbfgs", "conjugate_gradient", "fixed_point")


def small() -> dict[str, Problem]:
    return {"close": problems.family("close", 3, 9, 8, 2, modules=2)}


def facts(comparison: Comparison) -> Any:
    """All of a comparison but seconds."""
    data = comparison.model_dump()
    for run in data["runs"]:
        for name in ("spent", "needed", "trace"):
            del run[name]["seconds"]
    return data


def test_equal_problems_give_equal_numbers_on_any_number_of_threads() -> None:
    first = compare_solvers(small(), SOLVERS, starts=2)
    assert facts(compare_solvers(small(), SOLVERS, starts=2, threads=3)) == facts(first)
    assert all(first.count("close", solver) == {"reached": 4} for solver in SOLVERS)
    other = compare_solvers(small(), ["lbfgs"], starts=2, seed=1)
    assert facts(other)["runs"][0] == facts(first)["runs"][0]  # the solver's own start has no seed
    assert facts(other)["runs"][1] != facts(first)["runs"][1]


def test_all_solvers_have_the_same_tolerance_and_begin_at_the_same_starts() -> None:
    solvers = {"loose": LBFGS(tol=1e-1, cost_tol=0.5, max_passes=1), "tighter": LBFGS(tol=1e-12)}
    comparison = compare_solvers(small(), solvers, starts=2)
    loose, tight = ([run for run in comparison.runs if run.solver == name] for name in solvers)
    for first, second in zip(loose, tight, strict=True):
        assert first.trace_gradient == second.trace_gradient
    assert loose[0].trace_gradient[0] != loose[1].trace_gradient[0]


def test_a_solver_that_stops_early_is_told_from_one_that_arrives() -> None:
    early = pymanopt.optimizers.SteepestDescent(min_gradient_norm=0.05, verbosity=0)
    comparison = compare_solvers(small(), {"early": Guest(optimizer=early), "lbfgs": "lbfgs"})
    assert comparison.count("close", "early") == {"STOPPED": 2}
    assert comparison.ranking("close") == ["lbfgs", "early"]
    assert comparison.profile("close", "passes")["early"] == ([], [])


def test_a_solver_that_does_not_take_the_problem_is_no_end() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Picky(Solver):
        def run(self, watch: Any, start: Any) -> None:
            raise RecipeError("picky: no such problem")

    comparison = compare_solvers(small(), {"picky": Picky(), "lbfgs": "lbfgs"})
    assert comparison.count("close", "picky") == {"REFUSED": 2}
    with pytest.raises(RecipeError, match="picky: no such problem"):
        compare_solvers(small(), {"picky": Picky()})


def test_manifolds_of_pymanopt_are_compared_too() -> None:
    sphere = pymanopt.manifolds.Sphere(3)
    points = [np.eye(3)[0], np.eye(3)[1], np.array([0.6, 0.0, 0.8])]
    comparison = compare_solvers({"sphere": Problem(sphere, points)}, ["steepest_descent", "lbfgs"], starts=2)
    assert comparison.count("sphere", "lbfgs") == {"reached": 2}


@pytest.mark.parametrize(
    ("solvers", "message"),
    [
        ([], "0 solvers"),
        (["lbfgs", "lbfgs"], "two solvers are called lbfgs"),
        (["lbfg"], "did you mean 'lbfgs'"),
    ],
)
def test_what_cannot_be_compared_is_refused(solvers: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        compare_solvers(small(), solvers)


# --- what is kept -------------------------------------------------------------------------------------------


def count_solves(monkeypatch: pytest.MonkeyPatch, fails_at: int = sys.maxsize) -> list[str]:
    """Names of the solvers that ran; the run of that number is interrupted."""
    ran: list[str] = []

    def watched(problem: Problem, solver: Solver, start: Any) -> Any:
        if len(ran) == fails_at:
            raise KeyboardInterrupt
        ran.append(type(solver).__name__)
        return frechet_mean(problem, solver, start)

    monkeypatch.setattr(solver_comparison, "frechet_mean", watched)
    return ran


def test_an_interrupted_comparison_goes_on_and_runs_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = count_solves(monkeypatch, fails_at=2)
    with pytest.raises(KeyboardInterrupt) as fault:
        compare_solvers(small(), SOLVERS, folder=tmp_path / "out")
    assert "keeps the finished runs: the same command goes on from them" in fault.value.__notes__[0]
    assert len(ran) == 2
    again = count_solves(monkeypatch)
    comparison = compare_solvers(small(), SOLVERS, folder=tmp_path / "out")
    assert again == ["FixedPoint"]
    # Kept runs are those that were made, bit for bit, seconds included.
    assert compare_solvers(small(), SOLVERS, folder=tmp_path / "out") == comparison
    assert again == ["FixedPoint"]
    assert facts(compare_solvers(small(), SOLVERS)) == facts(comparison)


def test_another_problem_solver_or_seed_is_run_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    compare_solvers(small(), ["lbfgs"], folder=folder, starts=2)
    ran = count_solves(monkeypatch)
    compare_solvers(
        {"close": dataclasses.replace(small()["close"], weights=[2, 1, 1])}, ["lbfgs"], folder=folder
    )
    compare_solvers(small(), ["lbfgs"], folder=folder, tol=1e-5)
    compare_solvers(small(), {"lbfgs": LBFGS(memory=3)}, folder=folder)
    compare_solvers(small(), ["lbfgs"], folder=folder, starts=2, seed=1)
    # Both starts of another seed: the key of a run holds the seed, whether it is used or not.
    assert len(ran) == 5


PLANE = Euclidean(2, 1)


class Scaled:
    """The metric of the entries times a number."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.logarithm, self.geodesic = PLANE.logarithm, PLANE.geodesic

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return self.factor * (a * b).sum(dim=(-2, -1))


def test_another_metric_or_function_is_another_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [torch.eye(2)[:1, :, None].double() * x for x in (0.0, 1.0, 5.0)]
    metrics = [MetricManifold(PLANE, Scaled(x)) for x in (1.0, 2.0, 2.0)]
    losses = [lambda d, s=s: s * d.square() for s in (1.0, 3.0, 3.0)]
    posed = [Problem(metric, points, loss=FunctionLoss(losses[0])) for metric in metrics]
    posed += [Problem(PLANE, points, loss=FunctionLoss(loss)) for loss in losses]
    ran = count_solves(monkeypatch)
    for problem in posed:
        compare_solvers({"p": problem}, ["lbfgs"], folder=tmp_path / "out")
    # The last of three is the second, made again.
    assert len(ran) == 4


def test_a_run_that_cannot_be_read_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "out"
    comparison = compare_solvers(small(), ["lbfgs"], folder=folder)
    (path,) = (folder / RUNS).iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert facts(compare_solvers(small(), ["lbfgs"], folder=folder)) == facts(comparison)
    assert "cannot be read as a run: it is made again" in caplog.text
    assert json.loads(path.read_bytes())["solver"] == "lbfgs"


def test_a_folder_that_is_no_comparison_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        compare_solvers(small(), ["lbfgs"], folder=tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


# --- adapters -----------------------------------------------------------------------------------------------


def test_modules_of_adapters_are_judged_where_they_are_determined(
    tmp_path: Path,
) -> None:
    folders = write_family(tmp_path, family("close", 3))
    comparison = compare_adapters([f"{folders[0]}:2", *map(str, folders[1:])], SOLVERS)
    assert comparison.cases == ("polar, square",)
    modules = [module for problem in comparison.problems for module in problem.modules]
    assert sorted(modules) == ["layers.0.q", "layers.0.v", "layers.1.q"]
    assert all(problem.determined == ("yes",) * len(problem.modules) for problem in comparison.problems)
    assert comparison.count("polar, square", "fixed_point") == {"reached": 3}
    equal = compare_adapters([*map(str, folders)], ["lbfgs"])
    assert equal.runs[0].cost != comparison.runs[0].cost


def test_geometries_and_losses_are_crossed_and_a_closed_form_is_noted(tmp_path: Path) -> None:
    folders = [*map(str, write_family(tmp_path, family("close", 3)))]
    comparison = compare_adapters(folders, ["lbfgs"], ["sphere", "flat"], ["square", "absolute"])
    assert comparison.cases == ("sphere, square", "sphere, absolute", "flat, absolute")
    assert {row.outcome for row in comparison.outcomes} == {"reached"}
    assert {row.determined for row in comparison.outcomes} == {None}
    assert [note.partition(":")[0] for note in comparison.notes] == ["flat, square"]
    assert all(run.counts["logarithms"] > 0 for run in comparison.runs)
    with pytest.raises(RecipeError, match="flat, square: the mean of every module is a closed form"):
        compare_adapters(folders, ["lbfgs"], ["flat"])


@pytest.mark.parametrize(
    ("solvers", "message"), [(["lbfg"], "did you mean 'lbfgs'"), (["closed_form"], "has no closed_mean")]
)
def test_what_no_solver_takes_is_refused_before_the_long_determination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solvers: list[str], message: str
) -> None:
    folders = [*map(str, write_family(tmp_path, family("close", 2)))]
    monkeypatch.setattr(solver_comparison, "_ask_determined", lambda *_: pytest.fail("determined"))
    with pytest.raises(RecipeError, match=message):
        compare_adapters(folders, solvers)


def test_the_folder_of_a_comparison_is_no_adapter(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    with pytest.raises(OutputError, match="is, contains or lies inside"):
        compare_adapters([*map(str, folders)], ["lbfgs"], folder=folders[0] / "out")


def test_without_matplotlib_tables_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    note = write_comparison(made_comparison(made_run("a", [2, 4, 9])), tmp_path)
    assert "riemerge[plot]" in note
    files = content(tmp_path)
    assert set(files) == {"comparison.json", "comparison.csv", PAGE}
    assert note.split("(")[0] in files[PAGE].decode()
    assert b"<svg" not in files[PAGE]


def test_heads_are_in_no_problem(tmp_path: Path) -> None:
    models = [str(make(tmp_path / name, i, head(i + 1.0))) for i, name in enumerate("ab")]
    made = compare_adapters(models, ["lbfgs"], max_passes=2)
    assert [one.modules for one in made.problems] == [("q",)]
