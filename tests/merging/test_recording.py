"""What a record holds beside measurements: warnings, names, versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from riemerge.merging.plan import plan
from riemerge.merging.sinks import collect
from riemerge.records.run_record import RunRecord
from tests.folders import family, merge_adapters, write_family, write_folder
from tests.merging.merges import RECORD, TENSORS, recipe_of


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
        (({}, {"target_modules": ["q"]}), "but PEFT leaves them out: the result"),
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


@pytest.mark.parametrize("missing", ["zero", "skip"])
def test_modules_that_some_lack_have_rows_and_one_line(tmp_path: Path, missing: str) -> None:
    one, two, three = family("close", 3)
    some = [one, {"layers.0.q": two["layers.0.q"]}, {"layers.1.q": three["layers.1.q"]}]
    folders = write_family(tmp_path, some)
    result = merge_adapters([folders[2], folders[0], folders[1]], method="average", missing=missing)
    rows = result.record.missing
    assert [(row.module, row.inputs, row.counted) for row in rows] == [
        ("layers.0.q", ("c",), missing),
        ("layers.0.v", ("c", "b"), missing),
        ("layers.1.q", ("b",), missing),
    ]
    ((warning, *others),) = [result.record.warnings]
    assert others == []
    assert warning.startswith(f"missing: {missing}: 3 of 3 modules are lacking in b or c (layers.0.q, ")
    assert [row.ranks for row in result.record.inputs] == [(3,), (3,), (3,)]
    # What reads the record again does the same merge again.
    assert result.record.recipe["missing"] == missing
    assert RunRecord.model_validate_json(result.record.to_json()) == result.record
    result.save_pretrained(tmp_path / "out")
    assert "missing: " + missing in (tmp_path / "out" / "README.md").read_text()


def test_a_weight_of_zero_in_a_module_is_not_told_as_an_update_of_zeros(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 3))
    own = [{"filter": "layers.0.q", "value": 0.0}, {"value": 1.0}]
    record = collect(plan(recipe_of("geomerge", folders, [1.0, 1.0, own], max_passes=3))).record
    assert record.modules[0].numerical_ranks == (3, 3, 0)
    assert not any("all zero" in warning for warning in record.warnings)
