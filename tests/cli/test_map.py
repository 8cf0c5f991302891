"""`riemerge map` shows what it dumps, in a folder that it may be given again."""

from __future__ import annotations

import json
from pathlib import Path

from riemerge.report.collection_atlas import PAGE
from tests.cli.runner import run


def test_map_shows_dumps_and_goes_on(folders: list[Path], tmp_path: Path) -> None:
    atlas = tmp_path / "atlas"
    shown = run("map", *folders, "-o", atlas)
    assert shown.exit_code == 0, shown.stderr
    assert f"written to {atlas}/{PAGE}" in shown.stdout
    assert (atlas / PAGE).exists()
    dumped = run("map", *folders, "-o", atlas, "--json", "--distance", "grassmann", "--pairs", "a,b")
    record = json.loads(dumped.stdout)["record"]
    assert [adapter["name"] for adapter in record["adapters"]] == ["a", "b"]
    assert [(pair["first"], pair["second"]) for pair in record["distances"]] == [("a", "b")]
    assert json.loads((atlas / "collection.json").read_text()) == record
    quiet = run("map", *folders, "-o", atlas, "--quiet")
    assert (quiet.stdout, quiet.stderr) == (f"{atlas}\n", "")


def test_a_pair_is_two_names(folders: list[Path], tmp_path: Path) -> None:
    refused = run("map", *folders, "-o", tmp_path / "atlas", "--pairs", "a")
    assert refused.exit_code == 3
    assert "--pairs a: expected two names of adapters with a comma between them" in refused.stderr
