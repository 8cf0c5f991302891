"""What is written reads back, has PEFT's form, and appears whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from riemerge.errors import NumericalError, OutputError
from riemerge.formats.dialects import read_adapter, write_adapter
from riemerge.formats.peft import adapter_writer as writer
from riemerge.formats.rounded_updates import round_update
from riemerge.updates.low_rank import LowRankUpdate
from tests.formats.pico import SHAPES, Pico, pico_tensors

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random_updates(ranks: dict[str, int] | None = None, seed: int = 0) -> dict[str, LowRankUpdate]:
    ranks = ranks or {"layers.0.q": 2, "layers.0.v": 3, "layers.1.q": 3}
    generator = torch.Generator().manual_seed(seed)
    return {
        module: LowRankUpdate(
            100 * torch.randn(5, rank, generator=generator, dtype=torch.float64),
            torch.randn(rank, 4, generator=generator, dtype=torch.float64),
            -0.3,
        )
        for module, rank in ranks.items()
    }


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_written_reads_back_to_the_reported_error(tmp_path: Path, dtype: torch.dtype) -> None:
    updates = random_updates()
    errors = write_adapter(tmp_path / "out", updates, dtype=dtype)
    adapter = read_adapter(tmp_path / "out")
    assert adapter.dtype is dtype
    assert adapter.modules == tuple(sorted(updates)) == tuple(errors)
    for module, update in updates.items():
        read = adapter.update(module)
        assert (read.scale, read.rank) == (1.0, update.rank)
        error = np.linalg.norm((read.dense() - update.dense()).numpy()) / np.linalg.norm(
            update.dense().numpy()
        )
        # Both are round-off of round-off in float64; in a narrower dtype they agree to many digits.
        assert errors[module] == pytest.approx(error, rel=1e-6, abs=1e-14)
        # Each factor is off by at most eps / 2 relatively, in Frobenius norm: √r eps for the product of two.
        assert error < 2 * torch.finfo(dtype).eps * read.rank**0.5 + 1e-14
    assert (max(errors.values()) > 1e-9) == (dtype is not torch.float64)


def test_the_factors_are_balanced_and_do_not_depend_on_the_gauge(tmp_path: Path) -> None:
    updates = random_updates()
    turned = {
        module: LowRankUpdate(7 * u.B.flip(1), u.A.flip(0) / 7, u.scale) for module, u in updates.items()
    }
    write_adapter(tmp_path / "one", updates)
    write_adapter(tmp_path / "two", turned)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-6, atol=1e-6)  # float32
    b, a = one["base_model.model.layers.0.v.lora_B.weight"], one["base_model.model.layers.0.v.lora_A.weight"]
    torch.testing.assert_close(b.T @ b, a @ a.T, rtol=1e-4, atol=1e-4)  # products of float32 of size 100


def test_balancing_keeps_a_narrow_dtype_from_underflow_and_overflow(tmp_path: Path) -> None:
    update = LowRankUpdate(
        torch.full((3, 1), 1e6), torch.full((1, 2), 1e-9)
    )  # neither factor fits in float16
    errors = write_adapter(tmp_path / "out", {"q": update}, dtype=torch.float16)
    assert errors["q"] < 2e-3


def test_updates_that_were_rounded_are_written_as_they_are(tmp_path: Path) -> None:
    rounded = {
        module: round_update(u.balance(), torch.bfloat16) for module, u in reversed(random_updates().items())
    }
    updates = {module: update for module, (update, _) in rounded.items()}
    roundings = {module: rounding for module, (_, rounding) in rounded.items()}
    found = write_adapter(tmp_path / "one", updates, dtype=torch.bfloat16, rounding=roundings)
    assert found == {module: rounding.error for module, rounding in roundings.items()}
    write_adapter(tmp_path / "two", random_updates(), dtype=torch.bfloat16)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_settings_say_rank_and_scale_one(pico: Pico, tmp_path: Path) -> None:
    like = [
        read_adapter(
            pico("a", use_rslora=True, task_type="CAUSAL_LM", fan_in_fan_out=True, lora_dropout=0.5)
        ),
        read_adapter(pico("b", fan_in_fan_out=True, base_model_name_or_path=None, exclude_modules=["q"])),
    ]
    write_adapter(tmp_path / "out", random_updates(), like=like)
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings == {
        "peft_type": "LORA",
        "base_model_name_or_path": "somebody/base",
        "revision": None,
        "task_type": None,
        "auto_mapping": None,
        "inference_mode": True,
        "r": 3,
        "lora_alpha": 3,
        "use_rslora": False,
        "rank_pattern": {r"^layers\.0\.q": 2},
        "alpha_pattern": {r"^layers\.0\.q": 2},
        "target_modules": ["layers.0.q", "layers.0.v", "layers.1.q"],
        "fan_in_fan_out": True,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def test_facts_are_carried_on_only_where_all_agree(pico: Pico, tmp_path: Path) -> None:
    mapping = {"base_model_class": "M", "parent_library": "m"}
    facts: dict[str, Any] = {"task_type": "CAUSAL_LM", "revision": "main", "auto_mapping": mapping}
    a, b, c = (
        read_adapter(folder)
        for folder in (pico("a", **facts), pico("b", **facts), pico("c", base_model_name_or_path="x"))
    )
    for name, like, expected in (("same", [a, b], facts), ("mixed", [a, c], dict.fromkeys(facts))):
        write_adapter(tmp_path / name, random_updates(), like=like)
        settings = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert {key: settings[key] for key in facts} == expected
        assert (settings["base_model_name_or_path"] is None) == (name == "mixed")


def test_a_pattern_means_its_module_and_no_other(tmp_path: Path) -> None:
    # PEFT lets a pattern match the end of a name; regular characters in names must not count either.
    ranks = {"a.q": 1, "b.a.q": 3, "bxa.q": 2, "a+q": 2, "a.q.0": 3, "axq": 3}
    write_adapter(tmp_path / "out", random_updates(ranks))
    adapter = read_adapter(tmp_path / "out")
    assert dict(adapter.ranks) == ranks
    assert {adapter.update(module).scale for module in adapter.modules} == {1.0}


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_adapter(tmp_path / name, random_updates(), dtype=torch.bfloat16)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_zero_update_is_written_with_error_zero(tmp_path: Path) -> None:
    zero = LowRankUpdate(torch.zeros(3, 2), torch.ones(2, 4))
    assert write_adapter(tmp_path / "out", {"q": zero}, dtype=torch.float16) == {"q": 0.0}


def test_extra_files_and_modes(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_adapter(
            tmp_path / "out", random_updates(), extra_files={"README.md": "# Größe\n", "riemerge.json": "{}"}
        )
    finally:
        os.umask(before)
    out = tmp_path / "out"
    assert (out / "README.md").read_text(encoding="utf-8") == "# Größe\n"
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "riemerge.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "adapter_config.json"])
def test_an_extra_file_cannot_lie_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of an extra file"):
        write_adapter(tmp_path / "out", random_updates(), extra_files={name: ""})
    assert not list(tmp_path.iterdir())


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no update"):
        write_adapter(tmp_path / "out", {})


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            LowRankUpdate(torch.full((3, 1), 1e6), torch.full((1, 2), 1e6)),
            "the largest torch.float16 is",
        ),
        (LowRankUpdate(torch.full((3, 1), torch.nan), torch.ones(1, 2)), "NaN or Inf"),
        (LowRankUpdate(torch.ones(3, 1), torch.full((1, 2), torch.inf)), "NaN or Inf"),
        (LowRankUpdate(torch.full((3, 1), 1e38), torch.full((1, 2), 1e38), 1e300), "norm overflows"),
    ],
)
def test_values_that_cannot_be_stored_are_refused_by_module(
    tmp_path: Path, bad: LowRankUpdate, words: str
) -> None:
    with pytest.raises(NumericalError, match=words) as caught:
        write_adapter(tmp_path / "out", {"q": bad, "v": bad, **random_updates()}, dtype=torch.float16)
    assert [problem[:3] for problem in caught.value.problems] == ["q: ", "v: "]
    assert not list(tmp_path.iterdir())


# --- where it may appear ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["folder", "empty folder", "file", "dangling link", "no parent", "parent a file"]
)
def test_an_impossible_target_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
        (target / "mine").write_text("precious")
    elif kind == "empty folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("precious")
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    elif kind == "no parent":
        target = target / "deeper"
    else:
        target.write_text("precious")
        target = target / "deeper"
    before = sorted(tmp_path.rglob("*"))
    words = "does not exist" if "parent" in kind else "exists already"
    with pytest.raises(OutputError, match=words):
        write_adapter(target, random_updates())
    assert sorted(tmp_path.rglob("*")) == before


# --- all or nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_system_call_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The n-th of the calls that make, sync or rename a file fails, for every n until one run succeeds."""
    patched = [(Path, "mkdir"), (Path, "open"), (Path, "rename"), (os, "fsync"), (os, "open")]
    real = {(owner, name): getattr(owner, name) for owner, name in patched}
    left = 0

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise error
            return call(*args, **kwargs)

        return wrapped

    for (owner, name), call in real.items():
        monkeypatch.setattr(owner, name, failing(call))
    failures = 0
    for n in range(1, 100):
        left = n
        try:
            write_adapter(tmp_path / "out", random_updates(), extra_files={"README.md": "x"})
        except (OutputError, KeyboardInterrupt):
            failures += 1
            left = 0
            names = [path.name for path in tmp_path.iterdir()]
            if names:  # only the sync after the rename comes too late to undo: the output is whole
                assert names == ["out"]
                assert failures >= 10
                assert read_adapter(tmp_path / "out").modules
                for path in (tmp_path / "out").iterdir():
                    path.unlink()
                (tmp_path / "out").rmdir()
        else:
            break
    assert failures >= 11  # mkdir, three files opened and synced, two folders opened and synced, rename
    left = 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[int, bool] = {}  # by inode: whether the output had its name already
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced[os.fstat(descriptor).st_ino] = (tmp_path / "out").exists()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_adapter(tmp_path / "out", random_updates(), extra_files={"README.md": "x"})
    inside = [tmp_path / "out", *(tmp_path / "out").iterdir()]
    assert synced == {path.stat().st_ino: path == tmp_path for path in [*inside, tmp_path]}


