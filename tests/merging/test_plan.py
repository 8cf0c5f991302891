"""What a plan refuses, and what it knows, before the first tensor is read."""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint import Checkpoint
from riemerge.merging.inputs import Inputs
from riemerge.merging.plan import plan
from riemerge.merging.run import run
from riemerge.merging.sinks import write
from riemerge.merging.verbs import merge_into
from riemerge.methods import Method, find_method
from riemerge.recipes.recipe import Recipe, make_recipe
from riemerge.statistics import collect_statistics
from tests.folders import SHAPES, family, merge_adapters, write_family
from tests.helpers import seeded
from tests.merging.merges import (
    F64,
    World,
    merge,
    recipe_of,
    run_command,
    served,
    stored_factors,
    write_checkpoint,
)


def test_updates_of_different_rank_need_a_rank(tmp_path: Path) -> None:
    (a,), (b,) = family("close", 1, rank=4), family("close", 1, rank=2, seed=5)
    folders = write_family(tmp_path, [a, b])
    with pytest.raises(AdapterError) as caught:
        merge_adapters(folders)
    assert len(caught.value.problems) == len(SHAPES)
    assert "layers.0.q: the ranks differ (" in caught.value.problems[0]
    assert "--rank 2" in caught.value.problems[0]
    assert {u.rank for u in merge_adapters(folders, rank=2).updates.values()} == {2}


@pytest.mark.parametrize("method", ["geomerge", "lowrank"])
def test_a_share_as_rank_is_refused_where_the_rank_comes_first(tmp_path: Path, method: str) -> None:
    with pytest.raises(RecipeError, match=rf"parameters.rank: 90%: {method} has one rank"):
        merge_adapters(write_family(tmp_path, family("close", 2)), method=method, rank="90%")


@pytest.mark.parametrize("rank", ["0%", "100%", "-5%", "most", "9 %"])
def test_a_rank_that_is_no_share_is_refused(tmp_path: Path, rank: str) -> None:
    with pytest.raises(RecipeError, match="'auto' or a share such as '95%'"):
        merge_adapters(write_family(tmp_path, family("close", 2)), method="average", rank=rank)


def test_statistics_of_another_model_are_refused(world: World, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 8)).double()
    batch = torch.randn(4, 6, generator=seeded(0), dtype=F64)
    collect_statistics(
        module, [batch], lambda model, x: model(x).sum(dim=1), tmp_path / "data", kinds=["gram"]
    )
    with pytest.raises(AdapterError, match="none of them a weight of"):
        merge(tmp_path / "out", "regmean", world.models[:2], statistics=[tmp_path / "data"] * 2)
    with pytest.raises(AdapterError, match="has no statistics of 2 of 2 modules"):
        merge(
            tmp_path / "out", "regmean", world.models[:2], statistics=[world.statistics[0], tmp_path / "data"]
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["average", "lowrank"])
def test_a_rank_above_that_of_every_module_is_refused(tmp_path: Path, method: str) -> None:
    folders = served(tmp_path)
    ran = run_command("merge", *folders, "--method", method, "-o", tmp_path / "out", "--rank", "13")
    assert ran.exit_code == 3
    assert "parameters.rank: 13: no module has a rank above 12: give at most that" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_rank_that_is_stored_may_be_asked_for(tmp_path: Path) -> None:
    """It may be above what dW can have; the inputs have it all the same."""
    modules = {
        module: (torch.ones(m, 14).double(), torch.ones(14, n).double()) for module, (m, n) in SHAPES.items()
    }
    folders = write_family(tmp_path, [modules, modules])
    ran = run_command("merge", *folders, "--method", "average", "-q", "-o", tmp_path / "out", "--rank", "14")
    assert ran.exit_code == 0, ran.stderr
    assert {a.shape[0] for _, a in stored_factors(tmp_path / "out").values()} == {14}


# --- modules that some adapters lack ------------------------------------------------------------------------


def lacking(root: Path, count: int = 3, rank: int = 3) -> list[Path]:
    """Adapters of which the last lacks the last module."""
    *whole, last = family("close", count, rank=rank)
    return write_family(root, [*whole, {name: last[name] for name in list(SHAPES)[:-1]}])


