"""Flat means, against dense numpy; and what factors give is what dense updates give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from riemerge.errors import NumericalError
from riemerge.formats.dialects import read_adapter
from riemerge.merging.plan import plan
from riemerge.merging.sinks import collect
from riemerge.methods import METHODS
from tests.folders import SHAPES, family, merge_adapters, write_family
from tests.helpers import seeded
from tests.merging.merges import (
    DELTA_WEIGHTS,
    F64,
    ONE,
    apart,
    deficient_family,
    dense,
    density_of,
    matrices,
    merge,
    merge_delta,
    merged,
    recipe_of,
    write_checkpoint,
)


@pytest.mark.parametrize(("method", "total"), [("average", 6.0), ("task_arithmetic", 1.0)])
def test_weighted_sums_are_exact(tmp_path: Path, method: str, total: float) -> None:
    adapters = family("independent", 3)
    weights = [3.0, 2.0, 1.0]
    result = merge_adapters(write_family(tmp_path, adapters), weights, method=method, rank="sum")
    scaled = [(weight / total, dense(one)) for weight, one in zip(weights, adapters, strict=True)]
    expected = {module: sum((w * x[module] for w, x in scaled), np.zeros(())) for module in SHAPES}
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
    folders = write_family(tmp_path, [a, b])
    result = merge_adapters(folders, [1, -0.5], method="task_arithmetic", scale=2, rank="sum")
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
    assert apart(merged(result), {"q": sum((dense(one)["q"] for one in adapters), np.zeros(())) / 3}) <= 1e-14


def test_a_sum_takes_updates_of_any_rank(tmp_path: Path) -> None:
    adapters, _ = deficient_family()
    adapters[0]["layers.0.v"][0][:] = 0
    record = merge_adapters(write_family(tmp_path, adapters[:2]), method="average").record
    assert record.warnings == ()
    row = record.modules[1]
    assert (row.overlap, row.determined, row.relative_distances[0]) == (None, None, None)
    assert row.numerical_ranks is None


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


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "nuslerp_rows"])
def test_two_models_are_one_where_the_other_has_no_weight(tmp_path: Path, method: str) -> None:
    one, other = family("independent", 2)
    weight = [{"filter": "layers.0.q", "value": 0.0}, {"value": 1.0}]
    folders = write_family(tmp_path, [one, other])
    found = merged(collect(plan(recipe_of(method, folders, [1.0, weight], rank="sum"))))
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
    recipe = recipe_of(method, folders, weights, density=0.5)
    with pytest.raises(NumericalError, match=r"layers.0.v: other models count here than in layers.0.q"):
        collect(plan(recipe))


# --- dense updates ------------------------------------------------------------------------------------------

DOMAINS = {
    "weights": "average",
    "gram": "karcher",
    "cores": "tsv",
    "half": "knots_ties",
    "entries": "ties",
}


@pytest.mark.parametrize("domain", DOMAINS)
def test_what_adapters_merge_to_models_that_hold_them_merge_to(tmp_path: Path, domain: str) -> None:
    """Factors in one base model: a delta of adapters is what checkpoints base + dW change of the base."""
    name = DOMAINS[domain]
    assert METHODS[name].domain == domain
    folders = write_family(tmp_path, family("close", 3))
    asked = density_of(name)
    merge_delta(tmp_path / "delta", name, folders, DELTA_WEIGHTS, **asked)
    base = {
        f"{module}.weight": torch.randn(shape, generator=seeded(place), dtype=F64)
        for place, (module, shape) in enumerate(SHAPES.items())
    }
    models = [
        write_checkpoint(
            tmp_path / f"full {folder.name}",
            {f"{module}.weight": x + base[f"{module}.weight"] for module, x in matrices(folder).items()},
        )
        for folder in folders
    ]
    world = write_checkpoint(tmp_path / "base", base)
    merge(tmp_path / "full", name, models, DELTA_WEIGHTS, base=world, **asked)
    delta, full = (load_file(tmp_path / out / ONE) for out in ("delta", "full"))
    changed = {tensor: full[tensor] - base[tensor] for tensor in base}
    assert apart(dict(sorted(delta.items())), dict(sorted(changed.items()))) <= 1e-6