def test_what_does_not_read_back_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for damage in (
        lambda data: data[:-4] + b"\x00\x00\x00\x3f",
        lambda data: data[:-8],
        lambda data: data[:-4] + b"\xff" * 4,
    ):
        monkeypatch.setattr(
            writer, "save", lambda *args, damage=damage, **kwargs: damage(save(*args, **kwargs))
        )
        with pytest.raises(OutputError, match="read back"):
            write_adapter(tmp_path / "out", random_updates())
        assert not list(tmp_path.iterdir())


def test_another_who_was_faster_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = writer._check_written

    def meanwhile(*args: Any) -> None:
        check(*args)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("precious")

    monkeypatch.setattr(writer, "_check_written", meanwhile)
    with pytest.raises(OutputError, match="appeared while it was being written"):
        write_adapter(tmp_path / "out", random_updates())
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["out", "out/mine"]


def test_reading_and_writing_one_adapter_keeps_every_update(pico: Pico, tmp_path: Path) -> None:
    tensors = pico_tensors() | pico_tensors({"layers.0.v": (3, 4)}, rank=3)
    adapter = read_adapter(
        pico("a", tensors, rank_pattern={"v": 3}, alpha_pattern={"1.q": 7}, use_rslora=True)
    )
    updates = {module: adapter.update(module) for module in adapter.modules}
    write_adapter(tmp_path / "out", updates, like=[adapter], dtype=torch.float64)
    again = read_adapter(tmp_path / "out")
    assert again.modules == tuple(sorted(SHAPES))
    for module in again.modules:
        torch.testing.assert_close(
            again.update(module).dense(), adapter.update(module).dense(), rtol=1e-13, atol=1e-13
        )
