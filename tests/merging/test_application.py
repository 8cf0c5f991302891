"""An adapter merged into its base model: the folder that is written, its record, and a checker's verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from riemerge.errors import AdapterError, NumericalError, OutputError, RecipeError
from riemerge.formats.checkpoint import read_checkpoint, read_patched
from riemerge.merging.application import apply_adapter
from riemerge.progress import Progress
from riemerge.records.difference_record import DifferenceRecord
from tests.folders import listing, write_folder
from tests.helpers import Factors, seeded

SHAPES = {"layers.0.q": (12, 8), "layers.0.v": (6, 8), "layers.1.q": (12, 8)}


def factors(seed: int = 0, size: float = 1.0) -> dict[str, Factors]:
    draw = seeded(seed)
    return {
        module: (size * torch.randn(m, 2, generator=draw), torch.randn(2, n, generator=draw))
        for module, (m, n) in SHAPES.items()
    }


def write_base(folder: Path, dtype: torch.dtype, *, sharded: bool = False) -> Path:
    draw = seeded(1)
    tensors: dict[str, Tensor] = {
        f"{module}.weight": torch.randn(shape, generator=draw).to(dtype) for module, shape in SHAPES.items()
    }
    tensors |= {"norm.weight": torch.ones(8, dtype=dtype), "position_ids": torch.arange(4)}
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    if not sharded:
        save_file(tensors, folder / "model.safetensors")
        return folder
    shards = {name: f"model-{place % 2 + 1:05d}-of-00002.safetensors" for place, name in enumerate(tensors)}
    for shard in {*shards.values()}:
        save_file({name: tensors[name] for name in tensors if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return folder


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_the_view_and_what_the_model_needs(
    tmp_path: Path, dtype: torch.dtype, sharded: bool
) -> None:
    base = write_base(tmp_path / "base", dtype, sharded=sharded)
    adapter = write_folder(tmp_path / "law", factors(), dtype=torch.float32, lora_alpha=3)
    record = apply_adapter(base, adapter, tmp_path / "out", shard_bytes=500)
    view, written = read_patched(base, adapter), read_checkpoint(tmp_path / "out")
    assert (written.names, written.dtypes) == (view.names, view.dtypes)
    for name in view.names:
        assert torch.equal(written.tensor(name, dtype=None), view.tensor(name, dtype=None))
    assert [path.name for path in written.other_files] == ["config.json", "tokenizer.json"]
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert DifferenceRecord.model_validate_json((tmp_path / "out" / "riemerge.json").read_bytes()) == record
    assert {*record.outputs} == {path.name for path in listing(tmp_path / "out")} - {
        "riemerge.json",
        "README.md",
    }


@pytest.mark.parametrize("out", [None, "float32"])
def test_the_settings_name_the_dtype_that_is_written(tmp_path: Path, out: str | None) -> None:
    base = write_base(tmp_path / "base", torch.bfloat16)
    given = b'{"dtype":"bfloat16"}'
    (base / "config.json").write_bytes(given)
    adapter = write_folder(tmp_path / "law", factors(), dtype=torch.float32)
    apply_adapter(base, adapter, tmp_path / "out", out_dtype=out)
    found = (tmp_path / "out" / "config.json").read_bytes()
    assert json.loads(found) == {"dtype": out or "bfloat16"}
    assert out or found == given


@pytest.mark.parametrize("out", [None, "bfloat16", "float32"])
def test_the_record_measures_what_the_rounding_leaves_out(tmp_path: Path, out: str | None) -> None:
    base = write_base(tmp_path / "base", torch.bfloat16)
    adapter = write_folder(tmp_path / "law", factors(size=0.1), dtype=torch.float32)
    record = apply_adapter(base, adapter, tmp_path / "out", out_dtype=out)
    before, after = read_checkpoint(base), read_checkpoint(tmp_path / "out")
    assert [row.module for row in record.modules] == [*SHAPES]
    for row in record.modules:
        b, a = (factor.double() for factor in factors(size=0.1)[row.module])
        name = f"{row.module}.weight"
        moved = after.tensor(name) - before.tensor(name) - b @ a
        assert row.norm == pytest.approx(float((b @ a).norm()), rel=1e-12)
        assert row.error == pytest.approx(float(moved.norm()) / row.norm, rel=1e-9)
        assert (row.shape, row.rank, row.energy_kept) == (SHAPES[row.module], 2, None)
    assert after.stored == {torch.int64, torch.float32 if out == "float32" else torch.bfloat16}
    assert record.settings["out-dtype"] == ([] if out is None else [out])


def test_a_wider_dtype_keeps_what_the_base_would_round_away(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", torch.bfloat16)
    adapter = write_folder(tmp_path / "law", factors(size=0.01), dtype=torch.float32)
    errors = {
        out: max(row.error for row in apply_adapter(base, adapter, tmp_path / out, out_dtype=out).modules)
        for out in ("bfloat16", "float32")
    }
    assert errors["float32"] < 1e-4
    assert errors["bfloat16"] > 0.05


def test_a_change_that_does_not_survive_the_rounding_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", torch.bfloat16)
    adapter = write_folder(tmp_path / "law", factors(size=1e-9), dtype=torch.float32)
    with pytest.raises(NumericalError, match="are those of the base model again"):
        apply_adapter(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_renamed_modules_and_progress(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", torch.float32)
    moved = {f"model.{module}": pair for module, pair in factors().items()}
    adapter = write_folder(tmp_path / "law", moved)
    events: list[Progress] = []
    record = apply_adapter(base, adapter, tmp_path / "out", rename={"model.": ""}, progress=events.append)
    assert record.settings["rename"] == ["model.="]
    assert [event.done for event in events] == [1, 2, 3, 4, 5]
    assert {event.total for event in events} == {5}


@pytest.mark.parametrize("saved", [["model.embed_tokens.weight"], ["lm_head.weight"]])
def test_a_tied_head_that_the_adapter_parts_is_written_and_said(tmp_path: Path, saved: list[str]) -> None:
    base, embedding = write_base(tmp_path / "base", torch.float32), torch.ones(5, 8)
    file = base / "model.safetensors"
    save_file({**load_file(file), "model.embed_tokens.weight": embedding}, file)
    tied = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "dtype": "float32"}
    (base / "config.json").write_text(json.dumps(tied))
    adapter = write_folder(tmp_path / "law", factors()) / "adapter_model.safetensors"
    whole = {f"base_model.model.{name}": 2 * embedding for name in saved}
    save_file({**load_file(adapter), **whole}, adapter)
    record = apply_adapter(base, adapter.parent, tmp_path / "out", out_dtype="bfloat16")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(written[name], (embedding * (1 + (name in saved))).bfloat16())
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings == {**tied, "tie_word_embeddings": False, "dtype": "bfloat16"}
    assert "lm_head.weight, the head of the model, is no longer its embedding" in " ".join(record.warnings)


def test_faults_leave_nothing_behind(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", torch.float32)
    adapter = write_folder(tmp_path / "law", factors())
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="inside the input"):
        apply_adapter(base, adapter, base / "out")
    with pytest.raises(OutputError, match="exists already"):
        apply_adapter(base, adapter, adapter)
    with pytest.raises(RecipeError, match="out_dtype: 'int8'"):
        apply_adapter(base, adapter, tmp_path / "out", out_dtype="int8")
    with pytest.raises(RecipeError, match="rename: nothing: no module of any adapter begins so"):
        apply_adapter(base, adapter, tmp_path / "out", rename={"nothing": ""})
    with pytest.raises(AdapterError, match="it is an adapter, not a full checkpoint"):
        apply_adapter(adapter, base, tmp_path / "out")
    assert listing(tmp_path) == before


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_deltalint_finds_the_adapter_in_the_model(tmp_path: Path, dtype: torch.dtype) -> None:
    deltalint = pytest.importorskip("deltalint")
    base = write_base(tmp_path / "base", dtype, sharded=True)
    adapter = write_folder(tmp_path / "law", factors(), dtype=torch.float32, lora_alpha=3)
    apply_adapter(base, adapter, tmp_path / "out")
    report = deltalint.check_merge(base, adapter, tmp_path / "out")
    assert [(layer.name, layer.verdict.value) for layer in report.layers] == [
        (module, "PASS") for module in SHAPES
    ]
    # The checker sees a tensor that was left as it is in the base model.
    tensors = {path: load_file(path) for path in (tmp_path / "out").glob("*.safetensors")}
    for path, content in tensors.items():
        if "layers.0.q.weight" in content:
            content["layers.0.q.weight"] = read_checkpoint(base).tensor("layers.0.q.weight", dtype=None)
            save_file(content, path)
    report = deltalint.check_merge(base, adapter, tmp_path / "out")
    assert [layer.name for layer in report.layers if layer.verdict.value == "FAIL"] == ["layers.0.q"]
