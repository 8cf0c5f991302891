"""A dry run says what the merge then does: its ranks, bytes and warnings, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from riemerge.merging.dry_run import describe_plan
from riemerge.merging.plan import plan
from riemerge.merging.sinks import write
from riemerge.recipes.recipe import read_recipe
from riemerge.records.plan_record import PlanRecord
from tests.cli.runner import run
from tests.folders import listing
from tests.merging.merges import PREFIX, TENSORS, World, served, stored_factors


def stored_bytes(folder: Path) -> int:
    """The bytes of all tensors in a folder, by what their headers say."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            total += sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118
    return total


def both(sources: list[Path], out: Path, **asked: Any) -> tuple[PlanRecord, dict[str, Any]]:
    planned = plan(read_recipe([*map(str, sources)], asked), folder=out)
    described = describe_plan(planned)
    assert not out.exists()
    return described, json.loads(write(planned, out).record.to_json())


@pytest.mark.parametrize(
    "asked",
    [
        {"merge_method": "average"},
        {"merge_method": "average", "rank": 9},
        {"merge_method": "average", "uniform_rank": False},
        {"merge_method": "average", "out_type": "delta"},
        {"merge_method": "cat"},
        {"merge_method": "average", "rank": "90%"},
        {"merge_method": "average", "rank": "sum", "uniform_rank": False, "out_dtype": "bfloat16"},
    ],
)
def test_ranks_and_bytes_are_those_that_are_written_or_bounds_of_them(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    described, record = both(served(tmp_path), tmp_path / "out", **asked)
    bytes_there = stored_bytes(tmp_path / "out")
    assert described.recipe == record["recipe"]
    assert described.base_model == record["base_model"]
    assert [row.module for row in described.modules] == [row["module"] for row in record["modules"]]
    if described.exact:
        assert described.disk_bytes == bytes_there
    else:
        assert bytes_there <= described.disk_bytes
    assert described.exact == (not isinstance(record["recipe"]["parameters"].get("rank"), str))
    if record["out_type"] == "adapter":
        ranks = {module: a.shape[0] for module, (_, a) in stored_factors(tmp_path / "out").items()}
        for row in described.modules:
            assert row.rank is not None
            assert row.rank == ranks[row.module] or (not described.exact and row.rank > ranks[row.module])


def give_heads(folders: list[Path]) -> None:
    for i, folder in enumerate(folders):
        tensors = load_file(folder / TENSORS)
        tensors[f"{PREFIX}classifier.weight"] = torch.full((3, 4), i + 1.0)
        save_file(tensors, folder / TENSORS)


@pytest.mark.parametrize("heads", ["average", "drop"])
def test_heads_are_counted_and_told(tmp_path: Path, heads: str) -> None:
    folders = served(tmp_path)
    give_heads(folders)
    described, _ = both(folders, tmp_path / "out", merge_method="average", heads=heads)
    assert described.disk_bytes == stored_bytes(tmp_path / "out")
    assert any(text.startswith("heads: 1 whole tensors (classifier.weight)") for text in described.warnings)


def test_of_checkpoints_too(world: World, tmp_path: Path) -> None:
    described, record = both(world.models[:2], tmp_path / "out", merge_method="average")
    assert described.disk_bytes == stored_bytes(tmp_path / "out")
    assert [row.module for row in described.modules] == [row["module"] for row in record["modules"]]
    assert {row.rank for row in described.modules} == {None}


def test_memory_grows_with_what_a_row_sees_and_with_the_threads(tmp_path: Path) -> None:
    sources = [*map(str, served(tmp_path))]
    peaks = [
        describe_plan(plan(read_recipe(sources, {"merge_method": method}), threads=threads)).memory_bytes
        for method, threads in (("average", 1), ("average", 2), ("average", 3))
    ]
    assert peaks == sorted(set(peaks))


def test_warnings_are_those_of_the_merge_that_no_tensor_decides(tmp_path: Path) -> None:
    *sources, last = served(tmp_path, 3)
    planned = [*sources, Path(f"{last}:0")]
    described, record = both(planned, tmp_path / "out", merge_method="average", uniform_rank=False)
    assert described.warnings
    assert {*described.warnings} <= {*record["warnings"]}


def test_the_command_writes_nothing_and_needs_no_output(tmp_path: Path) -> None:
    sources = served(tmp_path)
    there = listing(tmp_path)
    ran = run("merge", *sources, "--dry-run", "--method", "average", "--rename", "layers.=h.")
    assert ran.exit_code == 0, ran.output
    assert listing(tmp_path) == there
    assert "modules that start with 'layers.' are read as 'h.'" in ran.stdout
    assert ran.stdout.endswith("nothing was written\n")
    shown = json.loads(run("merge", *sources, "--dry-run", "--json").stdout)
    PlanRecord.model_validate(shown["plan"])
    ran = run("merge", *sources, "--dry-run", "-o", sources[0])
    assert ran.exit_code == 6
    assert run("merge", *sources).exit_code == 2
