"""A sound file is read bit for bit, and says all that has no meaning in it; the readers of adapters and
checkpoints have the tests of what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from riemerge.errors import AdapterError
from riemerge.formats.files.tensor_file import DTYPES, open_tensors, why_not_finite


def test_every_dtype_and_shape_is_read_bit_for_bit_in_any_order(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    given = {
        f"{dtype} {len(shape)}": torch.randint(0, 2, shape, generator=draw).to(dtype)
        for dtype in DTYPES.values()
        for shape in ((), (0, 3), (5,), (3, 7), (2, 1, 3))
    }
    save_file(given, tmp_path / "file")
    file = open_tensors(tmp_path / "file")
    assert list(file.entries) == sorted(given)
    assert file.faults() == []
    assert file.sha256() == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    names = sorted(given, reverse=True)
    for name, tensor in zip(names, file.read(*names), strict=True):
        assert DTYPES[file.entries[name].dtype] == tensor.dtype == given[name].dtype
        assert file.entries[name].shape == tuple(tensor.shape)
        assert torch.equal(tensor, given[name])
        tensor.zero_()  # memory of its own
    assert all(
        torch.equal(tensor, given[name]) for name, tensor in zip(names, file.read(*names), strict=True)
    )


def test_names_and_dtypes_without_a_meaning_are_said_at_once_and_not_read(tmp_path: Path) -> None:
    narrow = torch.ones(2).to(torch.float8_e4m3fn)
    named = {name: torch.ones(1) for name in ("a\n", "x" * 513, "y" * 512)}
    save_file({**named, "q": narrow, "w": narrow.clone()}, tmp_path / "file")
    file = open_tensors(tmp_path / "file")
    names, dtypes = file.faults()
    assert names.startswith("has 2 tensors whose names are not printable or over 512 characters: 'a\\n', xxx")
    assert dtypes.startswith("stores 2 of 5 tensors as F8_E4M3 (q, w): expected floats of 16 bits or more")
    for name in ("q", "nothing"):
        with pytest.raises(KeyError):
            file.read(name)


def test_a_file_exchanged_during_a_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    for place in (path, other):
        save_file({"a": torch.ones(3)}, place)
    file = open_tensors(path)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: (other.replace(path), empty(*a, **k))[1])
    with pytest.raises(AdapterError, match="changed while it was in use"):
        file.read("a")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_is_not_finite_is_counted_and_placed(dtype: torch.dtype) -> None:
    tensor = torch.full((2, 3), torch.finfo(dtype).max, dtype=dtype)  # in float64 the sum overflows
    assert why_not_finite(tensor) is None
    tensor[0, 2], tensor[1, 0] = torch.inf, -torch.inf
    assert why_not_finite(tensor) == "holds 2 NaN or Inf, the first at [0, 2]"
    assert why_not_finite(torch.full((), torch.nan, dtype=dtype)) == "holds 1 NaN or Inf, the first at []"
    assert why_not_finite(torch.ones(3, dtype=torch.int8)) is None
