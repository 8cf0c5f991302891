"""What a record holds beside measurements: warnings, names, versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from riemerge.records.run_record import RunRecord
from tests.folders import family, merge_adapters, write_family, write_folder
from tests.merging.merges import (
    RECORD,
    TENSORS,
)


def test_the_record_reads_back_and_names_no_place_of_this_machine(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2), base_model_name_or_path=str(tmp_path / "my-base"))
    result = merge_adapters(folders)
    result.save_pretrained(tmp_path / "out")
    for name in (RECORD, "README.md"):
        assert str(tmp_path.parent) not in (tmp_path / "out" / name).read_text()
    text = (tmp_path / "out" / RECORD).read_text()
    content = json.loads(text)
    assert RunRecord.model_validate_json(text) == result.record.with_outputs(content["outputs"])
    assert result.record.base_model == "my-base"
    assert set(content["versions"]) == {"riemerge", "python", "torch", "pymanopt", "numpy"}
    assert set(content["inputs"][0]["sha256"]) == {TENSORS, "adapter_config.json"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (({"revision": "v1"}, {"revision": "v2"}), 'revision differs: "v1" in a, "v2" in b: their bases may'),
        (({"revision": "v1"}, {}), 'revision differs: "v1" in a, null in b'),
        (({"revision": "main"}, {}), None),  # what PEFT loads where there is none
        (({"task_type": "CAUSAL_LM"}, {"task_type": "SEQ_CLS"}), "task_type differs"),
        (({"auto_mapping": {"x": 1, "y": 2}}, {"auto_mapping": {"y": 2, "x": 1}}), None),
        (({"auto_mapping": {"x": 1}}, {}), 'auto_mapping differs: {"x": 1} in a, null in b'),
        (({"alpha_pattern": {"k_proj": 3}}, {}), "a: alpha_pattern: k_proj: decides nothing"),
        (({}, {"lora_alpha": -1}), "b: alpha is negative"),
        (({}, {"target_modules": ["q"]}), "b: PEFT loads no factors where"),
        (({"use_rslora": True}, {"task_type": None}), None),
    ],
)
def test_what_peft_goes_on_with_is_in_the_record(
    tmp_path: Path, settings: tuple[dict[str, Any], ...], says: str | None
) -> None:
    adapters = family("close", 2)
    folders = [
        write_folder(tmp_path / name, one, **said)
        for name, one, said in zip("ab", adapters, settings, strict=True)
    ]
    warnings = merge_adapters(folders, method="average").record.warnings
    assert len(warnings) == (says is not None)
    assert says is None or says in warnings[0]


def test_a_budget_that_runs_out_is_written_with_a_warning(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("mix", 3))
    result = merge_adapters(folders, max_passes=2, cost_tol=0)
    assert result.record.totals.statuses == {"BUDGET": 3}
    assert (
        "3 of 3 modules ended as BUDGET (layers.0.q, layers.0.v, layers.1.q): " in result.record.warnings[0]
    )
    result.save_pretrained(tmp_path / "out")
