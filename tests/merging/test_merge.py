"""Laws of merging folders; the oracles are dense numpy for the flat methods, and PEFT for what is written."""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from riemerge.errors import AdapterError, NumericalError, OutputError, RecipeError, ResourceError
from riemerge.formats.peft import Adapter, read_adapter
from riemerge.frechet.solvers import LBFGS
from riemerge.manifolds import FixedRank
from riemerge.merging.inputs import display_names
from riemerge.merging.plan import plan
from riemerge.merging.sinks import MergeResult, collect
from riemerge.methods import METHODS, Options
from riemerge.methods.geodesic import batches
from riemerge.methods.reduction import in_order
from riemerge.progress import Progress
from riemerge.recipes.recipe import make_recipe, read_recipe
from riemerge.records.run_record import RunRecord
from riemerge.report.verdict import verdict
from riemerge.updates.low_rank import LowRankUpdate, sum_updates
from tests.fake_cuda import fake_cuda
from tests.folders import SHAPES, family, merge_adapters, write_family, write_folder
from tests.helpers import Factors, adapter_family, random_gauge, random_orthonormal, seeded

TENSORS = "adapter_model.safetensors"
# One row of each domain; the laws of every row are in tests/laws/test_methods.py.
ROWS = ("geomerge", "average", "task_arithmetic", "tsv", "knots_ties", "ties")
EVERY_DOMAIN = pytest.mark.parametrize("method", ROWS)


def dense(modules: Mapping[str, Factors]) -> dict[str, np.ndarray]:
    return {module: b.numpy() @ a.numpy() for module, (b, a) in modules.items()}


def merged(result: MergeResult) -> dict[str, np.ndarray]:
    return {module: update.dense().numpy() for module, update in result.updates.items()}


