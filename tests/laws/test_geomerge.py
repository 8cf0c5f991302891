"""The Fréchet mean of adapters, from folders to folders: its distances, ranks, starts and budgets."""

from __future__ import annotations

import json
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from riemerge.errors import RecipeError
from riemerge.formats.dialects import read_adapter
from riemerge.frechet import frechet_mean
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.methods import METHODS, Options, batches
from riemerge.methods.geometries.geometry import Placed
from riemerge.report.verdict import verdict
from riemerge.updates.low_rank import sum_updates
from tests.folders import SHAPES, family, merge_adapters, write_family
from tests.helpers import adapter_family, random_orthonormal, seeded
from tests.merging.merges import (
    RECORD,
    apart,
    deficient_family,
    dense,
    merged,
)


def test_the_mean_of_two_divides_their_distance_as_the_weights_do(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    record = merge_adapters(folders, [3, 1], cost_tol=0).record
    for row in record.modules:
        assert row.status == "CONVERGED"
        assert row.distances is not None
        near, far = row.distances
        assert near is not None
        assert far is not None
        # d(x, a) = w_b d(a, b): three times as far from b; the gradient norm bounds the error by 1e-8 of d.
        assert far == pytest.approx(3 * near, rel=1e-6)
        assert row.cost == pytest.approx((0.75 * near**2 + 0.25 * far**2) / 2)


def test_modules_of_different_widths_are_solved_as_if_alone(tmp_path: Path) -> None:
    shapes = {"q": (14, 12), "v": (20, 9), "o": (9, 30), "p": (14, 12)}
    adapters = family("close", 2, shapes=shapes)
    whole = merged(merge_adapters(write_family(tmp_path / "whole", adapters), cost_tol=0))
    for module in shapes:
        single = [{module: one[module]} for one in adapters]
        alone = merged(merge_adapters(write_family(tmp_path / module, single), cost_tol=0))
        assert apart({module: whole[module]}, alone) <= 1e-7  # both converge to a gradient of 1e-8


@pytest.mark.parametrize("solver", ["steepest_descent", "trust_regions", "fixed_point"])
def test_any_solver_by_name_reaches_the_same_cost(tmp_path: Path, solver: str) -> None:
    folders = write_family(tmp_path, family("close", 3))
    reference = merge_adapters(folders, cost_tol=0).record
    other = merge_adapters(folders, cost_tol=0, solver=solver).record
    assert other.recipe["parameters"]["solver"] == solver
    assert other.totals.cost == pytest.approx(reference.totals.cost, rel=1e-9)


def test_both_forms_of_the_problem_have_one_mean(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 3))
    joint, nested = (
        merge_adapters(folders, [3, 2, 1], form=form, cost_tol=0.0, tol=1e-9) for form in ("joint", "nested")
    )
    assert joint.record.totals.cost == pytest.approx(nested.record.totals.cost, rel=1e-9)
    # The gradient bound, and what a Hessian near the identity makes of it.
    assert apart(merged(joint), merged(nested)) <= 1e-7
    assert joint.record.recipe["parameters"]["form"] == "joint"


def test_rank_truncates_every_update_first(tmp_path: Path) -> None:
    adapters = family("close", 2, rank=4)
    folders = write_family(tmp_path / "whole", adapters)
    result = merge_adapters(folders, rank=2)
    cut = []
    for one in adapters:
        factors = {}
        for module, w in dense(one).items():
            u, s, vt = np.linalg.svd(w)
            factors[module] = (torch.from_numpy(u[:, :2] * s[:2]), torch.from_numpy(vt[:2]).clone())
        cut.append(factors)
    by_hand = merge_adapters(write_family(tmp_path / "cut", cut))
    assert apart(merged(result), merged(by_hand)) <= 1e-8
    for row, alike in zip(result.record.modules, by_hand.record.modules, strict=True):
        kept = [
            float(
                (np.linalg.svd(dense(a)[row.module])[1][:2] ** 2).sum()
                / np.linalg.norm(dense(a)[row.module]) ** 2
            )
            for a in adapters
        ]
        assert row.energy_kept == pytest.approx(min(kept), rel=1e-10)
        assert alike.energy_kept is None
        assert (row.rank, row.input_ranks) == (2, (4, 4))


