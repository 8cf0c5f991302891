"""What a model changed of its base, extracted: laws of a round trip, ranks, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from riemerge.errors import AdapterError, OutputError, RecipeError
from riemerge.formats.checkpoint import read_checkpoint
from riemerge.formats.dialects import read_adapter
from riemerge.merging.application import apply_adapter
from riemerge.merging.extraction import extract_adapter
from riemerge.records.difference_record import DifferenceRecord
from tests.folders import listing, write_folder
from tests.helpers import seeded

MODULES = {
    "model.layers.0.q_proj": (14, 12),
    "model.layers.0.v_proj": (6, 12),
    "model.layers.1.q_proj": (14, 12),
}
ROWS = {"model.embed_tokens": (20, 12), "lm_head": (20, 12)}
F64 = torch.float64


def weights(dtype: torch.dtype = F64) -> dict[str, Tensor]:
    draw = seeded(0)
    tensors = {
        f"{name}.weight": torch.randn(shape, generator=draw, dtype=F64).to(dtype)
        for name, shape in {**MODULES, **ROWS}.items()
    }
    return {**tensors, "model.norm.weight": torch.ones(12, dtype=dtype), "position_ids": torch.arange(5)}


def write(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **settings}))
    return folder


def tuned(rank: int | None = None, *names: str, dtype: torch.dtype = F64) -> dict[str, Tensor]:
    """The weights with a difference in some modules, of a rank or with decaying singular values."""
    tensors, draw = weights(dtype), seeded(3)
    for name in names or MODULES:
        m, n = tensors[f"{name}.weight"].shape
        k = rank or min(m, n)
        left = torch.randn(m, k, generator=draw, dtype=F64) * 0.5 ** torch.arange(k, dtype=F64)
        change = left @ torch.randn(k, n, generator=draw, dtype=F64)
        tensors[f"{name}.weight"] = (tensors[f"{name}.weight"].to(F64) + change).to(dtype)
    return tensors


def changes(base: Path, model: Path) -> dict[str, Tensor]:
    before, after = read_checkpoint(base), read_checkpoint(model)
    return {name: after.tensor(name) - before.tensor(name) for name in before.modules}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base", weights())


# --- laws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_each_update_is_the_nearest_of_its_rank(tmp_path: Path, base: Path, rank: int) -> None:
    model = write(tmp_path / "tuned", tuned())
    record = extract_adapter(base, model, tmp_path / "out", rank=rank)
    adapter, difference = read_adapter(tmp_path / "out"), changes(base, model)
    assert adapter.modules == tuple(MODULES) == tuple(row.module for row in record.modules)
    assert {*adapter.ranks.values()} == {rank}  # also where a module has fewer
    for row in record.modules:
        change = difference[f"{row.module}.weight"]
        sigma = torch.linalg.svdvals(change)
        left_out = float(sigma[rank:].norm())
        apart = float((adapter.update(row.module).dense() - change).norm())
        assert apart == pytest.approx(left_out, rel=1e-9, abs=1e-12 * row.norm)
        assert row.norm == pytest.approx(float(sigma.norm()), rel=1e-12)
        assert row.energy_kept == pytest.approx(1 - (left_out / row.norm) ** 2, rel=1e-12)
        assert row.error == pytest.approx(left_out / row.norm, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("share", [10, 50, 90, 95, 99.9])
def test_a_share_takes_the_least_rank_that_keeps_it(tmp_path: Path, base: Path, share: float) -> None:
    model = write(tmp_path / "tuned", tuned())
    record = extract_adapter(base, model, tmp_path / "out", rank=f"{share}%")
    for row in record.modules:
        energy = torch.linalg.svdvals(changes(base, model)[f"{row.module}.weight"]).square()
        kept = energy.cumsum(0) / energy.sum()
        assert row.rank is not None
        assert kept[row.rank - 1] >= share / 100
        assert row.rank == 1 or kept[row.rank - 2] < share / 100
        assert row.energy_kept == pytest.approx(float(kept[row.rank - 1]), rel=1e-9)
    assert read_adapter(tmp_path / "out").ranks == {row.module: row.rank for row in record.modules}


def test_applying_what_was_extracted_gives_the_model_back(tmp_path: Path, base: Path) -> None:
    model = write(tmp_path / "tuned", tuned())
    record = extract_adapter(base, model, tmp_path / "adapter", rank=4)
    apply_adapter(base, tmp_path / "adapter", tmp_path / "back")
    apart = changes(model, tmp_path / "back")
    for row in record.modules:
        assert row.energy_kept is not None
        left_out = (1 - row.energy_kept) ** 0.5 * row.norm
        assert float(apart.pop(f"{row.module}.weight").norm()) == pytest.approx(left_out, rel=1e-6, abs=1e-10)
    assert not any(tensor.any() for tensor in apart.values())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_an_applied_adapter_is_extracted_again(tmp_path: Path, dtype: torch.dtype) -> None:
    base, draw = write(tmp_path / "base", weights(dtype)), seeded(5)
    factors = {
        module: (torch.randn(m, 3, generator=draw, dtype=F64), torch.randn(3, n, generator=draw, dtype=F64))
        for module, (m, n) in MODULES.items()
    }
    given = read_adapter(write_folder(tmp_path / "given", factors, dtype=dtype, lora_alpha=5))
    apply_adapter(base, given.path, tmp_path / "model")
    extract_adapter(base, tmp_path / "model", tmp_path / "out", rank="99.999%", out_dtype="float64")
    found = read_adapter(tmp_path / "out")
    assert found.ranks == given.ranks
    for module in given.modules:
        expected = given.update(module)
        assert found.update(module).distance(expected) < 1e-6 * expected.norm()


def test_a_base_that_stores_inputs_by_outputs(tmp_path: Path) -> None:
    draw = seeded(1)
    names = {"h.0.attn.c_attn": (12, 36), "h.0.attn.c_proj": (12, 12), "lm_head": (20, 12)}
    before = {
        f"{name}.weight": torch.randn(shape, generator=draw, dtype=F64) for name, shape in names.items()
    }
    after = {
        name: tensor + torch.outer(torch.arange(len(tensor)).double() + 1, tensor[0])
        for name, tensor in before.items()
    }
    base = write(tmp_path / "base", before, model_type="gpt2")
    model = write(tmp_path / "tuned", after, model_type="gpt2")
    extract_adapter(base, model, tmp_path / "adapter", rank=1, modules=["linear", "lm_head"])
    adapter = read_adapter(tmp_path / "adapter")
    assert [adapter.shape(name) for name in names] == [(36, 12), (12, 12), (20, 12)]
    assert adapter.config.fan_in_fan_out
    apply_adapter(base, tmp_path / "adapter", tmp_path / "back")
    for name, tensor in load_file(tmp_path / "back" / "model.safetensors").items():
        torch.testing.assert_close(tensor, after[name], rtol=1e-12, atol=1e-12)


# --- which modules ------------------------------------------------------------------------------------------


def test_modules_that_are_equal_are_left_out(tmp_path: Path, base: Path) -> None:
    model = write(tmp_path / "tuned", tuned(2, "model.layers.1.q_proj"))
    record = extract_adapter(base, model, tmp_path / "out", rank=2)
    assert [row.module for row in record.modules] == ["model.layers.1.q_proj"]
    with pytest.raises(AdapterError, match="in all 3 modules: nothing to extract"):
        extract_adapter(base, write(tmp_path / "same", weights()), tmp_path / "none", rank=2)


def test_other_tensors_that_differ_are_refused_or_dropped_with_their_size(tmp_path: Path, base: Path) -> None:
    tensors = tuned(2, *MODULES, "lm_head")
    tensors["model.norm.weight"] = 1.5 * tensors["model.norm.weight"]
    tensors["position_ids"] = tensors["position_ids"] + 1
    model = write(tmp_path / "tuned", tensors)
    with pytest.raises(
        AdapterError, match=r"3 tensors .*model\.norm\.weight by 0\.5 of its norm.*--others drop"
    ):
        extract_adapter(base, model, tmp_path / "out", rank=2)
    record = extract_adapter(base, model, tmp_path / "out", rank=2, others="drop")
    assert "lm_head.weight by" in record.warnings[0]
    assert "position_ids by" in record.warnings[0]
    assert [row.module for row in record.modules] == [*MODULES]


def test_output_layers_and_modules_are_named(tmp_path: Path, base: Path) -> None:
    model = write(tmp_path / "tuned", tuned(2, *MODULES, "lm_head"))
    extract_adapter(base, model, tmp_path / "all", rank=2, modules=["linear", "lm_head"])
    assert {*read_adapter(tmp_path / "all").modules} == {*MODULES, "lm_head"}
    everything = write(tmp_path / "everything", tuned(2, *MODULES, *ROWS))
    with pytest.raises(AdapterError, match="2 tensors that are not extracted differ"):
        extract_adapter(base, everything, tmp_path / "out", rank=2)
    extract_adapter(base, everything, tmp_path / "embeddings", rank=2, modules=["all"])
    adapter = read_adapter(tmp_path / "embeddings")
    assert adapter.shape("model.embed_tokens") == (12, 20)
    apply_adapter(base, adapter.path, tmp_path / "back")
    for name, change in changes(everything, tmp_path / "back").items():
        assert float(change.norm()) < 1e-12, name
    extract_adapter(base, model, tmp_path / "some", rank=2, modules=["0.v_proj", "lm_head"], others="drop")
    assert {*read_adapter(tmp_path / "some").modules} == {"model.layers.0.v_proj", "lm_head"}
    with pytest.raises(RecipeError, match=r"modules: proj: .* has no matrix of this name"):
        extract_adapter(base, model, tmp_path / "out", rank=2, modules=["proj"])


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_that_is_the_output_layer_too_is_said(tmp_path: Path, tied: bool) -> None:
    models = {"base": weights(), "tuned": tuned(2, *MODULES, "model.embed_tokens")}
    for name, tensors in models.items():
        del tensors["lm_head.weight"]
        write(tmp_path / name, tensors, tie_word_embeddings=tied)
    record = extract_adapter(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=2, modules=["all"])
    said = "model.embed_tokens: is the output layer of base as well"
    assert [text.startswith(said) for text in record.warnings] == [True] * tied
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("is the output layer of base as well" in card) == tied


# --- refusals -----------------------------------------------------------------------------------------------


def test_vocabularies_that_differ_are_refused_with_both_shapes(tmp_path: Path, base: Path) -> None:
    tensors = tuned()
    for name in ROWS:
        tensors[f"{name}.weight"] = torch.cat([tensors[f"{name}.weight"], torch.ones(1, 12, dtype=F64)])
    model = write(tmp_path / "tuned", tensors)
    before = listing(tmp_path)
    with pytest.raises(AdapterError) as caught:
        extract_adapter(base, model, tmp_path / "out", rank=2)
    for name, problem in zip(sorted(ROWS), caught.value.problems, strict=True):
        assert f"{name}.weight: is 20 x 12 in {base} and 21 x 12 in {model}: the vocabularies" in problem
    assert listing(tmp_path) == before


def test_other_architectures_are_refused(tmp_path: Path, base: Path) -> None:
    tensors = tuned()
    del tensors["model.layers.1.q_proj.weight"]
    tensors["model.layers.0.v_proj.weight"] = torch.ones(7, 12, dtype=F64)
    with pytest.raises(AdapterError) as caught:
        extract_adapter(base, write(tmp_path / "tuned", tensors), tmp_path / "out", rank=2)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("rank", ["0", "-1", "2.5", "sum", "100%", "0%", ""])
def test_what_is_no_rank_is_refused(tmp_path: Path, base: Path, rank: str) -> None:
    with pytest.raises(RecipeError, match=r"rank: .* expected a whole number of 1 or more, or a share"):
        extract_adapter(base, base, tmp_path / "out", rank=rank)


def test_other_faults_leave_nothing_behind(tmp_path: Path, base: Path) -> None:
    model = write(tmp_path / "tuned", tuned())
    before = listing(tmp_path)
    with pytest.raises(RecipeError, match="others: 'keep': expected error or drop"):
        extract_adapter(base, model, tmp_path / "out", rank=2, others="keep")
    with pytest.raises(OutputError, match="inside the input"):
        extract_adapter(base, model, model / "out", rank=2)
    with pytest.raises(AdapterError, match="is given as the base model and as the fine-tuned model"):
        extract_adapter(base, base, tmp_path / "out", rank=2)
    assert listing(tmp_path) == before


# --- the record ---------------------------------------------------------------------------------------------


def test_what_is_written_names_its_base_and_task_and_has_a_record(tmp_path: Path, base: Path) -> None:
    model = write(tmp_path / "tuned", tuned())
    record = extract_adapter(
        base, model, tmp_path / "out", rank=2, out_dtype="bfloat16", base_name="org/base"
    )
    adapter = read_adapter(tmp_path / "out")
    assert adapter.config.base_model_name_or_path == "org/base"
    assert adapter.config.task_type == "CAUSAL_LM"
    assert adapter.dtype == torch.bfloat16
    assert DifferenceRecord.model_validate_json((tmp_path / "out" / "riemerge.json").read_bytes()) == record
    assert record.outputs == adapter.sha256
    for row in record.modules:
        apart = adapter.update(row.module).dense() - changes(base, model)[f"{row.module}.weight"]
        assert row.error == pytest.approx(float(apart.norm()) / row.norm, rel=0.02)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "riemerge extract base tuned -o OUT --rank 2" in text
    assert str(tmp_path) not in text + record.to_json()