def test_the_weights_of_those_that_have_a_module_count_in_proportion(tmp_path: Path) -> None:
    folders, weights = lacking(tmp_path), [0.5, 1.0, 2.5]
    *others, last = SHAPES
    for method, whole in (("average", 1.0), ("cat", 4.0)):
        planned = plan(recipe_of(method, folders, weights, top={"missing": "skip"}))
        there = dict(zip(planned.stack.names, planned.stack.weights(last), strict=True))
        assert there == pytest.approx({"a": whole / 3, "b": whole * 2 / 3, "c": 0.0})
        assert sum(planned.stack.weights(others[0])) == pytest.approx(whole)
        zero = plan(recipe_of(method, folders, weights, top={"missing": "zero"}))
        assert zero.stack.weights(last) == zero.stack.weights(others[0])


@pytest.mark.parametrize("weights", [[1.0, -1.0, 2.0], [1.0, -2.0, 3.0], [1.0, 1.0, -2.0]])
def test_weights_that_cannot_stand_for_all_are_refused(tmp_path: Path, weights: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"missing: skip: layers.1.q: the weights .* --missing zero"):
        plan(recipe_of("cat", lacking(tmp_path), weights, top={"missing": "skip"}))
    plan(recipe_of("cat", lacking(tmp_path / "again"), weights, top={"missing": "zero"}))


def test_a_module_in_which_only_weights_of_zero_are_left_is_refused(tmp_path: Path) -> None:
    own = [[{"filter": "layers.1.q", "value": 0.0}, {"value": 1.0}]] * 2
    with pytest.raises(RecipeError, match=r"missing: skip: layers.1.q: "):
        plan(recipe_of("average", lacking(tmp_path), [*own, 1.0], top={"missing": "skip"}))


def test_statistics_are_needed_where_an_adapter_takes_part(world: World, tmp_path: Path) -> None:
    shapes = {"layers.0": (8, 6), "layers.1": (5, 8)}
    one, two = family("close", 2, shapes=shapes)
    folders = write_family(tmp_path, [one, {"layers.0": two["layers.0"]}])
    model = nn.Sequential(OrderedDict(layers=nn.Sequential(nn.Linear(6, 8)))).double()
    batch = torch.randn(4, 6, generator=seeded(0), dtype=F64)
    collect_statistics(
        model, [batch], lambda model, x: model(x).sum(dim=1), tmp_path / "data", kinds=["gram"]
    )
    data = [world.statistics[0], tmp_path / "data"]
    planned = plan(recipe_of("regmean", folders, statistics=data, top={"missing": "skip"}))
    assert planned.inputs.skipped.keys() == {"layers.1"}
    # An update of zeros changes nothing that its model does there, which the data still say.
    with pytest.raises(AdapterError, match=r"has no statistics of 1 of 2 modules .*: layers\.1"):
        plan(recipe_of("regmean", folders, statistics=data, top={"missing": "zero"}))


@pytest.mark.parametrize("missing", ["zero", "skip"])
def test_what_lacks_a_module_has_no_rank_there(tmp_path: Path, missing: str) -> None:
    folders = lacking(tmp_path)
    result = merge_adapters(folders, missing=missing, max_passes=3)
    assert {update.rank for update in result.updates.values()} == {3}
    assert result.record.modules[-1].numerical_ranks == (3, 3, 0)
    assert result.record.modules[-1].input_ranks == (3, 3, 0)
    assert not any("all zero" in warning for warning in result.record.warnings)
    with pytest.raises(RecipeError, match="c has less in 2 of 2 modules"):
        merge_adapters(folders, missing=missing, rank=4)
    whole = merge_adapters(folders, missing=missing, method="average", rank="sum")
    assert [whole.updates[module].rank for module in SHAPES] == [9, 9, 6 + (missing == "zero")]


# --- what a plan is -----------------------------------------------------------------------------------------