def test_an_update_that_is_all_zero_is_left_out_of_its_module(tmp_path: Path) -> None:
    adapters = family("close", 3)
    adapters[1]["layers.0.q"][0][:] = 0
    folders = write_family(tmp_path, adapters)
    # Other modules are beside it and all begin in single precision: they agree as far as they are solved.
    solved: dict[str, Any] = {"tol": 1e-13, "cost_tol": 0.0}
    result = merge_adapters(folders, [3, 2, 1], **solved)
    without = merged(merge_adapters([folders[0], folders[2]], [3, 1], **solved))
    module = "layers.0.q"
    assert apart({module: merged(result)[module]}, {module: without[module]}) <= 1e-12
    # In the other modules it counts as ever.
    assert apart({"layers.0.v": merged(result)["layers.0.v"]}, {"layers.0.v": without["layers.0.v"]}) > 1e-3
    row = result.record.modules[0]
    assert row.numerical_ranks == (3, 0, 3)
    assert row.distances is not None
    assert row.distances[1] is None
    assert row.relative_distances[1] is None
    assert row.distances[2] == pytest.approx(3 * (row.distances[0] or 0.0), rel=1e-4)
    assert row.energy_kept is None
    assert row.determined == "yes"
    assert result.record.totals.distances is not None
    assert None not in result.record.totals.distances
    (warning,) = result.record.warnings
    assert warning.startswith("b: its update is all zero in 1 of 3 modules (layers.0.q)")
    assert "left out" in warning
    result.save_pretrained(tmp_path / "out")
    assert warning in json.loads((tmp_path / "out" / RECORD).read_text())["warnings"]


def test_one_update_left_is_the_result_and_none_is_zero(tmp_path: Path) -> None:
    adapters = family("close", 3)
    for i in (0, 1, 2):
        adapters[i]["layers.0.v"][0][:] = 0
    for i in (0, 2):
        adapters[i]["layers.1.q"][1][:] = 0
    result = merge_adapters(write_family(tmp_path, adapters), scale=2.0)
    rows = {row.module: row for row in result.record.modules}
    assert not result.updates["layers.0.v"].dense().any()
    assert (rows["layers.0.v"].status, rows["layers.0.v"].cost) == ("EXACT", None)
    assert rows["layers.0.v"].numerical_ranks == (0, 0, 0)
    assert rows["layers.0.v"].norm == 0
    only = {m: 2 * w for m, w in dense(adapters[1]).items() if m == "layers.1.q"}
    assert apart({m: w for m, w in merged(result).items() if m in only}, only) <= 1e-12
    assert (rows["layers.1.q"].status, rows["layers.1.q"].distances) == ("EXACT", (None, 0.0, None))
    assert result.record.totals.statuses["EXACT"] == 2
    assert len(result.record.warnings) == 3
    assert max(result.save_pretrained(tmp_path / "out").values()) <= 1e-12
    written = read_adapter(tmp_path / "out")
    assert not written.update("layers.0.v").dense().any()


