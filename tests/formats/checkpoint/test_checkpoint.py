"""What is read is exact; everything else is refused, and the message says where and what."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint import Checkpoint, read_checkpoint
from riemerge.formats.fit import check_checkpoints

ONE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def tensors(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "embed.weight": torch.randn(7, 3, generator=draw, dtype=torch.float64).to(torch.bfloat16),
        "layers.0.weight": torch.randn(3, 5, generator=draw),
        "layers.0.bias": torch.randn(5, generator=draw, dtype=torch.float64),
        "layers.0.conv": torch.randn(2, 3, 1, 2, generator=draw).half(),
        "position_ids": torch.arange(6).reshape(1, 6),
        "mask": torch.tensor([True, False, True]),
        "temperature": torch.tensor(0.5),
        "empty": torch.empty(0, 4),
    }


def single(folder: Path, content: dict[str, Tensor] | None = None) -> Path:
    folder.mkdir()
    save_file(tensors() if content is None else content, folder / ONE, metadata={"format": "pt"})
    return folder


def sharded(folder: Path, content: dict[str, Tensor] | None = None) -> Path:
    folder.mkdir()
    content = tensors() if content is None else content
    names = sorted(content)
    parts = (names[::2], names[1::2])
    for shard, part in zip(SHARDS, parts, strict=True):
        save_file({name: content[name] for name in part}, folder / shard)
    place(folder, {name: shard for shard, part in zip(SHARDS, parts, strict=True) for name in part})
    return folder


def place(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def placed(folder: Path) -> dict[str, str]:
    weight_map: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return weight_map


def problems(path: Path) -> list[str]:
    with pytest.raises(AdapterError) as caught:
        read_checkpoint(path)
    return list(caught.value.problems)


Make = Callable[[Path], Path]
LAYOUTS: dict[str, Make] = {
    "one file": single,
    "shards": sharded,
    "a file": lambda folder: single(folder) / ONE,
    "an index": lambda folder: sharded(folder) / INDEX,
    "links": lambda folder: linked(folder),
}


def linked(folder: Path) -> Path:
    """As a cache of downloads lays a snapshot out: names that lead to blobs elsewhere."""
    blobs = sharded(folder.with_name("blobs"))
    folder.mkdir()
    for blob in blobs.iterdir():
        (folder / blob.name).symlink_to(os.path.relpath(blob, folder))
    return folder


# --- what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same_tensors(tmp_path: Path, layout: str) -> None:
    path = LAYOUTS[layout](tmp_path / "model")
    checkpoint, expected = read_checkpoint(str(path)), tensors()
    assert isinstance(checkpoint, Checkpoint)
    assert (checkpoint.path, checkpoint.name) == (path, path.name)
    assert checkpoint.names == tuple(sorted(expected))
    assert dict(checkpoint.shapes) == {name: tuple(tensor.shape) for name, tensor in expected.items()}
    assert dict(checkpoint.dtypes) == {name: tensor.dtype for name, tensor in expected.items()}
    assert checkpoint.not_float == ("mask", "position_ids")
    for name, tensor in expected.items():
        stored = checkpoint.tensor(name, dtype=None)
        assert stored.dtype == tensor.dtype
        assert torch.equal(stored, tensor)
        if name not in checkpoint.not_float:
            exact = checkpoint.tensor(name)
            assert exact.dtype == torch.float64
            assert torch.equal(exact, tensor.to(torch.float64))
            assert checkpoint.tensor(name, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_that_counts_has_its_sum(tmp_path: Path, layout: str) -> None:
    path = LAYOUTS[layout](tmp_path / "model")
    folder = path if path.is_dir() else path.parent
    assert dict(read_checkpoint(path).sha256) == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()
    }


def test_what_is_read_is_the_readers_own(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(single(tmp_path / "model"))
    checkpoint.tensor("layers.0.weight", dtype=None).zero_()
    assert torch.equal(checkpoint.tensor("layers.0.weight", dtype=None), tensors()["layers.0.weight"])


def test_only_the_tensor_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = read_checkpoint(sharded(tmp_path / "model"))
    with (tmp_path / "model" / placed(tmp_path / "model")["mask"]).open("rb") as file:
        assert file.read(8)
    for shard in {*SHARDS} - {placed(tmp_path / "model")["mask"]}:
        (tmp_path / "model" / shard).unlink()
    assert checkpoint.tensor("mask", dtype=None).tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["embed.weight", "layers.0.conv", "position_ids", "mask", "empty"])
def test_rows_are_those_of_the_whole(tmp_path: Path, name: str) -> None:
    checkpoint, whole = read_checkpoint(single(tmp_path / "model")), tensors()[name]
    last = len(whole)
    runs = [range(last // 2, last), range(1 if last else 0), range(last // 2, last // 2)]
    expected = torch.cat([whole[run.start : run.stop] for run in runs])
    assert same(checkpoint.tensor(name, dtype=None, rows=runs), expected)
    assert same(checkpoint.tensor(name, dtype=None, rows=runs[:1]), whole[last // 2 :])


def test_what_is_not_finite_in_some_rows_is_told_by_its_place_in_all(tmp_path: Path) -> None:
    values = torch.zeros(6, 2)
    values[4, 1] = math.inf
    checkpoint = read_checkpoint(single(tmp_path / "model", {"w": values}))
    assert checkpoint.tensor("w", rows=[range(4)]).shape == (4, 2)
    with pytest.raises(AdapterError, match=r"holds 1 NaN or Inf, the first at \[4, 1\]"):
        checkpoint.tensor("w", rows=[range(2), range(3, 6)])


def same(first: Tensor, second: Tensor) -> bool:
    return first.dtype is second.dtype and torch.equal(first, second)


def test_other_files_are_what_the_model_needs(tmp_path: Path) -> None:
    folder = single(tmp_path / "model")
    needed = ["config.json", "generation_config.json", "modeling_x.py", "spiece.model", "tokenizer.json"]
    needed += ["chat_template.jinja", "merges.txt", "vocab.tiktoken"]
    records = ["trainer_state.json", "all_results.json", "train_result.json", "riemerge.json", ".hidden.json"]
    weights = ["pytorch_model.bin", "pytorch_model.bin.index.json", "other.safetensors", "a.gguf", "x.pt"]
    for name in [*needed, *records, *weights, "README.md", "training_args.bin"]:
        (folder / name).write_text("{}")
    (folder / "folder.json").mkdir()
    assert [path.name for path in read_checkpoint(folder).other_files] == sorted(needed)
    assert all(path.parent == folder for path in read_checkpoint(folder).other_files)
    assert read_checkpoint(folder / ONE).other_files == ()


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_when_it_is_read(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    bad = torch.ones(3, 4, dtype=dtype)
    bad[1, 2] = bad[2, 0] = value
    checkpoint = read_checkpoint(single(tmp_path / "model", {"bad": bad, "good": torch.ones(2)}))
    for read_as in (None, torch.float64):
        with pytest.raises(AdapterError) as caught:
            checkpoint.tensor("bad", dtype=read_as)
        assert str(caught.value) == (
            f"{tmp_path / 'model' / ONE}: bad: holds 2 NaN or Inf, the first at [1, 2]; "
            "export the model again or leave it out"
        )
    assert checkpoint.tensor("good").tolist() == [1.0, 1.0]


def test_a_sum_that_overflows_is_no_infinity(tmp_path: Path) -> None:
    large = torch.full((4,), 1e308, dtype=torch.float64)
    assert torch.equal(read_checkpoint(single(tmp_path / "model", {"large": large})).tensor("large"), large)


@pytest.mark.parametrize("name", ["mask", "position_ids"])
def test_integers_have_no_float_value(tmp_path: Path, name: str) -> None:
    checkpoint = read_checkpoint(single(tmp_path / "model"))
    with pytest.raises(AdapterError, match=rf"{name}: is stored as torch\.\w+: expected a float"):
        checkpoint.tensor(name)


def test_a_name_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        read_checkpoint(single(tmp_path / "model")).tensor("nothing")


@pytest.mark.parametrize("change", ["other bytes", "removed", "another file"])
def test_a_file_that_changes_is_noticed(tmp_path: Path, change: str) -> None:
    folder = single(tmp_path / "model")
    checkpoint = read_checkpoint(folder)
    if change == "removed":
        (folder / ONE).unlink()
    elif change == "other bytes":
        save_file(tensors(seed=1), folder / ONE, metadata={"format": "pt"})
        os.utime(folder / ONE, (1, 1))
    else:
        shutil.copy2(folder / ONE, tmp_path / "copy")
        (tmp_path / "copy").replace(folder / ONE)
    words = "can no longer be read" if change == "removed" else "changed while it was in use"
    with pytest.raises(AdapterError, match=words):
        checkpoint.tensor("mask", dtype=None)
    with pytest.raises(AdapterError, match=words):
        checkpoint.sha256  # noqa: B018


# --- what is no checkpoint ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "no such folder or file; nothing is downloaded"),
        ([], "has neither model.safetensors nor model.safetensors.index.json"),
        (["adapter_config.json"], "it is an adapter, not a full checkpoint"),
        (["statistics.json", "a.safetensors"], "it holds statistics of a model, not a full checkpoint"),
        (["a.safetensors", "b.txt"], "did you mean one of its files: a.safetensors?"),
        (["pytorch_model.bin"], r"\(pytorch_model.bin\); a pickle is never opened"),
        ([ONE, INDEX], "has both model.safetensors and model.safetensors.index.json"),
    ],
)
def test_a_folder_that_is_no_checkpoint(tmp_path: Path, files: list[str] | None, words: str) -> None:
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_text("{}")
    with pytest.raises(AdapterError, match=rf"^{folder}: .*{words}"):
        read_checkpoint(folder)


def test_a_run_points_at_its_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    single(run / "checkpoint-500")
    (run / "logs").mkdir()
    (run / "training_args.bin").write_bytes(b"\x80")
    (found,) = problems(run)
    assert "did you mean one of its folders: checkpoint-500?" in found


UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
# Names of the tensors of one module, as they are published.
FACTORS = {
    "peft": [
        "base_model.model.layers.0.q_proj.lora_A.weight",
        "base_model.model.layers.0.q_proj.lora_B.weight",
    ],
    "peft, a name left in": [
        "layers.0.q_proj.lora_A.default.weight",
        "layers.0.q_proj.lora_B.default.weight",
    ],
    "peft, embedding": ["embed.lora_embedding_A", "embed.lora_embedding_B"],
    "peft, ia3": ["base_model.model.layers.0.q_proj.ia3_l"],
    "peft, wrapped model": ["layers.0.q.lora_A.x.weight", "layers.0.q.lora_B.x.weight"],
    "kohya": [f"lora_unet_mid_attn1_to_q.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")],
    "kohya, text encoders": ["lora_te1_text_model_q.lora_down.weight", "lora_te_text_model_q.alpha"],
    "lycoris": ["lora_unet_mid_proj.hada_w1_a", "lycoris_mid_proj.lokr_w1"],
    "lycoris, bare": ["mid.proj.hada_w1_a", "mid.proj.lokr_w2_b"],
    "dora": ["mid.proj.dora_scale"],
    "diffusers": [f"unet.{UNET}.to_q.lora.down.weight", f"unet.{UNET}.to_q.lora.up.weight"],
    "diffusers, processors": [f"{UNET}.processor.to_q_lora.down.weight"],
    "diffusers, layers": ["text_encoder.layers.0.q_proj.lora_linear_layer.up.weight"],
    "diffusers, of today": ["transformer.blocks.0.attn.to_q.lora_A.weight"],
    "flux of xlabs": ["double_blocks.0.processor.qkv_lora1.down.weight"],
    "mlx": ["model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.lora_b"],
    "nemo": [
        f"model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_{side}.weight"
        for side in ("in", "out")
    ],
    "megatron": ["decoder.layers.0.mlp.linear_fc1.adapter.linear_in.weight"],
    "vera": ["layers.0.q_proj.vera_lambda_b", "layers.0.q_proj.vera_lambda_d"],
    "oft": ["layers.0.q_proj.oft_r", "oft_unet_mid_proj.oft_blocks"],
    "torchtune": ["layers.0.attn.q_proj.lora_a.weight"],
}
OTHERS = [
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
    "blocks.0.att.w_lora.lora.0.weight",  # RWKV's own
    "text_model.explora_text.weight",
    "flora_up.weight",
    "lora_alpha_gate.weight",
    "blocks.0.linear_in.weight",
    "loft_r",
    "tokens",
]


@pytest.mark.parametrize("dialect", FACTORS)
@pytest.mark.parametrize("make", ["file", "folder", "shards"])
def test_the_factors_of_an_adapter_are_no_checkpoint(tmp_path: Path, dialect: str, make: str) -> None:
    names = [*FACTORS[dialect], *([] if make == "file" else ["model.norm.weight"])]
    content = {name: torch.ones(2, 2) for name in names}
    path = sharded(tmp_path / "x", content) if make == "shards" else single(tmp_path / "x", content)
    path = path / ONE if make == "file" else path
    (found,) = problems(path)
    assert "LoRA" in found
    assert f"{len(FACTORS[dialect])} of {len(names)} tensors" in found
    assert "adapter_config.json" in found


def test_names_that_look_alike_are_read(tmp_path: Path) -> None:
    path = single(tmp_path / "x", {name: torch.ones(2, 2) for name in OTHERS})
    assert read_checkpoint(path).names == tuple(sorted(OTHERS))


def test_statistics_of_a_module_are_no_checkpoint(tmp_path: Path) -> None:
    content = {name: torch.ones(2, 2) for name in ("tokens", "examples", "loss", "fisher")}
    (found,) = problems(single(tmp_path / "x", content) / ONE)
    assert (
        "holds statistics of one module, not a full checkpoint: name their folder under statistics" in found
    )


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    (tmp_path / "x.bin").write_text("")
    assert problems(folder / SHARDS[0]) == [f"{folder / SHARDS[0]}: is one shard of 2: give its folder"]
    assert "is no .safetensors file; a pickle is never opened" in problems(tmp_path / "x.bin")[0]
    for name, words in {
        "x.gguf": "GGUF is not read",
        "x.yaml": "a recipe is given alone",
        "x": "expected",
    }.items():
        (tmp_path / name).write_text("")
        assert words in problems(tmp_path / name)[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"<!doctype html>", "HTML page"),
        (b"PK\x03\x04\x14\x00\x08\x08" + bytes(60), "zip archive"),
        (b"\x80\x02", "is a pickle"),
        (b"GGUF" + b"\x03" * 60, "GGUF"),
        (b"", "too short for its own header"),
        (struct.pack("<Q", 1000) + b"{}", "too short for its own header"),
        (struct.pack("<Q", 2**25) + bytes(2**25), "a header of 33554432 bytes: expected at most 16777216"),
        (struct.pack("<Q", 2) + b"{}", "holds no tensors"),
        (struct.pack("<Q", 12) + b'{"a":1,"a":2', "not acceptable JSON"),
        (
            struct.pack("<Q", 128)
            + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            + b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(74)
            + bytes(4),
            'the key "a" occurs twice',
        ),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_a_damaged_file_says_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    found = problems(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(f"{path}: ")
    assert words in found[0]


@pytest.mark.parametrize("where", ["cut", "longer"])
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, where: str) -> None:
    path = single(tmp_path / "model") / ONE
    path.write_bytes(path.read_bytes()[:-3] if where == "cut" else path.read_bytes() + b"abc")
    assert "not a whole safetensors file" in problems(tmp_path / "model")[0]


def test_a_folder_or_a_dangling_link_is_no_file(tmp_path: Path) -> None:
    (tmp_path / ONE).mkdir()
    assert problems(tmp_path) == [f"{tmp_path / ONE}: is not a regular file"]
    (tmp_path / ONE).rmdir()
    (tmp_path / ONE).symlink_to("nowhere")
    assert problems(tmp_path) == [f"{tmp_path / ONE}: is a link to a file that is not there"]


def test_narrow_floats_are_refused_by_name(tmp_path: Path) -> None:
    folder = single(tmp_path / "model", {"a": torch.ones(2), "b": torch.ones(2, 2).to(torch.float8_e4m3fn)})
    (found,) = problems(folder)
    assert "stores 1 of 2 tensors as F8_E4M3 (b)" in found
    assert "dequantise" in found


@pytest.mark.parametrize("name", ["line\nbreak", "x" * 600])
def test_names_that_cannot_be_shown_are_refused(tmp_path: Path, name: str) -> None:
    (found,) = problems(single(tmp_path / "model", {name: torch.ones(2)}))
    assert "names are not printable or over 512 characters" in found
    assert "\n" not in found


# --- what an index may say ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/x.safetensors",
        "a/x.safetensors",
        "..",
        "",
        "a\\x.safetensors",
        "C:x.safetensors",
    ],
)
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    folder = sharded(tmp_path / "model")
    save_file({"mask": torch.ones(2)}, tmp_path / "x.safetensors")
    place(folder, placed(folder) | {"mask": shard})
    (found,) = problems(folder)
    assert found.startswith(f"{folder / INDEX}: places tensors in ")
    assert found.endswith(": expected a file of its folder")


def test_a_shard_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    place(folder, placed(folder) | {"mask": "model.bin"})
    assert problems(folder) == [
        f"{folder / INDEX}: places tensors in model.bin: expected a .safetensors file"
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "has no weight_map"),
        ("{}", "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "has no weight_map"),
        ('{"weight_map": {}}', "has an empty weight_map"),
        ('{"weight_map": {"a": "x", "a": "y"}}', 'the key "a" occurs twice'),
        ("", "is empty"),
        ("{", "not acceptable JSON"),
    ],
)
def test_an_index_that_places_nothing_is_refused(tmp_path: Path, content: str, words: str) -> None:
    folder = sharded(tmp_path / "model")
    (folder / INDEX).write_text(content)
    (found,) = problems(folder)
    assert found.startswith(f"{folder / INDEX}: ")
    assert words in found


def test_all_that_is_wrong_with_the_shards_is_said_at_once(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    where = placed(folder)
    first = [name for name, shard in where.items() if shard == SHARDS[0]]
    moved, dropped = first[:2]
    del where[dropped]
    place(folder, where | {moved: SHARDS[1], "ghost": SHARDS[0], "lost": "model-3.safetensors"})
    assert problems(folder) == [
        f"{folder / 'model-3.safetensors'}: is missing",
        f"{folder / SHARDS[0]}: lacks 1 tensors that {INDEX} places there: ghost",
        f"{folder / SHARDS[0]}: holds 1 tensors that {INDEX} places in other files: {moved}",
        f"{folder / SHARDS[0]}: holds 1 tensors that {INDEX} does not name: {dropped}",
        f"{folder / SHARDS[1]}: lacks 1 tensors that {INDEX} places there: {moved}",
    ]


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    for shard in SHARDS:
        save_file(load_file(folder / shard) | {"mask": torch.tensor([False])}, folder / shard)
    (found,) = problems(folder)
    assert f"holds 1 tensors that {INDEX} places in other files: mask" in found


def test_files_that_the_index_does_not_name_are_left_alone(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    (folder / "consolidated.safetensors").write_bytes(b"anything")
    assert read_checkpoint(folder).names == tuple(sorted(tensors()))


# --- whether checkpoints fit --------------------------------------------------------------------------------


def test_checkpoints_that_fit(tmp_path: Path) -> None:
    other = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors().items()
    }
    check_checkpoints([])
    check_checkpoints(
        [
            read_checkpoint(single(tmp_path / "a")),
            read_checkpoint(sharded(tmp_path / "b")),
            read_checkpoint(single(tmp_path / "c", other)),
        ]
    )


def test_all_that_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    content = tensors()
    del content["mask"]
    content |= {"extra": torch.ones(2), "temperature": torch.ones(1), "position_ids": torch.ones(1, 6)}
    a, b = read_checkpoint(single(tmp_path / "a")), read_checkpoint(single(tmp_path / "b", content))
    again = read_checkpoint(tmp_path / ".." / tmp_path.name / "a")
    with pytest.raises(AdapterError) as caught:
        check_checkpoints([a, b, again])
    shapes = f"a number in {a.path}, 1 in {b.path}, a number in {again.path}"
    dtypes = f"torch.int64 in {a.path}, a float in {b.path}, torch.int64 in {again.path}"
    assert list(caught.value.problems) == [
        f"{a.path}: is listed 2 times: give it once, with a larger weight",
        f"{a.path}: lacks 1 of 9 tensors that others have: extra",
        f"{b.path}: lacks 1 of 9 tensors that others have: mask",
        f"{again.path}: lacks 1 of 9 tensors that others have: extra",
        f"temperature: the shape differs: {shapes}; is it one architecture?",
        f"position_ids: the dtype differs: {dtypes}; is it one architecture?",
    ]
