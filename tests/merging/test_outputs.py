"""Whole deltas of adapters, file to file: by dense algebra, by the merge of full matrices, by PEFT."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from riemerge import merge_adapters
from riemerge.errors import NumericalError, OutputError, RecipeError
from riemerge.merging.plan import plan
from riemerge.merging.sinks import Written, collect
from riemerge.merging.verbs import merge_into
from riemerge.methods import METHODS
from riemerge.recipes.recipe import make_recipe
from riemerge.records.run_record import RunRecord
from tests.fake_cuda import fake_cuda
from tests.folders import SHAPES, family, write_family

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
TENSORS, RECORD = "adapter_model.safetensors", "riemerge.json"
WEIGHTS = (0.5, 0.3, 0.2)
# One of each domain, of each kind of factored answer, with and without survey.
ROWS = ("geomerge", "average", "tsv", "core_ties", "knots_ties", "ties", "ties_original")
# Draws follow from the module's name, which is not that of its weight.
CERTAIN = [
    name
    for name, row in METHODS.items()
    if row.checkpoints != "no" and not row.statistics and "seed" not in row.parameters
]


def merge(
    out: Path,
    method: str,
    models: Sequence[Path],
    weights: Sequence[float] | None = None,
    *,
    out_type: str | None = "delta",
    device: str = "cpu",
    threads: int = 1,
    shard_bytes: int = 10**9,
    top: dict[str, Any] | None = None,
    **parameters: Any,
) -> Written:
    given = weights or [1.0] * len(models)
    recipe = {
        "merge_method": method,
        "models": [
            {"model": str(model), "parameters": {"weight": weight}}
            for model, weight in zip(models, given, strict=True)
        ],
        "parameters": parameters,
        "out_type": out_type,
        **(top or {}),
    }
    return merge_into(make_recipe(recipe), out, device=device, threads=threads, shard_bytes=shard_bytes)


def said(method: str) -> dict[str, float]:
    return {"density": 0.4} if "density" in METHODS[method].parameters else {}


def count(method: str) -> int:
    return METHODS[method].models[1] or 3


def weights_of(method: str) -> list[float]:
    return [1.0] * count(method) if METHODS[method].ordered else list(WEIGHTS[: count(method)])


def dense(folder: Path) -> dict[str, Tensor]:
    """DW of each module of our own folders, whose scale is 1."""
    x = load_file(folder / TENSORS)
    name = "base_model.model.{}.lora_{}.weight"
    return {module: x[name.format(module, "B")] @ x[name.format(module, "A")] for module in SHAPES}


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert set(found) == {f"{module}.weight" for module in expected}
    return max(
        float((found[f"{module}.weight"] - one).norm() / one.norm()) for module, one in expected.items()
    )


# --- what is written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.domain == "gram"])
def test_a_combination_is_the_sum_of_whole_updates(tmp_path: Path, name: str) -> None:
    folders = write_family(tmp_path, family("mix", count(name)))
    result = merge_adapters(folders, weights_of(name), method=name, rank="sum")
    merge(tmp_path / "out", name, folders, weights_of(name))
    found = load_file(tmp_path / "out" / ONE)
    assert apart(found, {module: update.dense() for module, update in result.updates.items()}) <= 1e-13
    for module in SHAPES:
        # The answer is in the span of the updates themselves.
        x = torch.stack([dense(folder)[module].flatten() for folder in folders], dim=1)
        value = found[f"{module}.weight"].flatten()
        rest = value - x @ torch.linalg.lstsq(x, value.unsqueeze(1)).solution.squeeze(1)
        assert rest.norm() <= 1e-12 * value.norm()


@pytest.mark.parametrize("name", ["average", "task_arithmetic"])
def test_the_sum_by_hand(tmp_path: Path, name: str) -> None:
    folders = write_family(tmp_path, family("independent", 3))
    merge(tmp_path / "out", name, folders, [2.0, 3.0, 5.0], scale=0.5)
    total = 10.0 if name == "average" else 1.0
    expected = {
        module: 0.5 * sum(w * dense(f)[module] for w, f in zip((2.0, 3.0, 5.0), folders, strict=True)) / total
        for module in SHAPES
    }
    assert apart(load_file(tmp_path / "out" / ONE), expected) <= 1e-14


@pytest.mark.parametrize("name", CERTAIN)
def test_it_is_the_merge_of_the_same_matrices_as_checkpoints(tmp_path: Path, name: str) -> None:
    """Adapters go through their factors and joint spans, checkpoints through whole matrices."""
    adapters = write_family(tmp_path, family("close", count(name)))
    merge(tmp_path / "delta", name, adapters, weights_of(name), **said(name))
    parts = {"base": {module: torch.zeros(shape).double() for module, shape in SHAPES.items()}}
    parts |= {f"full {folder.name}": dense(folder) for folder in adapters}
    for part, matrices in parts.items():
        (tmp_path / part).mkdir()
        named = {f"{module}.weight": x.contiguous() for module, x in matrices.items()}
        save_file(named, tmp_path / part / ONE)
    merge(
        tmp_path / "full",
        name,
        [tmp_path / f"full {folder.name}" for folder in adapters],
        weights_of(name),
        out_type="checkpoint",
        top={"base_model": str(tmp_path / "base")},
        **said(name),
    )
    found, full = (load_file(tmp_path / out / ONE) for out in ("delta", "full"))
    assert apart(found, {module: full[f"{module}.weight"] for module in SHAPES}) <= 1e-9


@pytest.mark.parametrize("name", ROWS)
def test_neither_order_threads_nor_device_change_a_bit(tmp_path: Path, name: str) -> None:
    folders = write_family(tmp_path / "in", family("close", 3))
    merge(tmp_path / "out", name, folders, WEIGHTS, **said(name))
    merge(tmp_path / "turned", name, folders[::-1], WEIGHTS[::-1], threads=3, **said(name))
    with fake_cuda():
        there = merge(tmp_path / "there", name, folders, WEIGHTS, device="cuda", **said(name))
    assert there.record.device == "cuda"
    first, *others = ((tmp_path / out / ONE).read_bytes() for out in ("out", "turned", "there"))
    assert others == [first, first]


@pytest.mark.parametrize("name", ROWS)
def test_the_record_has_the_norms_and_distances(tmp_path: Path, name: str) -> None:
    folders = write_family(tmp_path, family("close", 3))
    merge(tmp_path / "out", name, folders[::-1], WEIGHTS, scale=0.5, **said(name))
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    found = load_file(tmp_path / "out" / ONE)
    assert [row["name"] for row in record["inputs"]] == ["c", "b", "a"]
    assert [row["module"] for row in record["modules"]] == sorted(SHAPES)
    for row in record["modules"]:
        x = [dense(folder)[row["module"]] for folder in folders[::-1]]
        value = found[row["module"] + ".weight"]
        assert tuple(row["shape"]) == SHAPES[row["module"]]
        assert (row["rank"] is None) == (METHODS[name].domain == "entries")
        assert row["energy_kept"] is None
        assert row["norm"] == pytest.approx(float(value.norm()), rel=1e-12)
        assert row["input_norms"] == pytest.approx([float(one.norm()) for one in x], rel=1e-12)
        gaps = [float((value - one).norm() / one.norm()) for one in x]
        assert row["relative_distances"] == pytest.approx(gaps, rel=1e-7)  # half of the digits


@pytest.mark.parametrize("name", ["average", "ties"])
def test_shards_hold_the_same_in_any_number(tmp_path: Path, name: str) -> None:
    folders = write_family(tmp_path, family("close", 2))
    merge(tmp_path / "one", name, folders)
    merge(tmp_path / "many", name, folders, shard_bytes=10)
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
    exact = merge(tmp_path / "exact", name, folders, top={"out_dtype": "float64"})
    rounded = merge(tmp_path / "out", name, folders)
    assert exact.rounding == 0.0
    found, full = (load_file(tmp_path / out / ONE) for out in ("out", "exact"))
    assert {one.dtype for one in found.values()} == {torch.bfloat16}
    assert all(torch.equal(found[tensor], full[tensor].bfloat16()) for tensor in full)
    assert 0 < rounded.rounding <= torch.finfo(torch.bfloat16).eps / 2


# --- PEFT ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what third parties deprecate while they are imported is not ours
        pytest.importorskip("transformers")
        return pytest.importorskip("peft")  # type: ignore[no-any-return]


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    return BertModel(BertConfig(vocab_size=11, **sizes)).double()


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=12, n_layer=1, n_head=3))
    return model.double()  # type: ignore[no-any-return]


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
    merge(tmp_path / "out", "task_arithmetic", [tmp_path / "one", tmp_path / "two"])
    delta = load_file(tmp_path / "out" / ONE)
    before, after = base().state_dict(), model.merge_and_unload(adapter_names=["one", "two"]).state_dict()
    assert set(before) == set(after)
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(delta)
    for name, moved in delta.items():
        torch.testing.assert_close(before[name] + moved, after[name], rtol=1e-12, atol=1e-12)


# --- what the record says of the files ----------------------------------------------------------------------


def sums(folder: Path) -> dict[str, str]:
    """The sha256 of all that lies in a folder, but for the record and the card."""
    files = [path for path in folder.iterdir() if path.name not in {RECORD, "README.md"}]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("shard_bytes", [10, 10**9])
@pytest.mark.parametrize("kind", ["adapter", "delta", "checkpoint"])
def test_the_record_has_the_sha256_of_every_file(tmp_path: Path, kind: str, shard_bytes: int) -> None:
    folders = write_family(tmp_path, family("close", 2))
    if kind == "checkpoint":
        for folder in folders:
            named = {f"{module}.weight": x.contiguous() for module, x in dense(folder).items()}
            shutil.rmtree(folder)
            folder.mkdir()
            save_file(named, folder / ONE)
            (folder / "config.json").write_text(folder.name)
    written = merge(tmp_path / "out", "average", folders, out_type=kind, shard_bytes=shard_bytes)
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
    recipe = make_recipe({"merge_method": "average", "models": [{"model": str(one)} for one in folders]})
    rounded = collect(plan(recipe), round_at_once=True)
    with pytest.raises(ValueError, match="expected exact ones"):
        rounded.save_multiple(tmp_path / "out", 2.0)
    assert not (tmp_path / "out").exists()


# --- all or nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_type", ["adapter", "delta"])
def test_modules_without_an_answer_are_named_and_nothing_is_written(tmp_path: Path, out_type: str) -> None:
    one, other = family("close", 2)
    for module in ("layers.0.v", "layers.1.q"):
        other[module] = (-one[module][0], one[module][1])
    folders = write_family(tmp_path / "in", [one, other])
    with pytest.raises(NumericalError) as caught:
        merge(tmp_path / "out", "karcher", folders, out_type=out_type, shard_bytes=1)
    assert [text.split(":")[0] for text in caught.value.problems] == ["layers.0.v", "layers.1.q"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_the_dtype_cannot_hold_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    folders = write_family(tmp_path / "in", family("close", 2))
    with pytest.raises(NumericalError, match=r"layers\.0\.q\.weight: .* the largest torch\.float16"):
        merge(tmp_path / "out", "average", folders, scale=1e7, top={"out_dtype": "float16"}, shard_bytes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("method", "asked", "says"),
    [
        ("average", {"out_type": "checkpoint"}, "out_type: checkpoint: adapters merge to"),
        ("average", {"top": {"base_model": "base"}}, "base_model: the base model is not needed"),
        ("ties", {"rank": 2}, "parameters.rank: out_type delta writes the whole dW"),
        ("average", {"rank": 2}, "parameters.rank: out_type delta writes the whole dW"),
    ],
)
def test_requests_that_make_no_sense(tmp_path: Path, method: str, asked: dict[str, Any], says: str) -> None:
    folders = write_family(tmp_path / "in", family("close", 2))
    with pytest.raises(RecipeError) as caught:
        merge(tmp_path / "out", method, folders, **asked)
    assert says in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("out_type", ["adapter", "delta"])
def test_no_folder_is_overwritten(tmp_path: Path, out_type: str) -> None:
    folders = write_family(tmp_path, family("close", 2))
    for target in (folders[0], folders[0] / "inside"):
        with pytest.raises(OutputError):
            merge(target, "average", folders, out_type=out_type)
    assert sorted(path.name for path in folders[0].iterdir()) == ["adapter_config.json", TENSORS]


def test_a_rank_of_all_is_the_whole_delta_and_a_mean_of_one_rank_keeps_its_own(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2, rank=3))
    merge(tmp_path / "plain", "average", folders)
    merge(tmp_path / "sum", "average", folders, rank="sum")
    assert (tmp_path / "plain" / ONE).read_bytes() == (tmp_path / "sum" / ONE).read_bytes()
    merge(tmp_path / "mean", "geomerge", folders, rank=2)
    for value in load_file(tmp_path / "mean" / ONE).values():
        assert int(torch.linalg.matrix_rank(value, rtol=1e-9)) == 2


@pytest.mark.parametrize("rank", [2, "90%", "auto"])
def test_a_delta_has_no_rank_to_be_cut_to(tmp_path: Path, rank: int | str) -> None:
    folders = [str(one) for one in write_family(tmp_path, family("independent", 2))]
    asked = {"merge_method": "average", "models": folders, "out_type": "delta", "parameters": {"rank": rank}}
    recipe = make_recipe({**asked, "models": [{"model": one} for one in folders]})
    with pytest.raises(RecipeError, match="out_type delta writes the whole dW"):
        merge_into(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_delta_of_a_constrained_row_has_the_row_s_rank(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("independent", 3))
    models = [{"model": str(one)} for one in folders]
    asked = {"merge_method": "lowrank", "models": models, "out_type": "delta", "parameters": {"rank": 2}}
    merge_into(make_recipe(asked), tmp_path / "out")
    adapter = merge_adapters(folders, method="lowrank", rank=2)
    (file,) = (tmp_path / "out").glob("*.safetensors")
    for name, found in load_file(file).items():
        module = name.removesuffix(".weight")
        torch.testing.assert_close(found.double(), adapter.updates[module].dense(), rtol=1e-6, atol=1e-9)
