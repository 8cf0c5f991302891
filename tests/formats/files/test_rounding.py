"""What a dtype promises for numbers that it can store in full; what it loses beyond is told or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor

from riemerge import merge_adapters
from riemerge.cli.commands import main
from riemerge.errors import NumericalError
from riemerge.formats.checkpoint import DenseWriter
from riemerge.formats.dialects import read_adapter, write_adapter
from riemerge.formats.files.rounding import Rounding, change_warnings, check_rounding, rounding_warnings
from riemerge.formats.rounded_updates import round_update
from riemerge.records.run_record import RunRecord
from riemerge.updates.low_rank import LowRankUpdate
from tests.folders import family, write_family
from tests.helpers import random_update, seeded

HALVES = [torch.float16, torch.bfloat16]
NARROW = [*HALVES, torch.float32]
TINY = {torch.float16: 1e-12, torch.bfloat16: 1e-45, torch.float32: 1e-50}
"""Sizes of factors below the smallest number of each dtype."""


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def update(size: float = 1.0, seed: int = 0, cond: float = 10.0) -> LowRankUpdate:
    b, a = random_update(14, 12, 3, cond, seeded(seed))
    return LowRankUpdate(b, a, size)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("size", [1e6, 1e40])
def test_a_dtype_that_is_named_holds_what_the_other_does_not(
    tmp_path: Path, dtype: torch.dtype, size: float
) -> None:
    if size <= torch.finfo(dtype).max:
        round_update(LowRankUpdate(torch.full((2, 1), size), torch.full((1, 2), size)), dtype)
        return
    whole = torch.full((2, 2), size, dtype=torch.float64)
    with pytest.raises(NumericalError) as narrow:
        round_update(LowRankUpdate(whole[:, :1], whole[:1]), dtype)
    with pytest.raises(NumericalError) as dense, DenseWriter(tmp_path / "out", dtype=dtype) as writer:
        writer.add("x", whole)
    for fault in (narrow, dense):
        named = str(fault.value).partition("a wider dtype such as ")[2].split(" or ")
        assert all(torch.finfo(getattr(torch, name)).max > size for name in named)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("cond", [1.0, 1e4])
def test_an_update_moves_by_no_more_than_its_dtype_promises(dtype: torch.dtype, cond: float) -> None:
    for seed in range(20):
        given = update(seed=seed, cond=cond)
        stored, rounding = round_update(given.balance(), dtype)
        assert rounding.promised == torch.finfo(dtype).eps
        assert float((stored.dense() - given.dense()).norm()) == pytest.approx(rounding.moved, rel=1e-6)
        # 2u + √r u², u = eps/2; at condition 1e4 float16 stores some entries of the last columns below its
        # smallest normal number, to 2⁻²⁵ absolutely: 14 · 12 products of that and an entry below 1.
        u = torch.finfo(dtype).eps / 2
        below = 14 * 12 * 2.0**-25 if dtype is torch.float16 else 0.0
        assert rounding.error <= 2 * u + 3**0.5 * u * u + below
        assert not rounding_warnings({"q": rounding})


@pytest.mark.parametrize("dtype", NARROW)
def test_factors_below_a_dtype_are_refused_and_nothing_is_written(tmp_path: Path, dtype: torch.dtype) -> None:
    size = TINY[dtype]
    with pytest.raises(NumericalError, match="loses 100% of its norm") as caught:
        write_adapter(tmp_path / "out", {"q": update(size**2), "v": update(size**2, 1)}, dtype=dtype)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["q", "v"]
    with (
        pytest.raises(NumericalError, match=r"q: .* loses 100% of its norm"),
        DenseWriter(tmp_path / "dense", dtype=dtype) as writer,
    ):
        writer.add("q", size * update(size).dense())
    assert not list(tmp_path.iterdir())


def test_numbers_whose_squares_underflow_are_no_zero() -> None:
    for size in (1e-180, 1e-300):
        stored, rounding = round_update(update().balance().times(size), torch.float32)
        assert not stored.dense().any()
        assert rounding.error == 1.0
        with pytest.raises(NumericalError, match="out_dtype float64"):
            check_rounding({"q": rounding})


def test_zero_is_stored_exactly_by_every_dtype(tmp_path: Path) -> None:
    assert write_adapter(tmp_path / "out", {"q": update(0.0), "v": update()}, dtype=torch.float16)["q"] == 0.0
    check_rounding({"q": Rounding(torch.float16, 0.0, 0.0)})


def test_a_loss_is_told_beyond_the_promise_of_its_dtype_and_refused_from_a_half_on() -> None:
    for dtype in NARROW:
        eps = torch.finfo(dtype).eps
        for error, told, refused in (
            (eps, False, False),
            (eps + 0.9e-3, False, False),
            (eps + 1.1e-3, True, False),
            (0.49, True, False),
            (0.51, True, True),
        ):
            roundings = {"q": Rounding(dtype, 1.0, error), "v": Rounding(dtype, 1.0, 0.0)}
            texts = rounding_warnings(roundings)
            assert len(texts) == told
            assert all("1 of 2 tensors" in text and "(q: up to" in text for text in texts)
            if refused:
                with pytest.raises(NumericalError, match=r"q: .* loses 51%"):
                    check_rounding(roundings)
            else:
                check_rounding(roundings)


def test_what_is_nothing_beside_the_rest_is_told_and_not_refused(tmp_path: Path) -> None:
    # The round-off of updates that cancel in one module: float16 has no number for it.
    updates = {"q": update(), "v": update(1e-17)}
    errors = write_adapter(tmp_path / "out", updates, dtype=torch.float16)
    assert errors["v"] == 1.0
    rounded = {module: round_update(one.balance(), torch.float16)[1] for module, one in updates.items()}
    (text,) = rounding_warnings(rounded)
    assert "(v: up to 100.0% of the norm" in text


# --- from files to files ------------------------------------------------------------------------------------


def shrunk(root: Path, size: float) -> list[Path]:
    """Two adapters in float32 with both factors of that size: dW is its square."""
    adapters = [
        {module: (size * b, size * a) for module, (b, a) in one.items()} for one in family("close", 2)
    ]
    return write_family(root, adapters, dtype=torch.float32)


@pytest.mark.parametrize("out_type", ["adapter", "delta"])
def test_a_merge_that_float16_rounds_to_zero_is_refused(tmp_path: Path, out_type: str) -> None:
    folders = shrunk(tmp_path / "in", 1e-12)
    asked = ("merge", *folders, "--method", "average", "--out-type", out_type, "-o", tmp_path / "out")
    ran = run(*asked, "--out-dtype", "float16")
    assert ran.exit_code == 5
    name = "layers.1.q" if out_type == "adapter" else "layers.1.q.weight"
    assert f"{name}: stored as float16 it loses 100% of its norm" in ran.stderr
    assert not (tmp_path / "out").exists()
    ran = run(*asked, "--out-dtype", "bfloat16")
    assert ran.exit_code == 0
    assert "moved no module by more than 0.0" in ran.stdout


def test_a_merge_that_loses_digits_to_underflow_says_so_everywhere(tmp_path: Path) -> None:
    # Entries of about 4e-6, which float16 stores to 6e-8.
    folders = shrunk(tmp_path / "in", 1e-5)
    asked = ("merge", *folders, "--method", "average", "--out-dtype", "float16")
    loud, quiet = run(*asked, "-o", tmp_path / "out"), run(*asked, "-q", "-o", tmp_path / "again")
    assert "warning: rounding to float16 moved 3 of 3 tensors" in " ".join(loud.stdout.split())
    assert quiet.stdout == f"{tmp_path / 'again'}\n"
    assert "warning: rounding to float16 moved 3 of 3 tensors" in quiet.stderr
    record = RunRecord.model_validate_json((tmp_path / "out" / "riemerge.json").read_text())
    (text,) = record.warnings
    assert "rounding to float16" in text
    assert "rounding to float16" in (tmp_path / "out" / "README.md").read_text()
    made = merge_adapters(folders, method="average", out_dtype="float16")
    made.save_pretrained(tmp_path / "python")
    for name in ("riemerge.json", "README.md"):
        same = (tmp_path / "python" / name).read_text()
        assert "rounding to float16 moved 3 of 3 tensors" in same
    # And it is so: what is there is off by as much as is said.
    exact = made.updates["layers.0.q"].dense()
    off = (read_adapter(tmp_path / "out").update("layers.0.q").dense() - exact).norm() / exact.norm()
    assert 2e-3 < float(off) < 0.5


def save(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Path:
    folder.mkdir(parents=True)
    save_file({name: one.to(dtype) for name, one in tensors.items()}, folder / "model.safetensors")
    return folder


def models(root: Path, change: float, dtype: torch.dtype) -> list[Path]:
    """A base and two models that differ from it by so much, relatively."""
    generator = seeded(0)

    def one() -> Tensor:
        return torch.randn(40, 30, generator=generator, dtype=torch.float64).clamp(0.3, 3.0)

    base = {name: one() for name in ("a.weight", "b.weight")}
    kept = {name: x.to(dtype).double() for name, x in base.items()}
    tuned = [{name: x + change * x.abs() * one() for name, x in kept.items()} for _ in range(2)]
    return [
        save(root / "base", base, dtype),
        *(save(root / f"m{i}", x, torch.float64) for i, x in enumerate(tuned)),
    ]


@pytest.mark.parametrize("dtype", HALVES)
def test_a_checkpoint_that_rounds_to_its_base_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    base, *tuned = models(tmp_path, 1e-2 * torch.finfo(dtype).eps, dtype)
    asked = ("merge", *tuned, "--method", "average", "--base-model", base, "-o", tmp_path / "out")
    ran = run(*asked, "--out-dtype", name)
    assert ran.exit_code == 5
    assert (
        f"all 2 tensors that the merge changes are those of the base model again when rounded to {name}"
        in (ran.stderr)
    )
    assert not (tmp_path / "out").exists()
    ran = run(*asked, "-q")
    assert (ran.exit_code, ran.stderr) == (0, "")


def test_a_checkpoint_that_loses_much_of_its_change_says_how_much(tmp_path: Path) -> None:
    base, *tuned = models(tmp_path, 2e-3, torch.bfloat16)
    asked: tuple[Any, ...] = ("merge", *tuned, "--method", "average", "--base-model", base)
    ran = run(*asked, "-q", "--out-dtype", "bfloat16", "-o", tmp_path / "half")
    assert ran.exit_code == 0
    assert run(*asked, "-q", "-o", tmp_path / "whole").stderr == ""
    half, whole, start = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "half", tmp_path / "whole", base)
    )
    off, change = (
        torch.cat([(one[name].double() - whole[name].double()).flatten() for name in whole]).norm()
        for one in (half, start)
    )
    assert f"rounding to bfloat16 moved the weights by {float(off / change):.0%} of what" in ran.stderr
    assert off / change > 0.1


def test_changes_of_round_off_alone_are_no_loss() -> None:
    roundings = {"a": Rounding(torch.bfloat16, 1.0, 1e-16)}
    assert change_warnings(roundings, {"a": 1e-16}) == []
