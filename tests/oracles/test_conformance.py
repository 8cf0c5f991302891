"""The committed table of conformance, measured again: the columns of PEFT and of riemerge."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.conformance import (
    COLUMNS,
    COMMITTED,
    FEATURES,
    ROUNDED,
    Cell,
    distance,
    measure,
    prepare,
    table,
)

pytestmark = [
    pytest.mark.oracle,
    # What PEFT says of its own results is no part of the table.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"),
]

RESULT: dict[str, Any] = json.loads(COMMITTED.read_text(encoding="utf-8"))


def is_same(found: Cell, committed: Cell) -> bool:
    """Whether two cells say the same: both exact, about the same error, or the same kind of refusal."""
    if isinstance(found, str) or isinstance(committed, str):
        return str(found).partition(":")[0] == str(committed).partition(":")[0]
    if committed < ROUNDED:
        return found < ROUNDED
    return found == pytest.approx(committed, rel=0.02)


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_treated_as_the_table_says(peft: ModuleType, tmp_path: Path, name: str) -> None:
    if RESULT["versions"]["peft"] != version("peft"):
        pytest.skip("the table is of another version of PEFT")
    committed = RESULT["features"][name]
    found = measure(name, prepare(name, tmp_path), tmp_path)
    assert found.keys() == {*COLUMNS} - {"mergekit"}
    assert {key: cell for key, cell in found.items() if not is_same(cell, committed[key])} == {}


def test_riemerge_is_exact_or_refuses() -> None:
    ours = {name: cells["riemerge"] for name, cells in RESULT["features"].items()}
    assert {*ours} == {*FEATURES}
    assert {name: cell for name, cell in ours.items() if not isinstance(cell, str) and cell > 1e-6} == {}
    assert {cell.partition(":")[0] for cell in ours.values() if isinstance(cell, str)} <= {"AdapterError"}


def test_a_wrong_result_is_a_figure_in_bold() -> None:
    truth = {"x": torch.ones(4), "y": torch.zeros(2)}
    assert distance(truth, truth) == 0
    assert distance({"x": torch.ones(4), "y": torch.ones(2)}, truth) == pytest.approx(0.5**0.5)
    assert distance({}, truth) == 1
    cells = {"peft cat": 0.5, "peft svd": 1e-7, "mergekit": "E: a | b", "riemerge": 0.0}
    line = table({"features": {"`r`, `lora_alpha`": cells}}).splitlines()[-1]
    assert line == "| `r`, `lora_alpha` | **0.50** | 1e-07 | E: a \\| b | 0e+00 |"