def apart(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """The largest relative distance of any module."""
    assert list(one) == list(other)
    return max(float(np.linalg.norm(one[m] - other[m]) / np.linalg.norm(other[m])) for m in one)


def stored(folder: Path) -> bytes:
    return (folder / TENSORS).read_bytes()


# --- laws of every method -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [row for row in ROWS if METHODS[row].idempotent])
def test_copies_of_one_adapter_merge_to_it(tmp_path: Path, method: str) -> None:
    (one,) = family("independent", 1)
    folders = [write_folder(tmp_path / name, one) for name in ("a", "b", "c")]
    weights = [0.5, 0.3, 0.2]  # they sum to 1, for the method that does not normalise
    result = merge_adapters(folders, weights, method=method)
    # Round-off only: the copies are aligned to each other exactly.
    assert apart(merged(result), dense(one)) <= 1e-10
    assert "hold the same files" in result.record.warnings[0]


@pytest.mark.parametrize(
    "method",
    [
        name
        for name, row in METHODS.items()
        if not (row.statistics or row.ordered or row.models[1]) or name in ROWS
    ],
)
def test_the_order_of_the_adapters_changes_no_bit(tmp_path: Path, method: str) -> None:
    folders = write_family(tmp_path, family("mix", 3))
    weights = [0.5, 0.3, 0.2]
    first = merge_adapters(folders, weights, method=method)
    other = merge_adapters([folders[i] for i in (2, 0, 1)], [weights[i] for i in (2, 0, 1)], method=method)
    first.save_pretrained(tmp_path / "first")
    other.save_pretrained(tmp_path / "other")
    assert stored(tmp_path / "first") == stored(tmp_path / "other")
    config = "adapter_config.json"
    assert (tmp_path / "first" / config).read_bytes() == (tmp_path / "other" / config).read_bytes()
    # The record names the inputs in the order they were given in, with what belongs to each.
    assert [row.name for row in other.record.inputs] == ["c", "a", "b"]
    for one, two in zip(first.record.modules, other.record.modules, strict=True):
        assert [one.relative_distances[i] for i in (2, 0, 1)] == list(two.relative_distances)
        assert [one.input_norms[i] for i in (2, 0, 1)] == list(two.input_norms)
        if one.distances is not None:
            assert two.distances is not None
            assert [one.distances[i] for i in (2, 0, 1)] == list(two.distances)


@EVERY_DOMAIN
def test_weight_zero_is_absence(tmp_path: Path, method: str) -> None:
    folders = write_family(tmp_path, family("close", 2))
    without = merge_adapters(folders, [1, 2], method=method)
    with_it = merge_adapters([folders[0], tmp_path / "not there", folders[1]], [1, 0, 2], method=method)
    without.save_pretrained(tmp_path / "without")
    with_it.save_pretrained(tmp_path / "with")
    assert stored(tmp_path / "without") == stored(tmp_path / "with")
    left_out = with_it.record.inputs[1]
    assert (left_out.name, left_out.share, left_out.sha256) == ("not there", 0.0, None)
    assert with_it.record.warnings == ("not there: its weight is 0: it was left out and not read",)


@EVERY_DOMAIN
def test_the_gauge_of_the_factors_does_not_matter(tmp_path: Path, method: str) -> None:
    adapters = family("close", 3)
    generator = seeded(1)
    turned = [
        {module: (b @ g, torch.linalg.solve(g, a)) for module, (b, a) in one.items() for g in [gauge()]}
        for one in adapters
        for gauge in [lambda: random_gauge(3, 1e3, generator)]
    ]
    plain = merge_adapters(write_family(tmp_path / "plain", adapters), [3, 2, 1], method=method)
    other = merge_adapters(write_family(tmp_path / "turned", turned), [3, 2, 1], method=method)
    assert (
        apart(
            {m: b.numpy() for m, (b, _) in turned[0].items()},
            {m: b.numpy() for m, (b, _) in adapters[0].items()},
        )
        > 1
    )
    # Gauges of condition 1e3 cost three of sixteen digits; the mean of close adapters costs a few more.
    assert apart(merged(other), merged(plain)) <= 1e-8


def test_the_gauge_does_not_matter_to_barely_determined_means_either(tmp_path: Path) -> None:
    generator = seeded(2)
    adapters = family("independent", 3)
    turned = [
        {module: (b @ g, torch.linalg.solve(g, a)) for module, (b, a) in one.items()}
        for one in adapters
        for g in [random_gauge(3, 1e3, generator)]
    ]
    plain = merge_adapters(write_family(tmp_path / "plain", adapters))
    other = merge_adapters(write_family(tmp_path / "turned", turned))
    # Many points have nearly the same cost here, so round-off is carried far: 1e-4 is what can be promised.
    assert apart(merged(other), merged(plain)) <= 1e-4


@EVERY_DOMAIN
def test_the_scale_multiplies_the_merged_update(tmp_path: Path, method: str) -> None:
    folders = write_family(tmp_path, family("close", 2))
    one = merge_adapters(folders, method=method)
    three = merge_adapters(folders, method=method, scale=-3.0)
    assert apart(merged(three), {m: -3.0 * w for m, w in merged(one).items()}) <= 1e-14
    assert three.record.totals.norm == pytest.approx(3 * one.record.totals.norm)
    assert three.record.modules[0].distances == one.record.modules[0].distances


@EVERY_DOMAIN
def test_an_adapter_alone_is_its_own_merge(tmp_path: Path, method: str) -> None:
    (one,) = family("independent", 1)
    result = merge_adapters([write_folder(tmp_path / "a", one)], method=method)
    assert apart(merged(result), dense(one)) <= 1e-12
    assert result.record.totals.determined is None
    assert "nothing to merge it with" in result.record.warnings[0]


@EVERY_DOMAIN
def test_alpha_and_fan_in_enter_exactly(tmp_path: Path, method: str) -> None:
    adapters = family("close", 2)
    plain = merge_adapters(write_family(tmp_path / "plain", adapters), method=method)
    scaled = merge_adapters(write_family(tmp_path / "scaled", adapters, lora_alpha=6), method=method)
    assert apart(merged(scaled), {m: 2.0 * w for m, w in merged(plain).items()}) <= 1e-12


# --- geomerge -----------------------------------------------------------------------------------------------


def test_the_mean_of_two_divides_their_distance_as_the_weights_do(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    record = merge_adapters(folders, [3, 1], cost_tol=0).record
    for row in record.modules:
        assert row.status == "CONVERGED"
        assert row.distances is not None
        # d(x, a) = w_b d(a, b): three times as far from b; the gradient norm bounds the error by 1e-8 of d.
        assert row.distances[1] == pytest.approx(3 * row.distances[0], rel=1e-6)
        assert row.cost == pytest.approx((0.75 * row.distances[0] ** 2 + 0.25 * row.distances[1] ** 2) / 2)


def test_modules_of_different_widths_are_solved_as_if_alone(tmp_path: Path) -> None:
    shapes = {"q": (14, 12), "v": (20, 9), "o": (9, 30), "p": (14, 12)}
    adapters = family("close", 2, shapes=shapes)
    whole = merged(merge_adapters(write_family(tmp_path / "whole", adapters), cost_tol=0))
    for module in shapes:
        single = [{module: one[module]} for one in adapters]
        alone = merged(merge_adapters(write_family(tmp_path / module, single), cost_tol=0))
        assert apart({module: whole[module]}, alone) <= 1e-7  # both converge to a gradient of 1e-8


def test_float32_factors_give_the_same_mean_to_their_precision(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 3))
    exact = merge_adapters(folders)
    single = merge_adapters(folders, dtype="float32")
    assert {update.dtype for update in single.updates.values()} == {torch.float32}
    assert 0 < apart(merged(single), merged(exact)) <= 1e-5


@EVERY_DOMAIN
def test_a_merge_on_another_device_stays_there_and_is_the_same(tmp_path: Path, method: str) -> None:
    folders = write_family(tmp_path, family("mix", 3))
    here = merge_adapters(folders, method=method)
    with fake_cuda():
        there = merge_adapters(folders, method=method, device="cuda")
        assert {update.device.type for update in there.updates.values()} == {"cuda"}
        there.save_pretrained(tmp_path / "there")
    here.save_pretrained(tmp_path / "here")
    assert there.record.device == "cuda"
    assert stored(tmp_path / "there") == stored(tmp_path / "here")


@pytest.mark.parametrize("solver", ["steepest_descent", "trust_regions", "fixed_point"])
def test_any_solver_by_name_reaches_the_same_cost(tmp_path: Path, solver: str) -> None:
    folders = write_family(tmp_path, family("close", 3))
    reference = merge_adapters(folders, cost_tol=0).record
    other = merge_adapters(folders, cost_tol=0, solver=solver).record
    assert other.recipe["parameters"]["solver"] == solver
    assert other.totals.cost == pytest.approx(reference.totals.cost, rel=1e-9)


def test_an_optimizer_of_the_users_own_is_used(tmp_path: Path) -> None:
    from pymanopt.optimizers import SteepestDescent

    folders = write_family(tmp_path, family("close", 2))
    result = merge_adapters(folders, solver=SteepestDescent(max_iterations=3, verbosity=0))
    assert result.record.recipe["parameters"]["solver"] == "SteepestDescent"


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
    for row, one in zip(result.record.modules, by_hand.record.modules, strict=True):
        kept = [
            float(
                (np.linalg.svd(dense(a)[row.module])[1][:2] ** 2).sum()
                / np.linalg.norm(dense(a)[row.module]) ** 2
            )
            for a in adapters
        ]
        assert row.energy_kept == pytest.approx(min(kept), rel=1e-10)
        assert one.energy_kept is None
        assert (row.rank, row.input_ranks) == (2, (4, 4))


def test_updates_of_different_rank_need_a_rank(tmp_path: Path) -> None:
    (a,), (b,) = family("close", 1, rank=4), family("close", 1, rank=2, seed=5)
    folders = write_family(tmp_path, [a, b])
    with pytest.raises(AdapterError) as caught:
        merge_adapters(folders)
    assert len(caught.value.problems) == len(SHAPES)
    assert "layers.0.q: the ranks differ (" in caught.value.problems[0]
    assert "--rank 2" in caught.value.problems[0]
    assert {u.rank for u in merge_adapters(folders, rank=2).updates.values()} == {2}


# --- updates that are no point of the manifold --------------------------------------------------------------


def deficient_family(rank: int = 2) -> tuple[list[dict[str, Factors]], list[dict[str, Factors]]]:
    """Close adapters, b of lower rank in one module (hidden by a gauge); and the same, all truncated."""
    adapters = family("close", 3)
    cut = [dict(one) for one in adapters]
    module = "layers.0.q"
    b, a = adapters[1][module]
    gauge = random_gauge(3, 10.0, seeded(3))
    narrow = LowRankUpdate(b, a).truncate(rank)
    zero = torch.zeros(len(b), 3 - rank, dtype=torch.float64)
    adapters[1][module] = (
        torch.cat([narrow.B, zero], dim=1) @ gauge,
        torch.linalg.solve(gauge, torch.cat([narrow.A, a[: 3 - rank]])),
    )
    for one, other in zip(adapters, cut, strict=True):
        best = LowRankUpdate(*one[module]).truncate(rank)
        other[module] = (best.B, best.A)
    return adapters, cut


def test_an_update_that_is_all_zero_is_left_out_of_its_module(tmp_path: Path) -> None:
    adapters = family("close", 3)
    adapters[1]["layers.0.q"][0][:] = 0
    folders = write_family(tmp_path, adapters)
    # Other modules are beside it and all begin in single precision: they agree as far as they are solved.
    solved = {"tol": 1e-13, "cost_tol": 0.0}
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
    assert warning in json.loads((tmp_path / "out" / "riemerge.json").read_text())["warnings"]


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


def test_a_sum_takes_updates_of_any_rank(tmp_path: Path) -> None:
    adapters, _ = deficient_family()
    adapters[0]["layers.0.v"][0][:] = 0
    record = merge_adapters(write_family(tmp_path, adapters[:2]), method="average").record
    assert record.warnings == ()
    row = record.modules[1]
    assert (row.overlap, row.determined, row.relative_distances[0]) == (None, None, None)
    assert row.numerical_ranks is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (({"revision": "v1"}, {"revision": "v2"}), 'revision differs: "v1" in a, "v2" in b: their bases may'),
        (({"revision": "v1"}, {}), 'revision differs: "v1" in a, null in b'),
        (({"revision": "main"}, {}), None),  # what PEFT loads where there is none
        (({"task_type": "CAUSAL_LM"}, {"task_type": "SEQ_CLS"}), "task_type differs"),
        (({"auto_mapping": {"x": 1, "y": 2}}, {"auto_mapping": {"y": 2, "x": 1}}), None),
        (({"auto_mapping": {"x": 1}}, {}), 'auto_mapping differs: {"x": 1} in a, null in b'),
        (({"alpha_pattern": {"k_proj": 3}}, {}), "a: alpha_pattern: k_proj: decides nothing"),
        (({}, {"lora_alpha": -1}), "b: alpha is negative"),
        (({}, {"target_modules": ["q"]}), "b: PEFT loads no factors where"),
        (({"use_rslora": True}, {"task_type": None}), None),
    ],
)
def test_what_peft_goes_on_with_is_in_the_record(
    tmp_path: Path, settings: tuple[dict[str, Any], ...], says: str | None
) -> None:
    adapters = family("close", 2)
    folders = [
        write_folder(tmp_path / name, one, **said)
        for name, one, said in zip("ab", adapters, settings, strict=True)
    ]
    warnings = merge_adapters(folders, method="average").record.warnings
    assert len(warnings) == (says is not None)
    assert says is None or says in warnings[0]


