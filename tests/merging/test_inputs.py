"""Models as a recipe names them: opened together, told apart, put in order; what does not fit is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.dialects import read_adapter
from riemerge.merging.inputs import display_names
from riemerge.merging.plan import plan
from riemerge.merging.sinks import collect
from tests.folders import family, merge_adapters, write_family, write_folder
from tests.merging.merges import (
    EVERY_DOMAIN,
    F64,
    INDEX,
    ONE,
    TENSORS,
    World,
    apart,
    dense,
    merge,
    merge_delta,
    merged,
    recipe_of,
    run_command,
    write_checkpoint,
)


def changed(world: World, folder: Path, **tensors: Tensor | None) -> Path:
    """The second model with other tensors in place of some of its own."""
    named = {name.replace("__", "."): x for name, x in tensors.items()}
    kept = {name: x for name, x in {**world.tensors[2], **named}.items() if x is not None}
    return write_checkpoint(folder, kept)


@EVERY_DOMAIN
def test_alpha_and_fan_in_enter_exactly(tmp_path: Path, method: str) -> None:
    adapters = family("close", 2)
    plain = merge_adapters(write_family(tmp_path / "plain", adapters), method=method)
    scaled = merge_adapters(write_family(tmp_path / "scaled", adapters, lora_alpha=6), method=method)
    assert apart(merged(scaled), {m: 2.0 * w for m, w in merged(plain).items()}) <= 1e-12


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


def test_names_tell_folders_apart() -> None:
    assert display_names(["x/a", "y/a", "y/b"]) == ("x/a", "y/a", "b")
    assert display_names(["a"]) == ("a",)
    assert display_names(["x/a/m", "y/a/m", "y/b/m"]) == ("x/a/m", "y/a/m", "b/m")


def test_names_are_read_under_other_prefixes_however_often_they_are_opened(tmp_path: Path) -> None:
    one, two = family("close", 2)
    plain = merge_adapters(write_family(tmp_path / "plain", [one, two]), method="average")
    inner = {f"layers.{module}": factors for module, factors in two.items()}
    folders = [write_folder(tmp_path / "a", one), write_folder(tmp_path / "b", inner)]
    recipe = recipe_of("average", folders, top={"rename": {"layers.layers.": "layers."}})
    planned = plan(recipe)
    # A study plans with what it has opened before: that is not renamed again.
    result = collect(plan(recipe, opened=planned.models))
    assert apart(merged(result), merged(plain)) <= 1e-14  # in another order
    assert planned.resolved["rename"] == {"layers.layers.": "layers."}
    words = ("--method", "average", "--rename", "layers.layers.=layers.", "-q", "-o", tmp_path / "out")
    assert run_command("merge", *folders, *words).exit_code == 0
    assert set(read_adapter(tmp_path / "out").modules) == set(one)


def test_names_of_a_wrapped_model_are_refused_with_the_option_that_unwraps_them(tmp_path: Path) -> None:
    one, two = family("close", 2)
    wrapped = [{f"_orig_mod.{module}": factors for module, factors in each.items()} for each in (one, two)]
    folders = write_family(tmp_path, wrapped)
    with pytest.raises(AdapterError) as caught:
        merge_adapters(folders, method="average")
    for path, problem in zip(folders, caught.value.problems, strict=True):
        assert problem.startswith(f"{path}: was saved from a model that torch.compile or FSDP had wrapped")
        assert "--rename _orig_mod.= reads" in problem
    plain = write_family(tmp_path / "plain", [one, two])
    for some in (folders, [folders[0], plain[1]]):
        right = {module: (dense(one)[module] + dense(two)[module]) / 2 for module in one}
        whole = merge_adapters(some, method="average", rename={"_orig_mod.": ""}, rank="sum")
        assert apart(merged(whole), right) <= 1e-12
    inside = {f"layers._orig_mod.{module}": factors for module, factors in one.items()}
    with pytest.raises(AdapterError, match="save it unwrapped"):
        merge_adapters([write_folder(tmp_path / "inside", inside)])


def test_a_prefix_that_no_module_has_is_refused(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    with pytest.raises(RecipeError, match=r"rename: model\.: no module of any adapter begins so: they are"):
        merge_adapters(folders, rename={"model.": "", "layers.": "x."})


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, None),
        ({"base_name": "my/base"}, None),
        ({"same_base": True}, "acme/pico"),
        ({"same_base": True, "base_name": "my/base"}, "my/base"),
    ],
)
def test_the_result_names_one_base_model(tmp_path: Path, asked: dict[str, Any], name: str | None) -> None:
    bases = ("/models/other", "", "acme/pico")
    folders = [
        write_folder(tmp_path / "abc"[i], one, base_model_name_or_path=base)
        for i, (one, base) in enumerate(zip(family("close", 3), bases, strict=True))
    ]
    if name is None:
        with pytest.raises(
            AdapterError, match=r"base_model_name_or_path differs: /models/other in .*--same-"
        ):
            merge_adapters(folders, method="average", **asked)
        return
    result = merge_adapters(folders, method="average", **asked)
    result.save_pretrained(tmp_path / "out")
    assert read_adapter(tmp_path / "out").config.base_model_name_or_path == name
    assert result.record.base_model == name
    assert result.record.recipe == {**result.record.recipe, **asked}
    (warning,) = result.record.warnings
    assert "other (a local folder), acme/pico: taken as one base model" in warning
    for text in ((tmp_path / "out" / name).read_text() for name in ("README.md", "riemerge.json")):
        assert "/models/other" not in text


def test_an_empty_name_is_none(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2), base_model_name_or_path="")
    merge_adapters(folders, method="average").save_pretrained(tmp_path / "out")
    assert read_adapter(tmp_path / "out").config.base_model_name_or_path is None


@pytest.mark.parametrize(
    "field", [{"same_base": True}, {"rename": {"a.": "b."}}, {"missing": "zero"}, {"missing": "skip"}]
)
def test_what_is_said_of_adapters_is_refused_of_checkpoints(
    world: World, tmp_path: Path, field: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match=f"{next(iter(field))}: is for adapters, and these are full check"):
        merge(tmp_path / "out", "average", world.models, top=field)
    named = merge(tmp_path / "out", "average", world.models, top={"base_name": "my/base"})
    assert named.record.base_model == "my/base"


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
    asked: dict[str, Any] = {"method": "ema", "decay": 0.5}
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


def test_a_step_in_another_format_is_refused_and_not_left_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step, one in zip((1, 3), family("independent", 2), strict=True):
        write_folder(run / f"checkpoint-{step}", one)
    (run / "checkpoint-2").mkdir()
    (run / "checkpoint-2" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(AdapterError, match="checkpoint-2"):
        merge_adapters([run], method="swa")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"steps": torch.tensor([3, 1, 5])}, ["steps: holds torch.int64 that differ"]),
        ({"mask": torch.tensor([True, True])}, ["mask: holds torch.bool that differ"]),
        ({"steps": torch.tensor([3, 1, 4], dtype=torch.int32)}, ["steps: the dtype differs"]),
        ({"layers__0__bias": torch.zeros(9, dtype=F64)}, ["layers.0.bias: the shape differs", "9 in"]),
        ({"layers__0__bias": None}, ["lacks 1 of 9 tensors", "layers.0.bias"]),
        ({"more": torch.zeros(1)}, ["lacks 1 of 10 tensors", "more"]),
        ({"conv__weight": torch.full((3, 2, 2, 2), torch.nan, dtype=F64)}, ["conv.weight", "NaN"]),
    ],
)
@pytest.mark.parametrize("name", ["average", "ties_original"])
def test_models_that_do_not_fit_are_named_and_nothing_is_written(
    world: World, tmp_path: Path, name: str, tensors: dict[str, Tensor], says: list[str]
) -> None:
    odd = changed(world, tmp_path / "odd", **tensors)
    with pytest.raises(AdapterError) as caught:
        merge(tmp_path / "out", name, [world.models[0], odd], base=world.base)
    assert all(text in str(caught.value) for text in says)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


def test_requests_that_make_no_sense_for_checkpoints(world: World, tmp_path: Path) -> None:
    (factors,) = family("close", 1)
    adapter, link = write_folder(tmp_path / "adapter", factors), tmp_path / "link"
    link.symlink_to(world.models[1])
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("task_arithmetic", {}, "base_model: missing: task_arithmetic merges what each model changed"),
        ("tsv", {}, "base_model: missing"),
        ("cat", {"base": world.base}, "merge_method: cat merges adapters only"),
        ("geomerge", {}, "merge_method: geomerge merges adapters only"),
        ("average", {"scale": 0.5}, "parameters.scale: scales the merged update, which needs base_model"),
        ("average", {"rank": 4, "base": world.base}, "parameters.rank: full checkpoints are not cut"),
        (
            "average",
            {"top": {"out_type": "delta"}},
            "out_type: delta: full checkpoints merge to a checkpoint",
        ),
        ("average", {"top": {"out_type": "adapter"}}, "out_type: adapter: full checkpoints"),
        (
            "average",
            {"models": [world.models[0], adapter]},
            f"{world.models[0]}: full checkpoints, the others",
        ),
        ("median", {"base": link}, "is the base_model itself"),
        ("regmean", {}, "no statistics: regmean needs those of every model"),
    ]
    for method, said, says in cases:
        with pytest.raises(RecipeError) as caught:
            merge(tmp_path / "out", method, **{"models": world.models[:2], **said})
        assert says in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "link"}


@pytest.mark.parametrize(
    ("method", "asked", "says"),
    [
        ("average", {"out_type": "checkpoint"}, "out_type: checkpoint: adapters merge to"),
        (
            "average",
            {"top": {"base_model": "other/b"}},
            "base_model: other/b: the adapters name somebody/base",
        ),
        ("ties", {"rank": 2}, "parameters.rank: out_type delta writes the whole dW"),
        ("average", {"rank": 2}, "parameters.rank: out_type delta writes the whole dW"),
    ],
)
def test_requests_that_make_no_sense(tmp_path: Path, method: str, asked: dict[str, Any], says: str) -> None:
    folders = write_family(tmp_path / "in", family("close", 2))
    with pytest.raises(RecipeError) as caught:
        merge_delta(tmp_path / "out", method, folders, **asked)
    assert says in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("rank", [2, "90%", "auto"])
def test_a_delta_has_no_rank_to_be_cut_to(tmp_path: Path, rank: int | str) -> None:
    folders = write_family(tmp_path, family("independent", 2))
    with pytest.raises(RecipeError, match="out_type delta writes the whole dW"):
        merge_delta(tmp_path / "out", "average", folders, rank=rank)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out_type", ["delta", "checkpoint"])
def test_what_has_no_rank_has_no_uniform_one(tmp_path: Path, out_type: str) -> None:
    folders: Sequence[Path] = write_family(tmp_path, family("close", 2))
    if out_type == "checkpoint":
        folders = [folder / "model.safetensors" for folder in folders]
        for folder in folders:
            save_file({"norm.weight": torch.ones(3)}, folder)
    with pytest.raises(RecipeError, match=r"uniform_rank: .* no rank: leave it out"):
        merge(tmp_path / "out", "average", folders, out_type=out_type, top={"uniform_rank": True})


def test_every_broken_checkpoint_is_reported(world: World, tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path / name, world.tensors[1]) for name in "ab"]
    (folders[0] / ONE).write_bytes(b"no tensors")
    (folders[1] / ONE).unlink()
    (folders[1] / INDEX).write_text("{}")
    with pytest.raises(AdapterError) as caught:
        merge(tmp_path / "out", "average", [*folders, world.models[0]])
    for folder in folders:
        assert any(str(folder) in problem for problem in caught.value.problems)
    assert not any(str(world.models[0]) in problem for problem in caught.value.problems)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_for_adapters_is_left_out_and_said(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    top = {"tokenizer": "union", "chat_template": "chatml"}
    record = merge(tmp_path / "out", "average", folders, top=top).record
    for key in top:
        assert f"{key}: left out: it is for full checkpoints, and adapters have none" in record.warnings