def recipes(world: World, folders: list[Path]) -> dict[str, Recipe]:
    """A recipe of adapters, of a delta and of checkpoints."""
    return {
        "adapter": recipe_of("average", folders),
        "delta": recipe_of("average", folders, out_type="delta"),
        "checkpoint": recipe_of("ties", world.models, base=world.base),
    }


KINDS = pytest.mark.parametrize("kind", ["adapter", "delta", "checkpoint"])


@KINDS
def test_a_plan_is_frozen_and_reads_no_tensor(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    recipe = recipes(world, write_family(tmp_path, family("close", 2)))[kind]
    read: list[str] = []

    def watch(of: type, name: str) -> None:
        original = getattr(of, name)

        def reading(self: object, module: str, **how: Any) -> Any:
            read.append(module)
            return original(self, module, **how)

        monkeypatch.setattr(of, name, reading)

    watch(Adapter, "update")
    watch(Checkpoint, "tensor")
    planned = plan(recipe, folder=tmp_path / "out")
    assert read == []
    assert planned.out_type == kind
    assert not (tmp_path / "out").exists()
    for field in fields(planned):
        with pytest.raises(FrozenInstanceError):
            setattr(planned, field.name, None)
    # What would have been counted is counted when it happens.
    run(planned, lambda _, __: None)
    assert {*read} == {*planned.inputs.modules}


@KINDS
def test_the_method_is_looked_up_once_from_plan_to_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Wherever a module of the package names `find_method`; the recipe is made before."""
    recipe = recipes(world, write_family(tmp_path, family("close", 2)))[kind]
    names: list[str] = []

    def looking(name: str) -> Method:
        names.append(name)
        return find_method(name)

    for module in [*sys.modules.values()]:
        if module.__name__.startswith("riemerge") and getattr(module, "find_method", None) is find_method:
            monkeypatch.setattr(module, "find_method", looking)
    write(plan(recipe, folder=tmp_path / "out"), tmp_path / "out")
    assert len(names) == 1
    assert {*names} == {recipe.merge_method}


def test_a_filter_may_name_a_tensor_of_integers(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(2, 2), "b_ids": torch.tensor([1, 2])}
    models = [write_checkpoint(tmp_path / name, tensors) for name in ("one", "two")]
    weight = [{"filter": "b_ids", "value": 2.0}, {"value": 1.0}]
    entries = [{"model": str(model), "parameters": {"weight": weight}} for model in models]
    record = merge_into(make_recipe({"merge_method": "average", "models": entries}), tmp_path / "out").record
    assert [row.module for row in record.modules] == ["a.weight"]


def test_checkpoints_of_integers_alone_are_copied(tmp_path: Path) -> None:
    models = [write_checkpoint(tmp_path / name, {"ids": torch.tensor([1, 2])}) for name in ("one", "two")]
    recipe = make_recipe({"merge_method": "average", "models": [{"model": str(model)} for model in models]})
    record = merge_into(recipe, tmp_path / "out").record
    assert record.modules == ()
    assert load_file(tmp_path / "out" / "model.safetensors")["ids"].tolist() == [1, 2]


def test_a_word_that_no_solver_has_is_refused_before_a_model_is_opened(tmp_path: Path) -> None:
    recipe = make_recipe(
        {
            "merge_method": "geomerge",
            "models": [{"model": str(tmp_path / name)} for name in ("one", "two")],
            "parameters": {"solver": "typo"},
        }
    )
    with pytest.raises(RecipeError, match="unknown solver 'typo'"):
        plan(recipe)


@pytest.mark.parametrize(("kept", "reads"), [(2**29, 1), (0, 2)])
def test_a_matched_scale_reads_each_module_once_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, reads: int
) -> None:
    folders, seen = write_family(tmp_path, family("close", 3)), list[str]()
    read = Inputs.read

    def watch(inputs: Inputs, module: str, *where: Any) -> Any:
        seen.append(module)
        return read(inputs, module, *where)

    monkeypatch.setattr(Inputs, "read", watch)
    monkeypatch.setattr(f"{plan.__module__}._KEPT", kept)
    merged = merge_adapters(folders, method="average", scale="matched")
    assert sorted(seen) == sorted(reads * list(merged.updates))