def test_an_optimizer_object_serves_every_block(tmp_path: Path) -> None:
    """Each block has a copy: on two threads the blocks would otherwise share one run's state."""
    shapes = {f"m{i:02}": (14, 12) for i in range(18)}
    folders = write_family(tmp_path, family("close", 3, rank=2, shapes=shapes))
    named = merge_adapters(folders, solver="lbfgs", threads=1)
    given = merge_adapters(folders, solver=LBFGS(rescale=False, verbosity=0), threads=2)
    for module, update in named.updates.items():
        assert sum_updates([update, given.updates[module]], [1, -1]).norm() < 1e-4 * update.norm()


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


# --- threads and seconds ------------------------------------------------------------------------------------


@EVERY_DOMAIN
def test_threads_and_the_order_of_the_file_change_no_bit(tmp_path: Path, method: str) -> None:
    # More modules than are solved in one block, of several sizes.
    sizes = list(zip("qvo", SHAPES.values(), strict=True))
    shapes = {f"layers.{i}.{name}": size for i in range(7) for name, size in sizes}
    shapes["narrow"] = (5, 14)
    adapters = family("close", 3, shapes=shapes)
    backward = [dict(reversed(one.items())) for one in adapters]
    options: dict[str, Any] = {"method": method, "rank": 2}
    files = []
    for name, one, threads in (("one", adapters, 1), ("two", adapters, 2), ("back", backward, 3)):
        result = merge_adapters(write_family(tmp_path / name, one), [3, 2, 1], threads=threads, **options)
        result.save_pretrained(tmp_path / f"{name}-out")
        files.append(stored(tmp_path / f"{name}-out"))
        assert list(result.updates) == sorted(shapes)
    assert files[0] == files[1] == files[2]


