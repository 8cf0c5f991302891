"""The committed table of conformance: some rows are measured again, and no setting of PEFT lacks a row."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import conformance
from benchmarks.conformance import COMMITTED, FEATURES, QUICK, TOLERANCE, apart, cell, way_out
from riemerge.formats.peft.config import AdapterConfig

pytestmark = [
    pytest.mark.oracle,
    # What PEFT says of its own results is no part of the table.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"),
]

RESULT: dict[str, Any] = json.loads(COMMITTED.read_text(encoding="utf-8"))
ROWS: dict[str, Any] = RESULT["rows"]


def is_same(found: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Whether two cells say the same: both exact, about the same error, or the same refusal."""
    if "refused" in said:
        return found.get("refused") == said["refused"]
    if "error" not in found:
        return False
    if said["error"] <= TOLERANCE:
        return bool(found["error"] <= TOLERANCE)
    return math.isclose(found["error"], said["error"], rel_tol=0.02)


def test_some_rows_are_measured_again(peft: ModuleType) -> None:
    if RESULT["versions"]["peft"] != version("peft"):
        pytest.skip("the table is of another version of PEFT")
    found = conformance.measure(QUICK)["rows"]
    assert set(found) == set(QUICK)
    for name, row in found.items():
        for tool in ("PEFT", "riemerge"):
            assert row[tool].keys() == ROWS[name][tool].keys()
            for way, one in row[tool].items():
                said = ROWS[name][tool][way]
                assert is_same(one, said), (name, tool, way, one, said)
                assert is_same(one.get("reloaded", said), said.get("reloaded", said)), (name, tool, way)


def test_riemerge_is_exact_or_refuses_and_names_what_merges() -> None:
    assert list(ROWS) == [feature.name for feature in FEATURES]
    for feature in FEATURES:
        cells = ROWS[feature.name]["riemerge"]
        errors = [one["error"] for one in cells.values() if "error" in one]
        assert all(error <= 1e-6 for error in errors)
        assert ("told" in cells) == bool(feature.ways)
        if feature.ways:
            assert way_out(feature).removesuffix(" BASE") in cells["plain"]["refused"]
            assert "error" in cells["told"]


def test_what_peft_merges_is_get_delta_weight_where_factors_are_the_whole_update() -> None:
    more = {"use_dora", "use_dora in the second alone", "kasa_config"}
    more |= {f"init_lora_weights: {init}" for init in ("pissa", "olora")}
    deltas = {name: row["delta"] for name, row in ROWS.items() if row["delta"] is not None}
    assert len(deltas.keys() - more) > 25
    assert max(deltas[name] for name in deltas.keys() - more) < 1e-12


def test_every_setting_of_lora_has_a_row(peft: ModuleType) -> None:
    settings = {one.name for one in dataclasses.fields(peft.LoraConfig)}
    rows = [
        one
        for feature in FEATURES
        if feature.kind == "LoraConfig"
        for one in (feature.settings, feature.second, feature.said, feature.second_said)
    ]
    shown = {name for row in rows for name in row} - {"qalora_group_size"}
    without = {name for names in conformance.WITHOUT_ROW for name in names.split(", ")}
    assert shown | without == settings
    assert not shown & without
    assert AdapterConfig.model_fields.keys() <= settings


def test_a_wrong_result_is_a_figure_in_bold() -> None:
    truth = {"x": torch.ones(4), "y": torch.zeros(2)}
    assert apart(truth, truth) == 0
    assert apart({"x": torch.ones(4), "y": torch.ones(2)}, truth) == pytest.approx(0.5**0.5)
    assert apart({}, truth) == 1
    assert apart({**truth, "z": torch.ones(4)}, truth) == 1
    assert (cell({"error": 0.5}), cell({"error": 1e-7})) == ("**0.5**", "1.0e-07")
    assert cell({"refused": "error: a/adapter_config.json: x | y error: b: z"}) == "refused: x \\| y"