def test_a_rank_deficient_update_truncates_its_module_to_its_rank(tmp_path: Path) -> None:
    adapters, cut = deficient_family()
    folders = write_family(tmp_path / "whole", adapters)
    result = merge_adapters(folders, [3, 2, 1], cost_tol=0)
    by_hand = {
        module: merged(
            merge_adapters(
                write_family(tmp_path / module, [{module: one[module]} for one in cut]), [3, 2, 1], cost_tol=0
            )
        )[module]
        for module in SHAPES
    }
    assert apart(merged(result), by_hand) <= 1e-7
    row, *others = result.record.modules
    assert (row.rank, row.input_ranks, row.numerical_ranks) == (2, (3, 3, 3), (3, 2, 3))
    kept = [
        float((np.linalg.svd(dense(one)["layers.0.q"])[1][:2] ** 2).sum())
        / float(np.linalg.norm(dense(one)["layers.0.q"]) ** 2)
        for one in adapters
    ]
    assert row.energy_kept == pytest.approx(min(kept), rel=1e-9)
    assert {one.rank for one in others} == {3}
    assert {one.energy_kept for one in others} == {None}
    (warning,) = result.record.warnings
    assert warning.startswith("b: its update is rank deficient in 1 of 3 modules (layers.0.q: 2 of 3)")
    result.save_pretrained(tmp_path / "out")
    written = read_adapter(tmp_path / "out")
    # As the inputs have it, for loaders that know one rank; the third column is zero.
    assert set(written.ranks.values()) == {3}
    assert written.update("layers.0.q").numerical_rank(torch.float64) == 2


def test_float32_factors_hide_no_rank_below_their_round_off(tmp_path: Path) -> None:
    adapters, _ = deficient_family()
    folders = write_family(tmp_path, adapters, dtype=torch.float32)
    for dtype in ("float64", "float32"):
        assert merge_adapters(folders, dtype=dtype).record.modules[0].numerical_ranks == (3, 2, 3)


def test_a_rank_asked_for_cuts_what_is_deficient_too(tmp_path: Path) -> None:
    adapters, _ = deficient_family(rank=1)
    result = merge_adapters(write_family(tmp_path, adapters), rank=2)
    assert [row.rank for row in result.record.modules] == [1, 2, 2]
    assert "(layers.0.q: 1 of 2)" in result.record.warnings[0]
    with pytest.raises(RecipeError) as caught:
        merge_adapters(write_family(tmp_path / "again", adapters), rank=4)
    assert len(caught.value.problems) == 3
    assert "a has less in 3 of 3 modules" in caught.value.problems[0]
    assert all(problem.endswith("give at most 3") for problem in caught.value.problems)


def test_a_mean_stays_in_the_rows_of_its_module(tmp_path: Path) -> None:
    """Beside an all-zero update, with a start at a cut locus: what is written is what is reported."""
    generator = seeded(213)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    right, left, other = normal(2, 36), normal(40, 2), normal(40, 2)
    turns = [random_orthonormal(2, 2, generator) for _ in range(3)]
    factors = [*((left @ turn, right) for turn in turns), (other, right), (0 * left, right)]
    with_zero = merge_adapters(write_family(tmp_path / "zero", [{"m": one} for one in factors]))
    without = merge_adapters(write_family(tmp_path / "none", [{"m": one} for one in factors[:4]]))
    one, two = (result.updates["m"] for result in (with_zero, without))
    assert sum_updates([one, two], [1, -1]).norm() < 1e-6 * two.norm()
    assert with_zero.record.modules[0].cost == pytest.approx(without.record.modules[0].cost, rel=1e-9)


def test_several_starts_agree_where_the_mean_is_determined(tmp_path: Path) -> None:
    close = merge_adapters(write_family(tmp_path / "close", family("close", 3)), starts=3).record
    for row in close.modules:
        assert row.starts == 3
        assert row.update_spread is not None
        assert row.cost_spread is not None
        assert row.update_spread <= 1e-3
        assert 0 <= row.cost_spread <= 1e-5
        assert row.determined == "yes"
    assert close.totals.update_spread is not None
    assert close.totals.determined == "yes"


def test_the_best_of_several_starts_is_taken_and_seeded(tmp_path: Path) -> None:
    wide = {"q": (60, 60), "v": (60, 50)}
    folders = write_family(tmp_path, family("independent", 4, shapes=wide))
    one = merge_adapters(folders).record
    three = merge_adapters(folders, starts=3, seed=5)
    again = merge_adapters(folders, starts=3, seed=5, threads=1)
    other = merge_adapters(folders, starts=3, seed=6)
    assert all(torch.equal(three.updates[m].B, again.updates[m].B) for m in wide)
    assert three.record.totals.update_spread != other.record.totals.update_spread
    for first, row in zip(one.modules, three.record.modules, strict=True):
        assert first.starts is None
        assert first.update_spread is None
        assert row.cost is not None
        assert first.cost is not None
        assert row.cost <= first.cost
        assert row.update_spread is not None
        assert row.update_spread > 0.1
        assert row.determined == "no"