def test_torch_has_one_thread_within_a_merge_and_as_many_as_before_after_it(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        merge_adapters(folders, threads=2, progress=lambda _: seen.append(torch.get_num_threads()))
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_fault_in_a_thread_ends_the_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = write_family(tmp_path, family("close", 2))
    adapter = read_adapter(folders[0])
    with (folders[0] / TENSORS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(AdapterError, match="changed while it was in use"):
        merge_adapters([adapter, folders[1]], threads=2)


def test_a_fault_comes_out_in_its_turn_and_tells_the_others() -> None:
    cancelled, ended = threading.Event(), []

    def work(item: int) -> int:
        if item == 1:
            raise ZeroDivisionError
        if item == 2:
            ended.append(cancelled.wait(60))
        return item

    results = in_order(work, range(9), 2, cancelled)
    assert next(results) == 0
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert cancelled.is_set()
    assert all(ended)  # had it not been told, it would have waited in vain


@pytest.mark.parametrize("count", [1, 8, 9, 36, 128, 129, 224, 1000])
def test_blocks_are_even_in_number_and_size(count: int) -> None:
    """Whatever the threads are; each module is in one of them, in order."""
    names = [f"m{i}" for i in range(count)]
    parts = batches._parts(names)
    assert [name for part in parts for name in part] == names
    sizes = [len(part) for part in parts]
    assert max(sizes) <= min(sizes) + 1
    assert max(sizes) <= batches._BLOCK
    assert len(parts) == 1 if count <= batches._FEW else len(parts) % 2 == 0


def test_a_solve_that_no_one_waits_for_ends_at_its_next_iterate() -> None:
    total = FixedRank(14, 12, 3, k=2)
    points = {name: total.random_point() for name in "ab"}
    block = batches._Block(
        tuple(points), batches.Size(14, 12, 3), 1, torch.stack([*points.values()]), torch.ones(2, 2)
    )
    run = batches._Run(Options(), [block], done=0)
    assert len(run.solve(0)) == 2
    run.cancelled.set()
    with pytest.raises(CancelledError):
        run.solve(0)


def test_a_budget_of_seconds_ends_every_block(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("mix", 3))
    record = merge_adapters(folders, max_seconds=1e-9, cost_tol=0).record
    assert record.totals.statuses == {"BUDGET": 3}  # so small that any clock has passed it
    assert record.recipe["parameters"]["max_seconds"] == 1e-9


def test_no_module_is_kept_while_others_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tall of a module is dropped before the next but a few is read."""
    shapes = {f"m{i:02}": (40, 30) for i in range(12)}
    folders = write_family(tmp_path, family("close", 2, shapes=shapes))
    alive: set[int] = set()
    most = 0
    read = Adapter.update

    def counted(self: Adapter, *args: Any, **kwargs: Any) -> LowRankUpdate:
        nonlocal most
        update = read(self, *args, **kwargs)
        alive.add(id(update.B))
        weakref.finalize(update.B, alive.discard, id(update.B))
        most = max(most, len(alive))
        return update

    monkeypatch.setattr(Adapter, "update", counted)
    for method in ROWS:
        merge_adapters(folders, method=method, threads=1)
    assert 2 <= most <= 4  # of two modules: one is let go when the next has been read


# --- several starts -----------------------------------------------------------------------------------------


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
    solve = batches.frechet_mean
    with monkeypatch.context() as patch:
        patch.setattr(
            batches,
            "frechet_mean",
            lambda *given, **how: asked.append(how["cost_tol"]) or solve(*given, **how),
        )
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


def test_a_budget_that_runs_out_is_written_with_a_warning(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("mix", 3))
    result = merge_adapters(folders, max_passes=2, cost_tol=0)
    assert result.record.totals.statuses == {"BUDGET": 3}
    assert (
        "3 of 3 modules ended as BUDGET (layers.0.q, layers.0.v, layers.1.q): " in result.record.warnings[0]
    )
    result.save_pretrained(tmp_path / "out")


# --- flat methods, against dense numpy ----------------------------------------------------------------------


@pytest.mark.parametrize(("method", "total"), [("average", 6.0), ("task_arithmetic", 1.0)])
def test_weighted_sums_are_exact(tmp_path: Path, method: str, total: float) -> None:
    adapters = family("independent", 3)
    weights = [3.0, 2.0, 1.0]
    result = merge_adapters(write_family(tmp_path, adapters), weights, method=method, rank="sum")
    expected = {
        module: sum(w * dense(one)[module] for w, one in zip(weights, adapters, strict=True)) / total
        for module in SHAPES
    }
    assert apart(merged(result), expected) <= 1e-14
    assert {update.rank for update in result.updates.values()} == {9}
    assert [row.share for row in result.record.inputs] == [w / total for w in weights]


def test_adapters_of_different_rank_add_up(tmp_path: Path) -> None:
    (a,), (b,) = family("close", 1, rank=4), family("close", 1, rank=2, seed=5)
    folders = write_family(tmp_path, [a, b])
    # By default the result has the largest of their ranks.
    assert {update.rank for update in merge_adapters(folders, method="average").updates.values()} == {4}
    result = merge_adapters(folders, method="average", rank="sum")
    expected = {module: (dense(a)[module] + dense(b)[module]) / 2 for module in SHAPES}
    assert apart(merged(result), expected) <= 1e-14
    assert {update.rank for update in result.updates.values()} == {6}


def test_a_sum_takes_weights_of_any_sign(tmp_path: Path) -> None:
    a, b = family("independent", 2)
    asked = {"method": "task_arithmetic", "scale": 2, "rank": "sum"}
    result = merge_adapters(write_family(tmp_path, [a, b]), [1, -0.5], **asked)
    assert apart(merged(result), {m: 2 * dense(a)[m] - dense(b)[m] for m in SHAPES}) <= 1e-14


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_truncation_is_the_best_of_that_rank(tmp_path: Path, rank: int) -> None:
    adapters = family("independent", 2)
    result = merge_adapters(write_family(tmp_path, adapters), method="average", rank=rank)
    for module, row in zip(SHAPES, result.record.modules, strict=True):
        mean = (dense(adapters[0])[module] + dense(adapters[1])[module]) / 2
        u, s, vt = np.linalg.svd(mean)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        assert np.linalg.norm(merged(result)[module] - best) <= 1e-12 * np.linalg.norm(mean)
        assert row.rank == rank
        # Six is the whole rank: nothing was cut, so nothing is said.
        kept = float((s[:rank] ** 2).sum() / (s**2).sum()) if rank < 6 else None
        assert row.energy_kept == (pytest.approx(kept, rel=1e-12) if kept else None)


def test_a_sum_has_no_more_columns_than_the_module_has_rank(tmp_path: Path) -> None:
    adapters = family("independent", 3, shapes={"q": (4, 5)})
    result = merge_adapters(write_family(tmp_path, adapters), method="average", rank="sum")
    assert result.updates["q"].rank == 4
    assert apart(merged(result), {"q": sum(dense(one)["q"] for one in adapters) / 3}) <= 1e-14


# --- the record ---------------------------------------------------------------------------------------------


def test_the_record_measures_what_a_dense_computation_does(tmp_path: Path) -> None:
    adapters = family("mix", 3)
    result = merge_adapters(write_family(tmp_path, adapters), [3, 2, 1])
    squares = []
    for row in result.record.modules:
        w = merged(result)[row.module]
        inputs = [dense(one)[row.module] for one in adapters]
        assert row.norm == pytest.approx(np.linalg.norm(w))
        assert row.input_norms == pytest.approx([np.linalg.norm(x) for x in inputs])
        distances = [np.linalg.norm(w - x) for x in inputs]
        squares.append(np.square(distances))
        assert row.relative_distances == pytest.approx(
            [d / np.linalg.norm(x) for d, x in zip(distances, inputs, strict=True)]
        )
        assert row.overlap is not None
        frames = [np.linalg.svd(x) for x in inputs]
        pairs = [(0, 1), (0, 2), (1, 2)]
        left = [np.linalg.norm(frames[i][0][:, :3].T @ frames[j][0][:, :3]) / 3**0.5 for i, j in pairs]
        right = [np.linalg.norm(frames[i][2][:3] @ frames[j][2][:3].T) / 3**0.5 for i, j in pairs]
        assert row.overlap.left == pytest.approx(np.mean(left))
        assert row.overlap.right == pytest.approx(np.mean(right))
        assert row.overlap.left_random == pytest.approx((3 / w.shape[0]) ** 0.5)
        assert row.overlap.right_random == pytest.approx((3 / w.shape[1]) ** 0.5)
        levels = 3 / w.shape[0], 3 / w.shape[1]
        shares = [
            min((c**2 - e) / (1 - e) for c, e in zip(sides, levels, strict=True))
            for sides in zip(left, right, strict=True)
        ]
        assert row.overlap.share == pytest.approx(np.mean(shares))
        angles = [np.sum(inputs[i] * inputs[j]) for i, j in pairs]
        lengths = [np.linalg.norm(inputs[i]) * np.linalg.norm(inputs[j]) for i, j in pairs]
        assert row.overlap.cosine == pytest.approx(np.mean(np.divide(angles, lengths)))
        bases = [(u[:, :3], vt[:3].T) for u, _, vt in frames]
        least = [
            max(
                (np.linalg.svd(bases[i][side].T @ bases[j][side])[1][-1] ** 2 - e) / (1 - e)
                for side, e in enumerate(levels)
            )
            for i, j in pairs
        ]
        assert row.overlap.weakest == pytest.approx(np.mean(least))
    total = result.record.totals
    assert total.norm == pytest.approx(np.sqrt(sum(np.linalg.norm(w) ** 2 for w in merged(result).values())))
    absolute = [
        d * norm for d, norm in zip(total.relative_distances, total.input_norms, strict=True) if d is not None
    ]
    assert absolute == pytest.approx(np.sqrt(np.sum(squares, axis=0)))
    assert total.cost == pytest.approx(sum(row.cost or 0.0 for row in result.record.modules))
    assert total.parameters == sum(b.numel() + a.numel() for b, a in adapters[0].values())


def test_subspaces_of_different_rank_overlap_by_the_smaller(tmp_path: Path) -> None:
    (wide,) = family("close", 1, rank=4)
    narrow = {module: (b[:, :2], a[:2]) for module, (b, a) in wide.items()}
    found = merge_adapters(write_family(tmp_path, [wide, narrow]), method="average").record.modules[0].overlap
    assert found is not None
    # One lies inside the other; random ones would have a mean square cosine of 4 / n.
    assert (found.left, found.right) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (found.left_random, found.right_random) == (
        pytest.approx((4 / 14) ** 0.5),
        pytest.approx((4 / 12) ** 0.5),
    )
    assert found.share == pytest.approx(1.0)


def test_random_subspaces_are_at_the_random_level_and_equal_ones_at_one(tmp_path: Path) -> None:
    wide = {"q": (200, 200)}

    def share(name: str) -> tuple[float, str | None]:
        result = merge_adapters(write_family(tmp_path / name, family(name, 4, shapes=wide)), method="average")
        assert result.record.totals.overlap is not None
        return result.record.totals.overlap.share, result.record.totals.determined

    independent, verdict = share("independent")
    assert abs(independent) < 0.02  # sampling error of 12 mean squares of 9 cosines, each near 3 / 200
    assert verdict == "no"
    assert share("close")[1] == "yes"
    # Equal subspaces, but independent cores: the mean is not determined.
    assert share("shared_subspace") == (pytest.approx(1.0, abs=1e-12), "no")
    # The row spaces are shared, the column spaces are not.
    assert share("lora_like")[1] == "no"
    assert 0.2 < share("mix")[0] < 0.5  # one of three directions shared


def test_one_recipe_gives_one_record_but_for_its_timing(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    one, two = (merge_adapters(folders).record for _ in range(2))
    assert one.model_copy(update={"timing": two.timing}) == two
    assert set(one.timing.modules) == set(SHAPES)


def test_the_record_reads_back_and_names_no_place_of_this_machine(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2), base_model_name_or_path=str(tmp_path / "my-base"))
    result = merge_adapters(folders)
    result.save_pretrained(tmp_path / "out")
    for name in ("riemerge.json", "README.md"):
        assert str(tmp_path.parent) not in (tmp_path / "out" / name).read_text()
    text = (tmp_path / "out" / "riemerge.json").read_text()
    content = json.loads(text)
    assert RunRecord.model_validate_json(text) == result.record.with_outputs(content["outputs"])
    assert result.record.base_model == "my-base"
    assert set(content["versions"]) == {"riemerge", "python", "torch", "pymanopt", "numpy"}
    assert set(content["inputs"][0]["sha256"]) == {TENSORS, "adapter_config.json"}


def test_what_is_written_can_be_made_again_from_its_own_card(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("mix", 3))
    merge_adapters(folders, [0.5, 0.25, 0.25], rank=2, scale=1.5).save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "recipe.yaml").write_text(card.split("```yaml\n")[1].split("```")[0])

    collect(plan(read_recipe([str(tmp_path / "recipe.yaml")]))).save_pretrained(tmp_path / "again")
    assert stored(tmp_path / "again") == stored(tmp_path / "out")


def test_the_card_says_where_it_comes_from_and_escapes_every_name(tmp_path: Path) -> None:
    adapters = family("close", 2)
    folders = [
        write_folder(tmp_path / "a|b_*c*<img src=x>", adapters[0]),
        write_folder(tmp_path / "[d](http:x)\x1b[31m\n# e", adapters[1]),
    ]
    result = merge_adapters(folders, [1, 3])
    result.save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {
        "library_name": "peft",
        "base_model": "somebody/base",
        "tags": ["lora", "merge", "riemerge", "geomerge"],
    }
    prose = card.split("```yaml")[0] + card.split("```")[-1]
    assert "| a\\|b\\_\\*c\\*\\<img src=x\\> | 1 | 0.25 | 3 |" in prose
    assert "\\[d\\]\\(http:x\\)\\\\x1b\\[31m\\\\n\\# e" in prose
    assert "\x1b" not in card
    assert all(row.sha256 and row.sha256[TENSORS][:12] in card for row in result.record.inputs)
    assert "PeftModel.from_pretrained" in card
    assert "riemerge merge recipe.yaml" in card
    assert "arXiv 2604.27155" in card
    for module in SHAPES:
        assert f"| {module.replace('_', chr(92) + '_')} | 14 × 12 |" in card or "10 × 12" in card


def test_progress_goes_through_every_stage_to_its_end(tmp_path: Path) -> None:
    events: list[Progress] = []
    merge_adapters(write_family(tmp_path, family("close", 2)), progress=events.append)
    for stage in ("read", "merge", "measure"):
        last = [event for event in events if event.stage == stage][-1]
        assert (last.done, last.total) == (3, 3)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"weights": [1]}, RecipeError, "weights: 1 for 2 adapters"),
        ({"weights": [1, -1]}, RecipeError, "no weight below zero"),
        ({"weights": [0, 0]}, RecipeError, "every weight is 0"),
        ({"weights": [1, float("nan")]}, RecipeError, "expected a finite number"),
        ({"method": "karchr"}, RecipeError, "unknown method 'karchr'"),
        ({"solver": "trust_region"}, RecipeError, "did you mean 'trust_regions'?"),
        ({"method": "average", "solver": "fixed_point"}, RecipeError, "average takes no solver"),
        ({"rank": 0}, RecipeError, "parameters.rank"),
        ({"starts": 0}, RecipeError, "parameters.starts"),
        ({"starts": "all"}, RecipeError, "expected a whole number or 'auto'"),
        ({"seed": -1}, RecipeError, "parameters.seed"),
        ({"max_seconds": 0}, RecipeError, "parameters.max_seconds"),
        ({"method": "average", "starts": 2}, RecipeError, "average takes no starts"),
        ({"threads": 0}, RecipeError, "threads: 0: expected at least 1"),
        ({"dtype": "float16"}, RecipeError, "dtype"),
        ({"device": "tpu"}, RecipeError, "device: 'tpu' is not known"),
        ({"device": "meta"}, RecipeError, "device: 'meta' is not supported"),
        ({"device": "cuda:99"}, ResourceError, "device: cuda:99 was asked for"),
    ],
)
def test_requests_that_make_no_sense(
    tmp_path: Path, arguments: dict[str, Any], kind: type, says: str
) -> None:
    folders = write_family(tmp_path, family("close", 2))
    with pytest.raises(kind) as caught:
        merge_adapters(folders, **arguments)
    assert says in str(caught.value)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    result = merge_adapters(folders, np.array([1, 3], dtype=np.float32), rank=np.int64(2))  # type: ignore[arg-type]
    assert [row.share for row in result.record.inputs] == [0.25, 0.75]
    assert {update.rank for update in result.updates.values()} == {2}


def test_every_broken_folder_is_reported_and_open_adapters_are_taken_as_they_are(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 3))
    (folders[1] / TENSORS).unlink()
    (folders[2] / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError) as caught:
        merge_adapters(folders)
    assert {str(folders[1]), str(folders[2])} <= {
        str(folder) for folder in folders for problem in caught.value.problems if str(folder) in problem
    }
    alone = merge_adapters([read_adapter(folders[0])], [2.0])
    assert alone.record.inputs[0].name == "a"


def test_the_output_may_not_touch_an_input(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    result = merge_adapters(folders)
    for target in (folders[0], folders[0] / "inside", tmp_path):
        with pytest.raises(OutputError):
            result.save_pretrained(target)


def test_names_tell_folders_apart() -> None:
    assert display_names(["x/a", "y/a", "y/b"]) == ("x/a", "y/a", "b")
    assert display_names(["a"]) == ("a",)
    assert display_names(["x/a/m", "y/a/m", "y/b/m"]) == ("x/a/m", "y/a/m", "b/m")


# --- what is written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "asked", "written"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float32, None, torch.float32),
        (torch.float32, "float16", torch.float16),
    ],
)
def test_the_dtype_written_is_that_of_the_inputs_or_what_was_asked(
    tmp_path: Path, inputs: torch.dtype, asked: str | None, written: torch.dtype
) -> None:
    folders = write_family(tmp_path, family("close", 2), dtype=inputs)
    result = merge_adapters(folders, out_dtype=asked)
    rounding = result.save_pretrained(tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / TENSORS).values()} == {written}
    assert result.record.recipe["out_dtype"] == str(written).removeprefix("torch.")
    assert 0 < max(rounding.values()) <= 2 * torch.finfo(written).eps


@pytest.mark.oracle
@EVERY_DOMAIN
def test_peft_loads_what_is_written(tmp_path: Path, method: str) -> None:
    from peft import PeftModel

    base = torch.nn.Module()
    base.layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(2))
    for module, (m, n) in SHAPES.items():
        _, place, name = module.split(".")
        setattr(base.layers[int(place)], name, torch.nn.Linear(n, m, bias=False))
    folders = write_family(tmp_path, family("close", 2), dtype=torch.float32)
    result = merge_adapters(folders, method=method)
    result.save_pretrained(tmp_path / "out")
    model = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    for module, w in merged(result).items():
        layer = model.base_model.model.get_submodule(module)
        delta = layer.get_delta_weight("default").double().numpy()
        assert np.linalg.norm(delta - w) <= 1e-6 * np.linalg.norm(w)  # float32 factors


def test_the_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = write_family(tmp_path / "in", family("close", 2))
    result = merge_adapters(folders)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        result.save_pretrained(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    monkeypatch.undo()
    result.save_pretrained(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        TENSORS,
        "riemerge.json",
    ]
    shutil.rmtree(tmp_path / "out")


# --- trajectories -------------------------------------------------------------------------------------------


def test_the_folder_of_a_run_stands_for_its_checkpoints_in_their_order(tmp_path: Path) -> None:
    adapters = family("independent", 3)
    run = tmp_path / "run"
    steps = [
        write_folder(run / f"checkpoint-{step}", one)
        for step, one in zip((1000, 200, 30), adapters, strict=True)
    ]
    (run / "logs").mkdir()
    # What a trainer leaves is no model, neither in the run nor as a step.
    (run / "training_args.bin").write_bytes(b"")
    (run / "checkpoint-40").mkdir()
    (run / "checkpoint-40" / "optimizer.pt").write_bytes(b"")
    asked = {"method": "ema", "decay": 0.5}
    whole = merged(merge_adapters([run], **asked))
    given = merged(merge_adapters([steps[2], steps[1], steps[0]], **asked))
    assert apart(whole, given) == 0.0
    assert apart(whole, merged(merge_adapters(steps, **asked))) > 0.1
    latest = merge_adapters([run], method="lawa", last=1)
    assert apart(merged(latest), dense(adapters[0])) <= 1e-12
    assert [row.name for row in latest.record.inputs] == [
        "checkpoint-30",
        "checkpoint-200",
        "checkpoint-1000",
    ]


def test_only_a_sequence_is_read_from_the_folder_of_a_run(tmp_path: Path) -> None:
    write_family(tmp_path / "run", family("independent", 2))
    with pytest.raises(AdapterError, match=r"run: .*adapter_config"):
        merge_adapters([tmp_path / "run"], method="average")


def test_both_forms_of_the_problem_have_one_mean(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 3))
    joint, nested = (
        merge_adapters(folders, [3, 2, 1], form=form, cost_tol=0.0, tol=1e-9) for form in ("joint", "nested")
    )
    assert joint.record.totals.cost == pytest.approx(nested.record.totals.cost, rel=1e-9)
    # The gradient bound, and what a Hessian near the identity makes of it.
    assert apart(merged(joint), merged(nested)) <= 1e-7
    assert joint.record.recipe["parameters"]["form"] == "joint"


def test_a_step_in_another_format_is_refused_and_not_left_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step, one in zip((1, 3), family("independent", 2), strict=True):
        write_folder(run / f"checkpoint-{step}", one)
    (run / "checkpoint-2").mkdir()
    (run / "checkpoint-2" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(AdapterError, match="checkpoint-2"):
        merge_adapters([run], method="swa")


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "nuslerp_rows"])
def test_two_models_are_one_where_the_other_has_no_weight(tmp_path: Path, method: str) -> None:
    one, other = family("independent", 2)
    weight = [{"filter": "layers.0.q", "value": 0.0}, {"value": 1.0}]
    raw = {
        "merge_method": method,
        "models": [
            {"model": str(folder), "parameters": said}
            for folder, said in zip(
                write_family(tmp_path, [one, other]), ({}, {"weight": weight}), strict=True
            )
        ],
        "parameters": {"rank": "sum"},
    }
    found = merged(collect(plan(make_recipe(raw))))
    alone = dense(one)["layers.0.q"]
    assert np.linalg.norm(found["layers.0.q"] - alone) <= 1e-12 * np.linalg.norm(alone)
    assert apart({"layers.0.v": found["layers.0.v"]}, {"layers.0.v": dense(one)["layers.0.v"]}) > 0.1


def test_slerp_takes_t_or_weights(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("independent", 2))
    with pytest.raises(NumericalError, match=r"layers.0.q: weights \[0.9, 0.1\] beside t 0.3"):
        merge_adapters(folders, [9, 1], method="slerp", t=0.3)


@pytest.mark.parametrize("method", ["ties_original", "knots_ties", "core_ties"])
def test_a_threshold_over_all_modules_needs_the_same_models_in_all(tmp_path: Path, method: str) -> None:
    """Two models count in each module, but not the same two."""
    there, elsewhere = (
        [{"filter": "layers.0.q", "value": first}, {"value": 1.0 - first}] for first in (1.0, 0.0)
    )
    weights = (there, elsewhere, 1.0)
    folders = write_family(tmp_path, family("independent", 3))
    models = [
        {"model": str(folder), "parameters": {"weight": weight}}
        for folder, weight in zip(folders, weights, strict=True)
    ]
    recipe = make_recipe({"merge_method": method, "models": models, "parameters": {"density": 0.5}})
    with pytest.raises(NumericalError, match=r"layers.0.v: other models count here than in layers.0.q"):
        collect(plan(recipe))


# --- a rank by energy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["average", "spectrum", "ties", "knots_ties"])
@pytest.mark.parametrize("share", ["60%", "90%", "auto"])
def test_a_share_as_rank_keeps_it_with_the_least_rank_of_each_module(
    tmp_path: Path, method: str, share: str
) -> None:
    """One method of each domain: inner products, cores, entries, halves."""
    folders = write_family(tmp_path, family("independent", 3))
    result = merge_adapters(folders, method=method, rank=share)
    whole = merge_adapters(folders, method=method, rank="sum")
    wanted = 0.95 if share == "auto" else float(share.removesuffix("%")) / 100
    for row in result.record.modules:
        sigma = whole.updates[row.module].singular_values()
        kept = sigma.square().cumsum(dim=0) / sigma.square().sum()
        assert row.rank is not None
        assert kept[row.rank - 1] >= wanted - 1e-12
        assert row.rank == 1 or kept[row.rank - 2] < wanted
        assert row.energy_kept is None or row.energy_kept == pytest.approx(float(kept[row.rank - 1]))
    result.save_pretrained(tmp_path / "out")
    back = read_adapter(tmp_path / "out")
    for module, update in result.updates.items():
        moved = back.update(module).dense() - update.dense()
        assert float(moved.norm()) < 1e-6 * update.norm()


@pytest.mark.parametrize("method", ["geomerge", "lowrank"])
def test_a_share_as_rank_is_refused_where_the_rank_comes_first(tmp_path: Path, method: str) -> None:
    with pytest.raises(RecipeError, match=rf"parameters.rank: 90%: {method} has one rank"):
        merge_adapters(write_family(tmp_path, family("close", 2)), method=method, rank="90%")


@pytest.mark.parametrize("rank", ["0%", "100%", "-5%", "most", "9 %"])
def test_a_rank_that_is_no_share_is_refused(tmp_path: Path, rank: str) -> None:
    with pytest.raises(RecipeError, match="'auto' or a share such as '95%'"):
        merge_adapters(write_family(tmp_path, family("close", 2)), method="average", rank=rank)
