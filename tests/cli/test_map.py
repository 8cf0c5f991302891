"""`riemerge map` shows what it dumps, in a folder that it may be given again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riemerge.report import collection_figures
from riemerge.report.collection_atlas import PAGE
from tests.cli.runner import run
from tests.folders import family, write_family


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


@pytest.mark.parametrize(
    ("name", "places", "kind"), [("independent", (0, 1), "strangers"), ("close", (0, 0), "copies")]
)
def test_two_adapters_that_are_no_family_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, places: tuple[int, int], kind: str
) -> None:
    monkeypatch.setattr(collection_figures, "_DPI", 20)
    made = family(name, 2)
    paths = write_family(tmp_path, [made[place] for place in places])
    shown = run("map", *paths, "-o", tmp_path / "atlas", "--json")
    assert shown.exit_code == 0, shown.stderr
    assert {cluster["kind"] for cluster in json.loads(shown.stdout)["record"]["clusters"]} == {kind}
