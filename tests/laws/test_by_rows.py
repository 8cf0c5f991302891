"""Every row merges tensors that are read by rows as it merges whole ones, and never holds them whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from riemerge.merging import inputs
from riemerge.methods import METHODS
from riemerge.methods.engine import Row
from riemerge.records.run_record import RunRecord
from riemerge.updates import DenseRows
from tests.helpers import seeded
from tests.merging.merges import ONE, merge, shares, write_checkpoint

# Rows that read a large tensor in blocks; all others hold it whole, as their formulas need it.
BY_ROWS = {
    *(
        "average",
        "task_arithmetic",
        "svd",
        "slerp",
        "nuslerp",
        "nuslerp_rows",
        "multislerp",
        "karcher",
        "median",
    ),
    *("huber", "model_stock", "ema", "swa", "lawa", "magnitude_prune", "ties", "ties_peft", "dare_linear"),
    *("dare_ties", "dare_ties_peft", "della", "della_linear", "magmax", "consensus"),
    *("knots_ta", "fedavg", "fedavgm", "fedadam", "diloco", "nearswap", "ram", "ramplus_tl"),
    *("breadcrumbs", "breadcrumbs_ties", "ties_original", "sce", "consensus_ties"),
}
CHECKED = [name for name, row in METHODS.items() if row.checkpoints != "no" and not row.statistics]
EVERY = pytest.mark.parametrize("name", CHECKED)

# Formulas of entries see the same numbers; inner products and sums of magnitudes are added in another order.
EXACT = {"nuslerp_rows", "magnitude_prune", "ties", "ties_peft", "dare_linear", "dare_ties", "dare_ties_peft"}
EXACT |= {"della", "della_linear", "magmax", "consensus", "fedadam", "breadcrumbs", "breadcrumbs_ties"}
EXACT |= {"ties_original", "consensus_ties", "ram", "ramplus_tl", "nearswap"}


def by_rows(name: str) -> bool:
    return Row.of(METHODS[name]).by_rows(METHODS[name].defaults)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models whose differences are few numbers: magnitudes at thresholds are equal."""
    root, draw = tmp_path_factory.mktemp("models"), seeded(3)

    def one() -> dict[str, Tensor]:
        shapes = {"a.weight": (13, 6), "b.weight": (11, 2, 3), "c.bias": (50,), "d.weight": (4, 3)}
        return {
            name: 0.25 * torch.randint(-6, 9, shape, generator=draw).double()
            for name, shape in shapes.items()
        }

    base = one()
    tuned = [{key: base[key] + x for key, x in one().items()} for _ in range(3)]
    return [write_checkpoint(root / name, x) for name, x in zip("0abc", [base, *tuned], strict=True)]


def run(
    folders: list[Path], out: Path, name: str, *, based: bool = True, **parameters: Any
) -> tuple[dict[str, Tensor], RunRecord]:
    row = METHODS[name]
    base, *models = folders
    if "density" in row.parameters:
        parameters = {"density": 0.4, **parameters}
    written = merge(
        out, name, models[: row.models[1] or 3], shares(row), base=base if based else None, **parameters
    )
    return load_file(out / ONE), written.record


@EVERY
def test_blocks_are_merged_as_the_whole(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected, whole = run(models, tmp_path / "whole", name)
    if by_rows(name):
        monkeypatch.setattr(DenseRows, "whole", None)
    monkeypatch.setattr(inputs, "LARGE", 50)
    monkeypatch.setattr(inputs, "BLOCK", 50)  # two rows
    found, record = run(models, tmp_path / "rows", name)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        if name in EXACT:
            assert torch.equal(found[key], tensor), key
        else:
            assert float((found[key] - tensor).norm()) <= 1e-13 * float(tensor.norm()), key
    for row, other in zip(record.modules, whole.modules, strict=True):
        for fact in ("norm", "input_norms", "relative_distances"):
            assert getattr(row, fact) == pytest.approx(getattr(other, fact), rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("name", ["dare_linear", "della"])
def test_a_drop_that_keeps_the_norm_is_that_of_the_whole(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected, _ = run(models, tmp_path / "whole", name, rescale="norm")
    monkeypatch.setattr(DenseRows, "whole", None)
    monkeypatch.setattr(inputs, "LARGE", 50)
    monkeypatch.setattr(inputs, "BLOCK", 50)
    found, _ = run(models, tmp_path / "rows", name, rescale="norm")
    for key, tensor in expected.items():
        assert float((found[key] - tensor).norm()) <= 1e-14 * float(tensor.norm())


@pytest.mark.parametrize(("name", "based"), [("average", False), ("average", True)])
def test_a_scale_and_a_norm_to_match_are_those_of_the_whole(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, based: bool
) -> None:
    asked: dict[str, Any] = {"scale": "matched"} if based else {}
    expected, _ = run(models, tmp_path / "whole", name, based=based, **asked)
    monkeypatch.setattr(DenseRows, "whole", None)
    monkeypatch.setattr(inputs, "LARGE", 50)
    monkeypatch.setattr(inputs, "BLOCK", 50)
    found, _ = run(models, tmp_path / "rows", name, based=based, **asked)
    for key, tensor in expected.items():
        assert float((found[key] - tensor).norm()) <= 1e-14 * float(tensor.norm())


def test_the_rows_that_read_blocks_are_these() -> None:
    assert {name for name in CHECKED if by_rows(name)} == BY_ROWS
