"""What every checkpoint is to its readers, of one that computes its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import final

import pytest
import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint import Checkpoint

VALUES: Mapping[str, Tensor] = {
    "a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16),
    "b.ids": torch.arange(3),
    "c.weight": torch.tensor([1.0, torch.nan]),
}


@final
class Computed(Checkpoint):
    """Twice the values that it was made of."""

    @property
    def name(self) -> str:
        return "computed"

    @property
    def sha256(self) -> Mapping[str, str]:
        return MappingProxyType({})

    def source(self, name: str) -> Path:
        return self.path / "computed"

    def _read(self, name: str, rows: Sequence[range] | None) -> Tensor:
        values = 2 * VALUES[name]
        if rows is None:
            return values
        return torch.cat([values[run.start : run.stop] for run in rows])


@pytest.fixture
def view() -> Checkpoint:
    return Computed(
        Path("somewhere"),
        {name: tuple(tensor.shape) for name, tensor in VALUES.items()},
        {name: tensor.dtype for name, tensor in VALUES.items()},
        (),
    )


def test_what_follows_from_shapes_and_dtypes(view: Checkpoint) -> None:
    assert view.names == ("a.weight", "b.ids", "c.weight")
    assert view.modules == ("a.weight", "c.weight")
    assert view.not_float == ("b.ids",)
    assert view.stored == {torch.bfloat16, torch.int64, torch.float32}
    assert view.shape("c.weight") == (2,)
    assert dict(view.ranks) == {}


def test_tensors_are_as_stored_or_converted(view: Checkpoint) -> None:
    stored = view.tensor("a.weight", dtype=None)
    assert stored.dtype == torch.bfloat16
    exact = view.tensor("a.weight")
    assert exact.dtype == torch.float64
    assert exact.tolist() == stored.tolist() == [[2.0, 4.0], [6.0, 8.0]]
    assert view.tensor("b.ids", dtype=None).tolist() == [0, 2, 4]


def test_a_refusal_names_the_source(view: Checkpoint) -> None:
    with pytest.raises(AdapterError, match=r"somewhere/computed: b\.ids: is stored as torch\.int64"):
        view.tensor("b.ids")
    with pytest.raises(AdapterError, match=r"somewhere/computed: c\.weight: holds 1 NaN or Inf.* \[1\]"):
        view.tensor("c.weight")
    with pytest.raises(KeyError):
        view.tensor("d.weight")
