"""A file written block by block has the bytes that safetensors gives it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from riemerge.formats.files.tensor_file import DTYPES
from riemerge.formats.files.tensor_writer import TensorWriter


@pytest.mark.oracle
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_the_bytes_are_those_of_safetensors(tmp_path: Path, rows: int) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"{word.lower()}.weight": torch.randint(0, 100, (7, 3), generator=draw).to(dtype)
        for word, dtype in DTYPES.items()
    }
    tensors |= {'aé\n"': torch.ones(2), "number": torch.tensor(1.5), "empty": torch.empty(0, 4)}
    writer = TensorWriter(tmp_path / "file")
    for name, tensor in tensors.items():
        blocks = tensor.split(rows) if tensor.numel() > 1 else [tensor]
        writer.add(name, tuple(tensor.shape), tensor.dtype, blocks)
    assert writer.names == list(tensors)
    assert writer.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    sha256 = writer.finish()
    save_file(tensors, tmp_path / "expected", metadata={"format": "pt"})
    content = (tmp_path / "file").read_bytes()
    assert content == (tmp_path / "expected").read_bytes()
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["expected", "file"]


def test_what_a_fault_left_of_a_tensor_is_written_over(tmp_path: Path) -> None:
    writer = TensorWriter(tmp_path / "file")
    writer.add("a", (2,), torch.float32, [torch.ones(2)])
    with pytest.raises(ZeroDivisionError):
        writer.add("b", (9,), torch.float32, (torch.full((4,), 1.0 / i) for i in (1, 0)))
    writer.add("c", (2,), torch.float32, [torch.zeros(2)])
    writer.finish()
    save_file({"a": torch.ones(2), "c": torch.zeros(2)}, tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / "file").read_bytes() == (tmp_path / "expected").read_bytes()
