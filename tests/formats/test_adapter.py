"""Adapters, whatever their dialect: only what was named can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riemerge.errors import AdapterError
from riemerge.formats.dialects import read_adapter, write_adapter
from riemerge.updates import LowRankUpdate
from tests.formats.pico import Pico


def test_an_adapter_reads_its_modules_and_no_others(tmp_path: Path) -> None:
    update = LowRankUpdate(torch.ones(5, 2), torch.ones(2, 7))
    write_adapter(tmp_path / "one", {"layers.0.q_proj": update})
    adapter = read_adapter(tmp_path / "one")
    assert (adapter.modules, dict(adapter.ranks)) == (("layers.0.q_proj",), {"layers.0.q_proj": 2})
    torch.testing.assert_close(adapter.update("layers.0.q_proj").dense(), update.dense().double())
    with pytest.raises(KeyError):
        adapter.update("layers.1.q_proj")
    with pytest.raises(KeyError):
        adapter.tensor("classifier.weight")


def test_names_are_read_under_other_prefixes_and_nothing_else_changes(pico: Pico) -> None:
    adapter = read_adapter(pico(alpha_pattern={"^layers.1.q": 7, "idle": 1}))
    other = adapter.rename({"layers.": "model.layers."})
    assert other.modules == tuple(f"model.{module}" for module in adapter.modules)
    for module in adapter.modules:
        one, two = adapter.update(module), other.update(f"model.{module}")
        assert (one.scale, one.rank) == (two.scale, two.rank)
        assert torch.equal(one.dense(), two.dense())
    # What is said of the settings is said of the names in the file.
    assert other.notes == adapter.notes
    assert (other.sha256, other.path) == (adapter.sha256, adapter.path)
    assert other.rename({"model.": ""}).modules == adapter.modules


@pytest.mark.parametrize(
    ("prefixes", "says"),
    [
        ({"layers.0.q": "layers.0.v"}, "layers.0.q and layers.0.v both become layers.0.v"),
        ({"layers.0.q": "", "layers.0.v": ""}, "nothing is left of layers.0.q"),
    ],
)
def test_names_that_become_one_or_none_are_refused(pico: Pico, prefixes: dict[str, str], says: str) -> None:
    with pytest.raises(AdapterError, match=says):
        read_adapter(pico()).rename(prefixes)


def test_another_name_of_the_base_changes_nothing_else(pico: Pico) -> None:
    adapter = read_adapter(pico(base_model_name_or_path="acme/pico-1"))
    assert adapter.on_base("acme/pico-1") is adapter
    other = adapter.on_base(None)
    assert (other.config.base_model_name_or_path, other.sha256) == (None, adapter.sha256)
