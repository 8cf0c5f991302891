"""What is written reads back, has the form of transformers, and appears whole or not at all."""

from __future__ import annotations

import builtins
import io
import json
import math
import os
import shutil
import stat
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from riemerge.errors import NumericalError, OutputError
from riemerge.formats.checkpoint import DenseWriter, read_checkpoint
from riemerge.formats.files.tensor_writer import TensorWriter
from tests.fake_cuda import fake_cuda

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Bytes of float32 tensors: 60, 20, 48, and 24 of the integers.
SHAPES = {"b.weight": (3, 5), "b.bias": (5,), "a.weight": (2, 3, 1, 2)}
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"


def tensors(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    floats = {
        name: 100 * torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in SHAPES.items()
    }
    return floats | {"ids": torch.arange(3), "zero": torch.zeros(2), "one": torch.tensor(1.0)}


def write(folder: Path, given: dict[str, Tensor] | None = None, **settings: Any) -> dict[str, float]:
    with DenseWriter(folder, **settings) as dense:
        for name, tensor in (tensors() if given is None else given).items():
            dense.add(name, tensor)
        dense.add_file("config.json", "{}")
    return dict(dense.errors)


@pytest.mark.parametrize("shard_bytes", [1, 60, 10**9])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_written_reads_back_to_the_reported_error(
    tmp_path: Path, dtype: torch.dtype, shard_bytes: int
) -> None:
    errors, given = write(tmp_path / "out", dtype=dtype, shard_bytes=shard_bytes), tensors()
    read = read_checkpoint(tmp_path / "out")
    assert read.names == tuple(sorted(given))
    assert set(errors) == set(given)
    for name in SHAPES:
        assert read.dtypes[name] is dtype
        error = float((read.tensor(name) - given[name]).norm() / given[name].norm())
        assert errors[name] == pytest.approx(error, rel=1e-12)
        assert error <= torch.finfo(dtype).eps / 2  # rounding to nearest, entry by entry
        assert (error > 0) == (dtype is not torch.float64)
    assert read.tensor("ids", dtype=None).tolist() == [0, 1, 2]
    assert (errors["ids"], errors["zero"], errors["one"]) == (0.0, 0.0, 0.0)


def test_each_tensor_may_keep_or_choose_its_dtype(tmp_path: Path) -> None:
    with DenseWriter(tmp_path / "out") as dense:
        assert dense.add("kept", torch.rand(3).half()) == 0.0
        assert dense.add("widened", torch.rand(3).half(), dtype=torch.float32) == 0.0
        assert dense.add("narrowed", torch.rand(3), dtype=torch.bfloat16) > 0.0
        assert dense.add("of another kind", torch.rand(3).half(), dtype=torch.bfloat16) > 0.0
        assert dense.add("ids", torch.arange(3), dtype=torch.float32) == 0.0
    assert dict(read_checkpoint(tmp_path / "out").dtypes) == {
        "ids": torch.int64,
        "kept": torch.float16,
        "narrowed": torch.bfloat16,
        "of another kind": torch.bfloat16,
        "widened": torch.float32,
    }


def test_shards_are_full_and_no_larger(tmp_path: Path) -> None:
    sizes = {"a": 5, "b": 5, "c": 6, "d": 30, "e": 1, "f": 9}
    given = {name: torch.full((size,), float(size)) for name, size in sizes.items()}
    write(tmp_path / "out", given, shard_bytes=4 * 10)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"] == {"total_size": 4 * sum(sizes.values())}
    shards = [["a", "b"], ["c"], ["d"], ["e", "f"]]  # in the order of adding; d is larger than a shard
    names = [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert index["weight_map"] == {
        key: place for place, keys in zip(names, shards, strict=True) for key in keys
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*names, INDEX, "config.json"]
    )
    for place, keys in zip(names, shards, strict=True):
        with safe_open(tmp_path / "out" / place, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert sorted(file.keys()) == keys


def test_what_was_added_is_on_the_disk_and_not_in_memory(tmp_path: Path) -> None:
    with DenseWriter(tmp_path / "out", shard_bytes=100) as dense:
        (stage,) = tmp_path.iterdir()
        for i in range(20):
            tensor = torch.rand(7)
            dense.add(f"t{i}", tensor)
            assert any(tensor.numpy().tobytes() in path.read_bytes() for path in stage.iterdir())
            kept = weakref.ref(tensor)
            del tensor
            assert kept() is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_tensor_in_blocks_is_written_and_measured_as_the_whole(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = 100 * torch.randn(17, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with DenseWriter(tmp_path / "one", dtype=dtype) as one, DenseWriter(tmp_path / "two", dtype=dtype) as two:
        error = one.add("w", whole)
        blocks = two.add_blocks("w", (17, 3, 2), torch.float64, whole.split(5))
    assert (tmp_path / "one" / ONE).read_bytes() == (tmp_path / "two" / ONE).read_bytes()
    assert blocks == pytest.approx(error, rel=1e-14)
    assert two.roundings["w"].norm == pytest.approx(float(whole.norm()), rel=1e-14)


def test_a_block_that_cannot_be_stored_is_refused_by_the_name_of_its_tensor(tmp_path: Path) -> None:
    blocks = [torch.ones(3), torch.full((3,), math.inf)]
    with (
        pytest.raises(NumericalError, match=r"^w: the tensor holds NaN"),
        DenseWriter(tmp_path / "o") as dense,
    ):
        dense.add_blocks("w", (6,), torch.float32, blocks)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["transposed", "slice", "expanded", "parameter", "shared", "changed later"])
def test_any_tensor_is_written_as_it_was(tmp_path: Path, kind: str) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensor = {
        "transposed": base.mT,
        "slice": base[:, 1:3],
        "expanded": base[:1].expand(5, 4),
        "parameter": nn.Parameter(base),
    }.get(kind, base)
    expected = tensor.detach().clone()
    with DenseWriter(tmp_path / "out") as dense:
        dense.add("one", tensor)
        if kind == "changed later":
            base.zero_()
        elif kind == "shared":
            dense.add("two", tensor)
    read = read_checkpoint(tmp_path / "out")
    for name in read.names:
        assert torch.equal(read.tensor(name), expected.to(torch.float64))


def test_tensors_of_a_device_are_written(tmp_path: Path) -> None:
    expected = write(tmp_path / "cpu", dtype=torch.bfloat16)
    with fake_cuda():
        moved = {name: tensor.to("cuda") for name, tensor in tensors().items()}
        assert write(tmp_path / "cuda", moved, dtype=torch.bfloat16) == expected
    assert (tmp_path / "cpu" / ONE).read_bytes() == (tmp_path / "cuda" / ONE).read_bytes()


@pytest.mark.parametrize("shard_bytes", [60, 10**9])
def test_writing_twice_gives_the_same_bytes(tmp_path: Path, shard_bytes: int) -> None:
    contents = []
    for name in ("one", "two"):
        write(tmp_path / name, shard_bytes=shard_bytes)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


def test_files_beside_the_tensors_and_modes(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\x00\xff")
    before = os.umask(0o027)
    try:
        with DenseWriter(tmp_path / "out", shard_bytes=1) as dense:
            dense.add("a", torch.ones(2))
            dense.add("b", torch.ones(2))
            dense.add_file("README.md", "# Größe\n")
            dense.add_file("tokenizer.json", tmp_path / "tokenizer.json")
    finally:
        os.umask(before)
    out = tmp_path / "out"
    assert (out / "README.md").read_text(encoding="utf-8") == "# Größe\n"
    assert (out / "tokenizer.json").read_bytes() == b"\x00\xff"
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tokenizer.json"]


# --- what is not written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.tensor([1.0, math.nan]), "^q: the tensor holds NaN or Inf"),
        (torch.tensor([-math.inf, 1.0]), "^q: the tensor holds NaN or Inf"),
        (torch.full((2,), 1e300, dtype=torch.float64), "^q: .*its norm overflows"),
        (
            torch.tensor([1.0, -7e4]),
            r"^q: the tensor reaches 7e\+04 but the largest torch.float16 is 6.55e\+04",
        ),
    ],
)
def test_values_that_cannot_be_stored_are_refused_by_name(tmp_path: Path, bad: Tensor, words: str) -> None:
    with pytest.raises(NumericalError, match=words):
        write(tmp_path / "out", {"good": torch.ones(2), "q": bad}, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda dense: dense.add("a", torch.ones(2)), "was added already"),
        (lambda dense: dense.add("", torch.ones(2)), "cannot be the name of a tensor"),
        (lambda dense: dense.add("a\nb", torch.ones(2)), "cannot be the name of a tensor"),
        (lambda dense: dense.add("x" * 513, torch.ones(2)), "cannot be the name of a tensor"),
        (lambda dense: dense.add("__metadata__", torch.ones(2)), "cannot be the name of a tensor"),
        (
            lambda dense: dense.add("c", torch.ones(2, dtype=torch.complex64)),
            "complex64, which is not stored",
        ),
        (lambda dense: dense.add("c", torch.ones(2), dtype=torch.int8), "expected a float dtype"),
        (lambda dense: dense.add("c", torch.ones(2), dtype=torch.float8_e5m2), "expected a float dtype"),
        (lambda dense: dense.add_file("config.json", ""), "cannot be the name of an extra file"),
        *(
            (lambda dense, name=name: dense.add_file(name, ""), "cannot be the name of an extra file")
            for name in ("", ".", "..", "a/b", "../a", "/a", ONE, INDEX, "shard-0.safetensors")
        ),
    ],
)
def test_misuse_is_an_error_and_leaves_nothing(
    tmp_path: Path, wrong: Callable[[DenseWriter], None], words: str
) -> None:

    def misuse() -> None:
        with DenseWriter(tmp_path / "out", shard_bytes=1) as dense:
            dense.add("a", torch.ones(2))
            dense.add("b", torch.ones(2))
            dense.add_file("config.json", "")
            wrong(dense)

    with pytest.raises(ValueError, match=words):
        misuse()
    assert not list(tmp_path.iterdir())