def test_as_many_starts_as_the_overlap_calls_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto`: where it tells, one; where it does not, ten solved to the end, whose verdict is that of ten in
    all modules.
    """
    noise = {"clear": 0.1, "doubtful": 0.9, "unclear": 1.0}
    columns = {module: adapter_family("close", 3, 60, 50, 4, 3, noise=size) for module, size in noise.items()}
    columns["strange"] = adapter_family("independent", 3, 60, 50, 4, 3)
    adapters = [{module: column[i] for module, column in columns.items()} for i in range(3)]
    folders = write_family(tmp_path, adapters)
    plain = merge_adapters(folders).record.modules
    assert [row.determined for row in plain] == ["yes", "open", "no", "open"]
    asked: list[float] = []

    def solve(*given: Any, **how: Any) -> Any:
        asked.append(given[1].cost_tol)
        return frechet_mean(*given, **how)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "frechet_mean", solve)
        auto = merge_adapters(folders, starts="auto", seed=1).record
    assert sorted(asked) == [1e-6] * 10 + [METHODS["geomerge"].defaults["cost_tol"]]
    every = merge_adapters(folders, starts=10, cost_tol=1e-6, seed=1).record
    for row, before, truth in zip(auto.modules, plain, every.modules, strict=True):
        assert truth.starts == 10
        measured = before.determined == "open"
        assert row.starts == (10 if measured else None)
        assert row.determined == truth.determined
        if measured:
            assert row.update_spread == pytest.approx(truth.update_spread, rel=0.1, abs=1e-3)
            assert row.cost == pytest.approx(truth.cost, rel=1e-6)
        else:
            assert row.cost == before.cost
    assert "open" not in auto.totals.determined_modules
    assert auto.recipe["parameters"]["starts"] == "auto"
    said = verdict(auto)[0]
    assert "measured where the overlap does not tell (it does in 2 of 4)" in said
    # A tolerance that is tighter than what the measurement needs is kept.
    tight = merge_adapters(folders, starts="auto", cost_tol=0.0, tol=1e-6, seed=1).record
    assert {row.status for row in tight.modules} == {"CONVERGED"}


@pytest.mark.parametrize("count", [1, 8, 9, 36, 128, 129, 224, 1000])
def test_blocks_are_even_in_number_and_size(count: int) -> None:
    """Whatever the threads are; each module is in one of them, in order."""
    parts = batches._parts(range(count))
    assert [place for part in parts for place in part] == list(range(count))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= min(sizes) + 1
    assert max(sizes) <= batches._BLOCK
    assert len(parts) == 1 if count <= batches._FEW else len(parts) % 2 == 0


def test_a_solve_that_no_one_waits_for_ends_at_its_next_iterate() -> None:
    total = FixedRank(14, 12, 3, k=2)
    points = torch.stack([total.random_point() for _ in range(2)], dim=1)
    manifold = QuotientManifold(FixedRank(14, 12, 3), Orthogonal(3))
    weights = torch.ones(2, dtype=torch.float64)
    tasks = [batches.Task(Placed(manifold, pair), weights) for pair in points]
    run = batches._Run(Options(), "lbfgs", [batches._block(tasks)], done=0, total=2)
    assert len(run.solve(0)) == 2
    run.cancelled.set()
    with pytest.raises(CancelledError):
        run.solve(0)


def test_a_budget_of_seconds_ends_every_block(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("mix", 3))
    record = merge_adapters(folders, max_seconds=1e-9, cost_tol=0).record
    assert record.totals.statuses == {"BUDGET": 3}  # so small that any clock has passed it
    assert record.recipe["parameters"]["max_seconds"] == 1e-9
