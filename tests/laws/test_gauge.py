"""Which merge moves with the gauge of one adapter: measured again, beside the committed verdicts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import common, gauge
from riemerge import read_adapter
from tests.helpers import ROOT, adapter_family

RESULT: dict[str, Any] = json.loads((common.RESULTS / "gauge.json").read_text(encoding="utf-8"))
FACTORWISE = {"linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"}


def fresh(tool: str) -> dict[str, bool]:
    """The verdicts of a short measurement: one set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what third parties deprecate is not ours
        found = gauge.changes(tool, seeds=1, families=["independent"])
    return {
        method: gauge.moves({condition: common.noise(values) for condition, values in row.items()})
        for method, row in found.items()
    }


def committed(tool: str) -> dict[str, bool]:
    return {method: gauge.moves(row) for method, row in RESULT["tools"][tool].items()}


@pytest.mark.slow
def test_no_row_of_ours_moves() -> None:
    assert fresh("riemerge") == committed("riemerge") == dict.fromkeys(gauge.OURS, False)


@pytest.mark.oracle
def test_what_peft_does_to_the_factors_by_themselves_moves_and_nothing_else() -> None:
    pytest.importorskip("peft")
    assert fresh("PEFT") == committed("PEFT") == {kind: kind in FACTORWISE for kind in gauge.PEFT}


def test_mergekit_never_sees_factors() -> None:
    assert committed("mergekit") == dict.fromkeys(gauge.MERGEKIT, False)


def test_nothing_is_between_moving_and_not() -> None:
    """The verdict does not hang on where the line is drawn: two decades on either side are empty."""
    largest = {max(gauge.medians(row)) for methods in RESULT["tools"].values() for row in methods.values()}
    assert not [one for one in largest if gauge.MOVES / 100 < one < 10 * gauge.MOVES]


@pytest.mark.parametrize("condition", gauge.GAUGES)
def test_the_rewritten_adapter_is_the_same_update_by_other_factors(condition: float) -> None:
    ((b, a),) = adapter_family("independent", 1, *gauge.SHAPE, gauge.RANK, 3)
    other = gauge.rewritten((b, a), condition, 5)
    assert torch.allclose(other[0] @ other[1], b @ a, rtol=0, atol=1e-14)
    change = torch.linalg.lstsq(b, other[0]).solution
    assert float(torch.linalg.cond(change)) == pytest.approx(condition)
    assert float((other[0] - b).norm() / b.norm()) > 0.5


def test_the_ruler_sees_a_merge_of_the_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(methods: Any, folders: Any, root: Path) -> dict[str, list[Tensor]]:
        read = [[read_adapter(folder).update(gauge.MODULE) for folder in pair] for pair in folders]
        return {
            "factors": [(x.B + y.B).double() @ (x.A + y.A).double() for x, y in read],
            "updates": [x.dense().double() + y.dense().double() for x, y in read],
        }

    monkeypatch.setitem(gauge.TOOLS, "planted", (planted, ("factors", "updates")))
    assert fresh("planted") == {"factors": True, "updates": False}


def test_the_readme_says_which_moves() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    between = page.split("<!-- gauge -->\n")[1].split("<!-- /gauge -->")[0]
    assert between.strip() == gauge.summary(RESULT).strip()
