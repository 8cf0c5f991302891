"""What is written: adapters, whole deltas and checkpoints, with their records, all or nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from riemerge.errors import NumericalError, OutputError
from riemerge.merging.plan import plan
from riemerge.merging.sinks import collect
from riemerge.methods import METHODS
from riemerge.methods.method import SUMS
from riemerge.recipes.recipe import read_recipe
from riemerge.records.run_record import RunRecord
from tests.folders import SHAPES, family, merge_adapters, write_family, write_folder
from tests.merging.merges import (
    CERTAIN,
    DELTA_WEIGHTS,
    EVERY_DOMAIN,
    INDEX,
    ONE,
    PREFIX,
    RECORD,
    TENSOR_SHAPES,
    TENSORS,
    World,
    adapter_bytes,
    checkpoint_bytes,
    count_of,
    delta_distance,
    density_of,
    distance,
    matrices,
    merge,
    merge_delta,
    merged,
    recipe_of,
    shares,
    weighted_mean,
    write_checkpoint,
)


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 20,
    }
    return BertModel(BertConfig(vocab_size=11, **sizes)).double()


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=12, n_layer=1, n_head=3))
    return model.double()


def sums(folder: Path) -> dict[str, str]:
    """The sha256 of all that lies in a folder, but for the record and the card."""
    files = [path for path in folder.iterdir() if path.name not in {RECORD, "README.md"}]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


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
    layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(2))
    base.layers = layers
    for module, (m, n) in SHAPES.items():
        _, place, name = module.split(".")
        setattr(layers[int(place)], name, torch.nn.Linear(n, m, bias=False))
    folders = write_family(tmp_path, family("close", 2), dtype=torch.float32)
    result = merge_adapters(folders, method=method)
    result.save_pretrained(tmp_path / "out")
    model = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    for module, w in merged(result).items():
        layer: Any = model.get_submodule(f"{PREFIX}{module}")
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
        RECORD,
    ]
    shutil.rmtree(tmp_path / "out")


def test_the_output_may_not_touch_an_input(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    result = merge_adapters(folders)
    for target in (folders[0], folders[0] / "inside", tmp_path):
        with pytest.raises(OutputError):
            result.save_pretrained(target)


def test_what_is_written_can_be_made_again_from_its_own_card(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("mix", 3))
    merge_adapters(folders, [0.5, 0.25, 0.25], rank=2, scale=1.5).save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "recipe.yaml").write_text(card.split("```yaml\n")[1].split("```")[0])

    collect(plan(read_recipe([str(tmp_path / "recipe.yaml")]))).save_pretrained(tmp_path / "again")
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(tmp_path / "out")


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
        "base_model_relation": "adapter",
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


def test_files_are_laid_out_as_they_like(world: World, tmp_path: Path) -> None:
    one, other = world.tensors[1:3]
    whole = merge(tmp_path / "whole", "average", world.models[:2], base=world.base)
    sharded = [write_checkpoint(tmp_path / "a", one, 3), write_checkpoint(tmp_path / "b", other, 2)]
    merge(tmp_path / "sharded", "average", sharded, base=world.base)
    merge(tmp_path / "files", "average", [path / ONE for path in world.models[:2]], base=world.base / ONE)
    # Of two models the sum does not depend on the order, which follows from the bytes of the files.
    assert (
        checkpoint_bytes(tmp_path / "sharded")
        == checkpoint_bytes(tmp_path / "files")
        == checkpoint_bytes(tmp_path / "whole")
    )
    assert json.loads((tmp_path / "sharded" / "config.json").read_text()) == {"of": "0"}
    assert not (tmp_path / "files" / "config.json").exists()
    assert whole.rounding == 0.0
    pieces = tmp_path / "pieces"
    merge(pieces, "average", sharded[:1], shard_bytes=100)
    placed = json.loads((pieces / INDEX).read_text())["weight_map"]
    assert set(placed) == {*one}
    assert len(set(placed.values())) > 3
    for name, place in placed.items():
        assert torch.equal(load_file(pieces / place)[name], one[name])
    assert json.loads((pieces / "config.json").read_text()) == {"of": "a"}


def test_the_widest_dtype_is_written_or_the_one_asked_for(world: World, tmp_path: Path) -> None:
    dtypes = (torch.bfloat16, torch.float32, torch.bfloat16)
    models = [
        write_checkpoint(
            tmp_path / str(i), {name: x.to(dtype) if name in TENSOR_SHAPES else x for name, x in one.items()}
        )
        for i, (one, dtype) in enumerate(zip(world.tensors[1:], dtypes, strict=True))
    ]
    for out, order in (("one", models), ("other", models[::-1]), ("narrow", models[::2])):
        merge(tmp_path / out, "average", order)
    asked = merge(tmp_path / "asked", "average", models, top={"out_dtype": "float16"})
    found = {out: load_file(tmp_path / out / ONE) for out in ("one", "other", "narrow", "asked")}
    assert checkpoint_bytes(tmp_path / "other") == checkpoint_bytes(tmp_path / "one")
    for out, dtype in (("one", torch.float32), ("narrow", torch.bfloat16), ("asked", torch.float16)):
        assert {found[out][name].dtype for name in TENSOR_SHAPES} == {dtype}
        assert found[out]["steps"].dtype is torch.int64
    exact = {
        name: weighted_mean(torch.stack([load_file(path / ONE)[name].double() for path in models]), [1.0] * 3)
        for name in TENSOR_SHAPES
    }
    moved = distance({name: found["asked"][name].double() for name in TENSOR_SHAPES}, exact, exact)
    assert asked.rounding == pytest.approx(moved, rel=1e-9)
    assert 0 < moved <= torch.finfo(torch.float16).eps


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.domain in SUMS])
def test_a_combination_is_the_sum_of_whole_updates(tmp_path: Path, name: str) -> None:
    folders, weights = (
        write_family(tmp_path, family("mix", count_of(name))),
        shares(METHODS[name], DELTA_WEIGHTS),
    )
    whole = merge_adapters(folders, weights, method=name, rank="sum").updates
    merge_delta(tmp_path / "out", name, folders, weights)
    found = load_file(tmp_path / "out" / ONE)
    assert delta_distance(found, {module: update.dense() for module, update in whole.items()}) <= 1e-13
    for module in SHAPES:
        # The answer is in the span of the updates themselves.
        x = torch.stack([matrices(folder)[module].flatten() for folder in folders], dim=1)
        value = found[f"{module}.weight"].flatten()
        rest = value - x @ torch.linalg.lstsq(x, value.unsqueeze(1)).solution.squeeze(1)
        assert rest.norm() <= 1e-12 * value.norm()


@pytest.mark.parametrize("name", ["average", "task_arithmetic"])
def test_the_sum_by_hand(tmp_path: Path, name: str) -> None:
    folders = write_family(tmp_path, family("independent", 3))
    merge_delta(tmp_path / "out", name, folders, [2.0, 3.0, 5.0], scale=0.5)
    total = 10.0 if name == "average" else 1.0
    expected = {
        module: 0.5
        * sum(
            (w * matrices(f)[module] for w, f in zip((2.0, 3.0, 5.0), folders, strict=True)), torch.zeros(())
        )
        / total
        for module in SHAPES
    }
    assert delta_distance(load_file(tmp_path / "out" / ONE), expected) <= 1e-14


@pytest.mark.parametrize("name", CERTAIN)
def test_it_is_the_merge_of_the_same_matrices_as_checkpoints(tmp_path: Path, name: str) -> None:
    """Adapters go through their factors and joint spans, checkpoints through whole matrices."""
    adapters = write_family(tmp_path, family("close", count_of(name)))
    merge_delta(tmp_path / "delta", name, adapters, shares(METHODS[name], DELTA_WEIGHTS), **density_of(name))
    parts = {"base": {module: torch.zeros(shape).double() for module, shape in SHAPES.items()}}
    parts |= {f"full {folder.name}": matrices(folder) for folder in adapters}
    for part, whole in parts.items():
        (tmp_path / part).mkdir()
        named = {f"{module}.weight": x.contiguous() for module, x in whole.items()}
        save_file(named, tmp_path / part / ONE)
    merge_delta(
        tmp_path / "full",
        name,
        [tmp_path / f"full {folder.name}" for folder in adapters],
        shares(METHODS[name], DELTA_WEIGHTS),
        out_type="checkpoint",
        top={"base_model": str(tmp_path / "base")},
        **density_of(name),
    )
    found, full = (load_file(tmp_path / out / ONE) for out in ("delta", "full"))
    assert delta_distance(found, {module: full[f"{module}.weight"] for module in SHAPES}) <= 1e-9


@pytest.mark.parametrize("name", ["average", "ties"])
def test_shards_hold_the_same_in_any_number(tmp_path: Path, name: str) -> None:
    folders = write_family(tmp_path, family("close", 2))
    merge_delta(tmp_path / "one", name, folders)
    merge_delta(tmp_path / "many", name, folders, shard_bytes=10)
    whole = load_file(tmp_path / "one" / ONE)
    placed = json.loads((tmp_path / "many" / INDEX).read_text())["weight_map"]
    assert len({*placed.values()}) == len(placed) == len(SHAPES)
    assert {*placed} == {*whole}
    for tensor, place in placed.items():
        assert torch.equal(load_file(tmp_path / "many" / place)[tensor], whole[tensor])
    assert {path.name for path in (tmp_path / "one").iterdir()} == {ONE, RECORD, "README.md"}


@pytest.mark.parametrize("name", ["average", "ties"])
def test_the_dtype_is_that_of_the_inputs_or_what_was_asked(tmp_path: Path, name: str) -> None:
    folders = write_family(tmp_path, family("close", 2), dtype=torch.bfloat16)
    exact = merge_delta(tmp_path / "exact", name, folders, top={"out_dtype": "float64"})
    rounded = merge_delta(tmp_path / "out", name, folders)
    assert exact.rounding == 0.0
    found, full = (load_file(tmp_path / out / ONE) for out in ("out", "exact"))
    assert {one.dtype for one in found.values()} == {torch.bfloat16}
    assert all(torch.equal(found[tensor], full[tensor].bfloat16()) for tensor in full)
    assert 0 < rounded.rounding <= torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("base", "settings"),
    [
        (bert, {"target_modules": ["query", "intermediate.dense", "output.dense"], "use_rslora": True}),
        (gpt2, {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
    ],
)
def test_with_the_base_it_is_what_peft_merges_and_unloads(
    peft: ModuleType, tmp_path: Path, base: Any, settings: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, **settings)
    model = peft.get_peft_model(base(), config, adapter_name="one", autocast_adapter_dtype=False)
    model.add_adapter("two", config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    merge_delta(tmp_path / "out", "task_arithmetic", [tmp_path / "one", tmp_path / "two"])
    delta = load_file(tmp_path / "out" / ONE)
    before, after = base().state_dict(), model.merge_and_unload(adapter_names=["one", "two"]).state_dict()
    assert set(before) == set(after)
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(delta)
    for name, moved in delta.items():
        torch.testing.assert_close(before[name] + moved, after[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shard_bytes", [10, 10**9])
@pytest.mark.parametrize("kind", ["adapter", "delta", "checkpoint"])
def test_the_record_has_the_sha256_of_every_file(tmp_path: Path, kind: str, shard_bytes: int) -> None:
    folders = write_family(tmp_path, family("close", 2))
    if kind == "checkpoint":
        for folder in folders:
            named = {f"{module}.weight": x.contiguous() for module, x in matrices(folder).items()}
            shutil.rmtree(folder)
            folder.mkdir()
            save_file(named, folder / ONE)
            (folder / "config.json").write_text(folder.name)
    written = merge_delta(tmp_path / "out", "average", folders, out_type=kind, shard_bytes=shard_bytes)
    found = sums(tmp_path / "out")
    assert ({INDEX, "config.json"} & {*found}) == {
        *({INDEX} if shard_bytes == 10 and kind != "adapter" else ()),
        *({"config.json"} if kind == "checkpoint" else ()),
    }
    assert written.record.outputs == found
    assert RunRecord.model_validate_json((tmp_path / "out" / RECORD).read_bytes()) == written.record


def test_a_merge_in_memory_has_no_files_and_each_folder_its_own(tmp_path: Path) -> None:
    result = merge_adapters(write_family(tmp_path, family("close", 2)), method="average")
    assert result.record.outputs == {}
    result.save_pretrained(tmp_path / "out")
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["outputs"] == sums(tmp_path / "out")
    assert RunRecord.model_validate(record | {"outputs": {}}) == result.record


def test_results_that_are_rounded_have_no_exact_multiple(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    rounded = collect(plan(recipe_of("average", folders)), round_at_once=True)
    with pytest.raises(ValueError, match="expected exact ones"):
        rounded.save_multiple(tmp_path / "out", 2.0)
    assert not (tmp_path / "out").exists()


def test_what_the_dtype_cannot_hold_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    folders = write_family(tmp_path / "in", family("close", 2))
    with pytest.raises(NumericalError, match=r"layers\.0\.q\.weight: .* the largest torch\.float16"):
        merge_delta(
            tmp_path / "out", "average", folders, scale=1e7, top={"out_dtype": "float16"}, shard_bytes=1
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("out_type", ["adapter", "delta"])
def test_no_folder_is_overwritten(tmp_path: Path, out_type: str) -> None:
    folders = write_family(tmp_path, family("close", 2))
    for target in (folders[0], folders[0] / "inside"):
        with pytest.raises(OutputError):
            merge_delta(target, "average", folders, out_type=out_type)
    assert sorted(path.name for path in folders[0].iterdir()) == ["adapter_config.json", TENSORS]


def test_a_rank_of_all_is_the_whole_delta_and_a_mean_of_one_rank_keeps_its_own(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2, rank=3))
    merge_delta(tmp_path / "plain", "average", folders)
    merge_delta(tmp_path / "sum", "average", folders, rank="sum")
    assert (tmp_path / "plain" / ONE).read_bytes() == (tmp_path / "sum" / ONE).read_bytes()
    merge_delta(tmp_path / "mean", "geomerge", folders, rank=2)
    for value in load_file(tmp_path / "mean" / ONE).values():
        assert int(torch.linalg.matrix_rank(value, rtol=1e-9)) == 2


def test_a_delta_of_a_constrained_row_has_the_row_s_rank(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("independent", 3))
    merge_delta(tmp_path / "out", "lowrank", folders, rank=2)
    adapter = merge_adapters(folders, method="lowrank", rank=2)
    (file,) = (tmp_path / "out").glob("*.safetensors")
    for name, found in load_file(file).items():
        module = name.removesuffix(".weight")
        torch.testing.assert_close(found.double(), adapter.updates[module].dense(), rtol=1e-6, atol=1e-9)