def test_what_the_writer_cannot_be_made_with(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"dtype": torch.int64}, {"dtype": torch.float8_e4m3fn}, {"shard_bytes": 0}]
    for settings in wrong:
        with pytest.raises(ValueError, match="expected"):
            DenseWriter(tmp_path / "out", **settings)
    with pytest.raises(ValueError, match="no tensor to write"), DenseWriter(tmp_path / "out"):
        pass
    with pytest.raises(ValueError, match="not open"):
        DenseWriter(tmp_path / "out").add("a", torch.ones(2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file", "no parent"])
def test_an_impossible_target_is_refused_before_any_work(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("precious")
    else:
        target = target / "deeper"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError), DenseWriter(target):
        pytest.fail("nothing may run")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"), DenseWriter(tmp_path / "out") as dense:
        dense.add_file("config.json", tmp_path / "nowhere.json")
    assert not list(tmp_path.iterdir())


# --- all or nothing -----------------------------------------------------------------------------------------


@contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException, *, dead: bool
) -> Iterator[list[str]]:
    """From the n-th of the calls that change the disk: that one fails, or it and all that follow (as after a
    kill, when not even the tidying up runs)."""
    calls: list[str] = []
    owners: list[tuple[Any, str]] = [
        (Path, "mkdir"), (Path, "rename"), (Path, "touch"), (Path, "chmod"), (os, "open"), (os, "fsync"),
        (builtins, "open"), (io, "open"), (Path, "unlink"), (TensorWriter, "add"),
    ]  # fmt: skip
    if dead:
        owners += [(shutil, "rmtree")]

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == at or (dead and len(calls) > at):
                raise error
            return call(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        for owner, name in owners:
            patch.setattr(owner, name, wrap(name, getattr(owner, name)))
        yield calls


@pytest.mark.parametrize(
    ("kind", "shard_bytes"),
    [
        ("disk full", 80),
        ("disk full", 10**9),
        ("interrupted", 10**9),
        ("killed", 80),
    ],
)
def test_a_failure_at_any_point_leaves_no_half_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shard_bytes: int
) -> None:
    error: BaseException = KeyboardInterrupt()
    if kind == "disk full":
        error = OSError(28, "No space left on device")
    faults: list[str] = []
    late = 0
    for n in range(1, 200):
        with failing(monkeypatch, n, error, dead=kind == "killed") as calls:
            try:
                write(tmp_path / "out", shard_bytes=shard_bytes)
            except (OutputError, KeyboardInterrupt) as fault:
                faults.append(str(fault))
        if len(calls) < n:
            break
        names = [path.name for path in tmp_path.iterdir()]
        if kind == "killed":  # the hidden folder stays, and nothing that could be taken for the output
            assert all(name == "out" or name.startswith(".out.riemerge-") for name in names)
        if "out" in names:  # only what follows the rename comes too late to undo: a sync, the tidying up
            late += 1
            assert read_checkpoint(tmp_path / "out").names == tuple(sorted(tensors()))
            assert (tmp_path / "out" / "config.json").read_text() == "{}"
        else:
            assert kind == "killed" or not names
        for path in tmp_path.iterdir():
            shutil.rmtree(path)
    assert len(faults) >= 12
    assert all(("No space left" in fault) == kind.startswith("disk full") for fault in faults)
    assert 0 < late < 4


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[int, bool] = {}  # by inode: whether the output had its name already
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced[os.fstat(descriptor).st_ino] = (tmp_path / "out").exists()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write(tmp_path / "out", shard_bytes=60)
    inside = [tmp_path / "out", *(tmp_path / "out").iterdir()]
    assert synced == {path.stat().st_ino: path == tmp_path for path in [*inside, tmp_path]}


@pytest.mark.parametrize("damage", ["cut", "another header", "another tensor", "another dtype"])
def test_what_does_not_read_back_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    finish = TensorWriter.finish

    def damaged(self: TensorWriter) -> str:
        sha256, path = finish(self), self._path
        content, data = load_file(path), path.read_bytes()
        if damage == "another tensor":
            save_file({**content, "ids": torch.arange(4)}, path)
        elif damage == "another dtype":
            save_file({**content, "ids": torch.arange(3).int()}, path)
        elif damage == "cut":
            path.write_bytes(data[:-8])
        else:
            path.write_bytes(data.replace(b"b.bias", b"b.bios"))
        return sha256

    monkeypatch.setattr(TensorWriter, "finish", damaged)
    with pytest.raises(OutputError, match="read back"):
        write(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_another_who_was_faster_is_not_overwritten(tmp_path: Path) -> None:
    def too_late() -> None:
        with DenseWriter(tmp_path / "out") as dense:
            dense.add("a", torch.ones(2))
            (tmp_path / "out").mkdir()

    with pytest.raises(OutputError, match="appeared while"):
        too_late()
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


# --- what others make of it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what third parties deprecate while they are imported is not ours
        return pytest.importorskip("transformers")


def small_model(transformers: ModuleType, family: str) -> PreTrainedModel:
    if family == "bert":
        config = transformers.BertConfig(
            vocab_size=11, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20
        )
    else:
        config = transformers.LlamaConfig(
            vocab_size=11, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=1,
        )  # fmt: skip
    model: PreTrainedModel = transformers.AutoModel.from_config(config)
    return model


@pytest.mark.oracle
@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("shard_bytes", [2000, 10**9])
def test_transformers_and_safetensors_load_what_is_written(
    tmp_path: Path, transformers: ModuleType, family: str, shard_bytes: int
) -> None:
    model = small_model(transformers, family)
    model.save_pretrained(tmp_path / "given", max_shard_size=3000)
    given = read_checkpoint(tmp_path / "given")
    assert set(given.names) == set(model.state_dict())
    with DenseWriter(tmp_path / "out", shard_bytes=shard_bytes, dtype=torch.float32) as dense:
        for name in given.names:
            dense.add(name, 2 * given.tensor(name))
        for path in given.other_files:
            dense.add_file(path.name, path)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 2000)
    loaded = {name: tensor for file in files for name, tensor in load_file(file).items()}
    again = transformers.AutoModel.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], 2 * tensor)
        assert torch.equal(again[name], 2 * tensor)
