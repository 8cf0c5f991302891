"""What is read is exact; everything else is refused, and the message says where and what."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.dialects import read_adapter
from tests.formats.pico import (
    PREFIX,
    SETTINGS,
    SHAPES,
    TENSORS,
    Pico,
    check_refusal,
    config,
    pico_tensors,
    problems,
    product,
    text,
)
from tests.helpers import ROOT

Q = f"{PREFIX}layers.0.q.lora_"


# --- what is read -------------------------------------------------------------------------------------------


def test_an_adapter_tells_what_it_is(pico: Pico) -> None:
    folder = pico("law", task_type="CAUSAL_LM")
    adapter = read_adapter(str(folder))
    assert isinstance(adapter, Adapter)
    assert adapter.name == "law"
    assert adapter.path == folder
    assert adapter.modules == tuple(sorted(SHAPES))
    assert {module: adapter.shape(module) for module in adapter.modules} == SHAPES
    assert dict(adapter.ranks) == dict.fromkeys(SHAPES, 2)
    assert adapter.dtype is torch.float32
    assert (adapter.config.base_model_name_or_path, adapter.config.task_type) == (
        "somebody/base",
        "CAUSAL_LM",
    )
    assert dict(adapter.sha256) == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (SETTINGS, TENSORS)
    }


def test_a_rank_pattern_gives_each_module_its_rank_and_alpha_stays(pico: Pico) -> None:
    tensors = pico_tensors() | pico_tensors({"layers.0.v": (3, 4)}, rank=3)
    adapter = read_adapter(pico(tensors=tensors, rank_pattern={"v": 3}))
    assert dict(adapter.ranks) == {"layers.0.q": 2, "layers.0.v": 3, "layers.1.q": 2}
    assert adapter.update("layers.0.v").scale == 4 / 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_stored_dtype_is_read_exactly(pico: Pico, dtype: torch.dtype) -> None:
    adapter = read_adapter(pico(tensors=pico_tensors(dtype=dtype)))
    assert adapter.dtype is dtype
    update = adapter.update("layers.0.q")
    assert update.dtype is torch.float64
    assert torch.equal(update.B, pico_tensors(dtype=dtype)[f"{Q}B.weight"].double())
    assert adapter.update("layers.0.q", dtype=torch.float32).dtype is torch.float32


def test_mixed_dtypes_are_promoted(pico: Pico) -> None:
    tensors = {k: t.to(torch.float16 if "lora_A" in k else torch.bfloat16) for k, t in pico_tensors().items()}
    assert read_adapter(pico(tensors=tensors)).dtype is torch.float32


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix(PREFIX),
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.removeprefix(PREFIX).replace(".weight", ".default.weight"),
    ],
)
def test_other_spellings_of_the_keys_are_the_same_adapter(pico: Pico, rename: Callable[[str], str]) -> None:
    plain = read_adapter(pico("plain"))
    other = read_adapter(pico("other", {rename(key): t for key, t in pico_tensors().items()}))
    assert other.modules == plain.modules
    for module in plain.modules:
        assert torch.equal(other.update(module).dense(), plain.update(module).dense())


def test_an_untrained_adapter_is_zero(pico: Pico) -> None:
    tensors = {key: 0 * t if "lora_B" in key else t for key, t in pico_tensors().items()}
    adapter = read_adapter(pico(tensors=tensors))
    assert [adapter.update(module).norm() for module in adapter.modules] == [0.0, 0.0, 0.0]


def test_a_byte_order_mark_a_pickle_beside_and_links_are_harmless(pico: Pico, tmp_path: Path) -> None:
    folder = pico("law")
    (folder / SETTINGS).write_bytes(b"\xef\xbb\xbf" + (folder / SETTINGS).read_bytes())
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04never opened")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in (SETTINGS, TENSORS):
        (linked / name).symlink_to(folder / name)
    assert dict(read_adapter(linked).sha256) == dict(read_adapter(folder).sha256)


# --- what is refused ----------------------------------------------------------------------------------------


def tensors(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    """Adds, replaces or (None) removes tensors; `__` stands for a dot."""

    def apply(folder: Path) -> None:
        content = pico_tensors()
        for key, tensor in changes.items():
            name = PREFIX + key.replace("__", ".")
            content.pop(name, None)
            if tensor is not None:
                content[name] = tensor
        save_file(content, folder / TENSORS)

    return apply


def raw(header: bytes | dict[str, Any], data: bytes = b"") -> Callable[[Path], None]:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return text(struct.pack("<Q", len(head)) + head + data, TENSORS)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def replaced_by(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return apply


def renamed(new: str) -> Callable[[Path], None]:
    return lambda folder: (folder / TENSORS).rename(folder / new)  # type: ignore[return-value]


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for change in changes:
            change(folder)

    return apply


ONE = torch.ones
A_OF_V = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}

# What is done to a good folder, and what the message must say.
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    # files
    "no config": (remove(SETTINGS), f"{SETTINGS}: is missing"),
    "no tensors": (remove(TENSORS), f"{TENSORS}: is missing"),
    "only a pickle": (
        renamed("adapter_model.bin"),
        "a pickle (.bin) is never opened to merge it: riemerge convert",
    ),
    "sharded": (renamed("adapter_model-00001-of-00002.safetensors"), "sharded adapters are not supported"),
    "sharded by index": (
        both(remove(TENSORS), text("{}", f"{TENSORS}.index.json")),
        "sharded adapters are not supported",
    ),
    "a folder for a file": (replaced_by(TENSORS, Path.mkdir), f"{TENSORS}: is not a regular file"),
    "a pipe": (replaced_by(TENSORS, os.mkfifo), f"{TENSORS}: is not a regular file"),
    "a pipe as config": (replaced_by(SETTINGS, os.mkfifo), f"{SETTINGS}: is not a regular file"),
    "dangling link": (
        replaced_by(TENSORS, lambda p: p.symlink_to("nowhere")),
        f"{TENSORS}: is a link to a file that is not there",
    ),
    "empty file": (text(b"", TENSORS), "is 0 bytes long, too short"),
    "seven bytes": (text(b"1234567", TENSORS), "is 7 bytes long, too short"),
    "git lfs": (
        text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", TENSORS),
        "Git LFS pointer",
    ),
    "html": (text("<!DOCTYPE html><html>404</html>", TENSORS), "HTML page"),
    "zip": (text(b"PK\x03\x04" + bytes(range(1, 60)), TENSORS), "zip archive"),
    "pickle": (text(b"\x80\x02}q\x00X\x05\x00\x00\x00helloq\x01K\x01s.", TENSORS), "is a pickle"),
    "gguf": (text(b"GGUF\x03\x00\x00\x00" + bytes(64), TENSORS), "safetensors"),
    "header longer than the file": (
        text(struct.pack("<Q", 2**40) + b"{}", TENSORS),
        "too short for its own header",
    ),
    "header of 2^63": (text(struct.pack("<Q", 2**63) + b"{}", TENSORS), "too short for its own header"),
    "header no json": (raw(b"not json"), "not acceptable JSON"),
    "header a list": (raw(b"[]"), "not a whole safetensors file"),
    "header nested": (raw(b"[" * 100_000), "nested too deeply"),
    "tensor twice in the header": (
        raw(
            b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        'the key "x" occurs twice',
    ),
    "overlap": (raw({"x": A_OF_V, "y": A_OF_V}, bytes(8)), "not a whole safetensors file"),
    "trailing bytes": (raw({"x": A_OF_V}, bytes(99)), "not a whole safetensors file"),
    "bytes missing": (raw({"x": A_OF_V}, bytes(3)), "download or export it again"),
    "wrong size": (raw({"x": {**A_OF_V, "shape": [3]}}, bytes(8)), "not a whole safetensors file"),
    "unknown dtype": (raw({"x": {**A_OF_V, "dtype": "Q4_K"}}, bytes(8)), "not a whole safetensors file"),
    "no tensor inside": (raw({}), "holds no tensors"),
    # tensors
    "no B": (tensors(layers__0__q__lora_B__weight=None), "layers.0.q: has no lora_B"),
    "no A": (tensors(layers__0__q__lora_A__weight=None), "layers.0.q: has no lora_A"),
    "inner sizes": (
        tensors(layers__0__q__lora_A__weight=ONE(3, 4)),
        "layers.0.q: lora_A is (3, 4) but lora_B is (5, 2): the inner sizes 3 and 2 must agree",
    ),
    "one dimension": (tensors(layers__0__q__lora_A__weight=ONE(8)), "layers.0.q: lora_A is (8,)"),
    "a convolution in groups": (
        tensors(layers__0__q__lora_A__weight=ONE(2, 4, 3, 3), layers__0__q__lora_B__weight=ONE(5, 1, 1, 1)),
        "layers.0.q: lora_A is (2, 4, 3, 3) but lora_B is (5, 1, 1, 1): a convolution in 2 groups",
    ),
    "a kernel on both sides": (
        tensors(layers__0__q__lora_A__weight=ONE(2, 4, 3), layers__0__q__lora_B__weight=ONE(5, 2, 3)),
        "the kernel of lora_B must be of one point",
    ),
    "a kernel and a matrix": (
        tensors(layers__0__q__lora_A__weight=ONE(2, 4, 3, 3)),
        "layers.0.q: lora_A is (2, 4, 3, 3) but lora_B is (5, 2): they must be matrices, or kernels",
    ),
    "zero-3": (tensors(layers__0__q__lora_A__weight=ONE(0)), "ZeRO-3"),
    "rank zero": (
        tensors(layers__0__q__lora_A__weight=ONE(0, 4), layers__0__q__lora_B__weight=ONE(5, 0)),
        "must not be empty",
    ),
    "integers": (
        tensors(layers__0__q__lora_A__weight=ONE(2, 4).to(torch.int8)),
        "layers.0.q: is stored as I8",
    ),
    "float8": (
        tensors(layers__0__q__lora_A__weight=ONE(2, 4).to(torch.float8_e4m3fn)),
        "layers.0.q: is stored as F8_E4M3",
    ),
    "twice after normalising": (
        tensors(layers__0__q__lora_A__default__weight=ONE(2, 4)),
        f"layers.0.q: lora_A is stored twice, as {Q}A.default.weight and as {Q}A.weight",
    ),
    "half an embedding": (tensors(emb__lora_embedding_A=ONE(2, 9)), "emb: has no lora_B"),
    "two kinds": (
        tensors(layers__0__q__lora_embedding_A=ONE(2, 9), layers__0__q__lora_embedding_B=ONE(4, 2)),
        "layers.0.q: has factors of a linear layer and of an embedding",
    ),
    "the rank of an embedding": (
        tensors(emb__lora_embedding_A=ONE(3, 9), emb__lora_embedding_B=ONE(4, 3)),
        "emb: the factors have rank 3 but adapter_config.json says 2",
    ),
    "magnitudes": (
        tensors(layers__0__q__lora_magnitude_vector=ONE(5)),
        "layers.0.q.lora_magnitude_vector beside its factors, but use_dora is not true",
    ),
    "a bias that PEFT does not load": (
        tensors(layers__0__q__lora_B__bias=ONE(5)),
        "layers.0.q.lora_B.bias beside its factors, but lora_bias is not true",
    ),
    "a bias of another length": (
        both(config(lora_bias=True), tensors(layers__0__q__lora_B__bias=ONE(4))),
        "layers.0.q.lora_B.bias is (4,): expected 5 numbers",
    ),
    "a bias without factors": (
        both(config(lora_bias=True), tensors(x__lora_B__bias=ONE(4))),
        "x: has no lora_A",
    ),
    "a bias of A": (tensors(layers__0__q__lora_A__bias=ONE(2)), "bias vectors of lora_A"),
    "experts of no whole number": (
        config(target_parameters=["0.q.down"], target_modules=["v", "1.q"], rank_pattern={"q.down": 3}),
        "layers.0.q: is of down (target_parameters), of 2 rows, but r, rank_pattern and alpha_pattern do not",
    ),
    "kasa diagonal": (tensors(layers__0__q__lora_diag=ONE(2)), "KaSA"),
    "kohya": (tensors(lora_unet_x__lora_down__weight=ONE(2, 4)), "kohya or diffusers keys"),
    "another adapter's name": (tensors(layers__0__q__lora_A__law__weight=ONE(2, 4)), "not called default"),
    "loha": (tensors(layers__0__q__hada_w1_a=ONE(2, 4)), "factors of another method"),
    "nested": (
        tensors(x__base_layer__lora_A__weight=ONE(2, 4), x__base_layer__lora_B__weight=ONE(5, 2)),
        "x.base_layer: was saved from a wrapped model",
    ),
    "name with an escape": (
        tensors(**{"x\x1b[31m.lora_A.weight": ONE(2, 4), "x\x1b[31m.lora_B.weight": ONE(5, 2)}),
        r"x\x1b[31m.lora_A.weight' has a name that is not printable",
    ),
    "name turned around": (
        tensors(**{"layers.0\u202eq": ONE(1)}),
        r"\u202eq' has a name that is not printable",
    ),
    "long name": (tensors(**{"a" * 600: ONE(1)}), "not printable or over 512"),
    "a whole model": (
        lambda folder: save_file({"model.w": ONE(2, 2)}, folder / TENSORS),
        "holds no factors, only whole tensors: model.w",
    ),
}


@pytest.mark.parametrize("row", BAD)
def test_bad_folders_are_refused_by_name(pico: Pico, row: str) -> None:
    check_refusal(pico("law"), *BAD[row])


def test_all_problems_are_reported_at_once(pico: Pico) -> None:
    content = pico_tensors()
    content[f"{Q}A.weight"] = torch.ones(3, 4)
    content[f"{PREFIX}head.hada_w1_a"] = torch.ones(2, 2)
    del content[f"{PREFIX}layers.1.q.lora_A.weight"]
    found = "\n".join(
        problems(pico(tensors=content, use_qalora=True, bias="some", lora_alpha="x", new_thing=3))
    )
    for words in (
        "use_qalora",
        "bias",
        "lora_alpha",
        "new_thing",
        "layers.0.q",
        "head.hada_w1_a",
        "layers.1.q",
    ):
        assert words in found


@pytest.mark.parametrize("said", ['{"peft_type": "LORA", "r": "x"}', "{", '{"peft_type": "LORA", "bias": 3}'])
def test_factors_are_not_held_against_settings_that_cannot_be_read(pico: Pico, said: str) -> None:
    folder = pico()
    (folder / SETTINGS).write_text(said)
    assert all(SETTINGS in problem.split(": ")[0] for problem in problems(folder))


def test_many_unknown_tensors_are_summed_up(pico: Pico) -> None:
    content = pico_tensors() | {f"{PREFIX}block.{i:03}.hada_t1": torch.ones(1) for i in range(200)}
    (found,) = problems(pico(tensors=content))
    assert "200 of 206 tensors" in found
    assert "block.000.hada_t1" in found
    assert "and 197 more" in found


@pytest.mark.parametrize("make", ["missing", "file", "empty", "parent", "model", "data"])
def test_a_path_that_is_no_adapter_says_what_it_is(pico: Pico, tmp_path: Path, make: str) -> None:
    folder = tmp_path / make
    if make == "file":
        folder.write_text("x")
    elif make != "missing":
        folder.mkdir()
    if make == "parent":
        pico("parent/checkpoint-500")
        (folder / "training_args.bin").write_bytes(b"\x80")
    for name, file in {"model": "model.safetensors", "data": "statistics.json"}.items():
        if make == name:
            (folder / file).write_text("{}")
    words = {
        "missing": "no such folder or file; nothing is downloaded",
        "file": "is not a folder",
        "empty": "has neither",
        "parent": "did you mean one of its folders: checkpoint-500",
        "model": "it is a full checkpoint, not an adapter",
        "data": "it holds statistics of a model: name it under statistics",
    }
    (found,) = problems(folder)
    assert words[make] in found


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_when_read(pico: Pico, value: float) -> None:
    content = pico_tensors()
    content[f"{Q}B.weight"][3, 1] = content[f"{Q}B.weight"][4, 0] = value
    folder = pico(tensors=content)
    adapter = read_adapter(folder)
    adapter.update("layers.0.v")
    with pytest.raises(AdapterError) as caught:
        adapter.update("layers.0.q")
    assert str(caught.value).startswith(
        f"{folder}: layers.0.q: lora_B holds 2 NaN or Inf, the first at [3, 1]"
    )


@pytest.mark.parametrize("act", [lambda a: a.update("layers.0.q"), lambda a: a.sha256])
@pytest.mark.parametrize("damage", ["other values", "truncated", "deleted"])
def test_a_file_that_changes_in_between_is_noticed(
    pico: Pico, act: Callable[[Adapter], Any], damage: str
) -> None:
    folder = pico("law")
    adapter = read_adapter(folder)
    if damage == "other values":
        save_file(pico_tensors(seed=1), folder / TENSORS)
    elif damage == "truncated":
        (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-20])
    else:
        (folder / TENSORS).unlink()
    with pytest.raises(AdapterError, match=TENSORS):
        act(adapter)


def test_what_was_read_does_not_change_with_the_file(pico: Pico) -> None:
    folder = pico("law")
    update = read_adapter(folder).update("layers.0.q", dtype=torch.float32)
    before = update.B.clone()
    with (folder / TENSORS).open("r+b") as file:
        file.seek(-400, os.SEEK_END)
        file.write(bytes(400))
    assert torch.equal(update.B, before)


def test_an_unknown_module_is_a_key_error(pico: Pico) -> None:
    with pytest.raises(KeyError):
        read_adapter(pico()).update("layers.9.q")


# --- real adapters ------------------------------------------------------------------------------------------

READ = "read"
REAL = {
    "convnext-tiny-mountain/train": READ,
    "convnext-tiny-mountain/v1-binary": READ,
    "open-calm-1b-rank1": READ,
    "sd15-unet-skin": READ,
    **{
        f"nli-minilm/{task}": READ
        for task in ("mnli", "qnli", "rte", "rte-scratch", "scitail", "sick", "snli")
    },
    **{f"nli-minilm-own-init/{task}": READ for task in ("mnli", "qnli", "scitail", "sick", "snli")},
    "privacy-filter-zh": READ,
    "roberta-base-agnews/checkpoint-500": READ,
    "roberta-base-agnews/checkpoint-1200": READ,
    "roberta-base-portuguese/checkpoint-1000": READ,
    "roberta-base-portuguese/checkpoint-6000": READ,
}


def test_every_real_adapter_has_its_row(real_adapters: Path) -> None:
    folders = {str(path.parent.relative_to(real_adapters)) for path in real_adapters.rglob(SETTINGS)}
    assert folders == set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_real_adapters_are_read_exactly_or_refused_by_name(real_adapters: Path, name: str) -> None:
    folder = real_adapters / name
    if REAL[name] is not READ:
        assert REAL[name] in "\n".join(problems(folder))
        return
    assert_read_exactly(folder)


@pytest.mark.parametrize("task", ["snli", "mnli", "qnli", "scitail"])
def test_the_examples_are_the_originals_in_bfloat16(task: str, real_adapters: Path) -> None:
    example = ROOT / "examples" / "adapters" / task
    assert_read_exactly(example)
    original = real_adapters / "nli-minilm" / task
    assert (example / SETTINGS).read_bytes() == (original / SETTINGS).read_bytes()
    ours, theirs = load_file(example / TENSORS), load_file(original / TENSORS)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key].to(torch.bfloat16)) for key in theirs)


def assert_read_exactly(folder: Path) -> None:
    """Against PEFT's formula in plain numpy; none of these folders has patterns or rsLoRA."""
    settings = json.loads((folder / SETTINGS).read_text())
    assert not any(settings[key] for key in ("use_rslora", "rank_pattern", "alpha_pattern"))
    scale = settings["lora_alpha"] / settings["r"]
    adapter = read_adapter(folder)
    stored = load_file(folder / TENSORS)
    assert 2 * len(adapter.modules) == sum(".lora_" in name for name in stored)
    whole = {
        name for name in stored if ".lora_" not in name and "_module" not in name and "modules_to" not in name
    }
    assert {name.replace(".base_layer.", ".") for name in whole} == {PREFIX + name for name in adapter.saved}
    for module in adapter.modules:
        update = adapter.update(module)
        assert update.scale == scale
        assert torch.equal(update.B, stored[f"{PREFIX}{module}.lora_B.weight"].double())
        assert torch.equal(update.A, stored[f"{PREFIX}{module}.lora_A.weight"].double())
    last = adapter.modules[-1]
    dense = adapter.update(last).dense().numpy()
    np.testing.assert_allclose(dense, scale * product(folder, last), rtol=0, atol=1e-14 * np.abs(dense).max())
