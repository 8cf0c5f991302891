"""`riemerge inspect` shows what it dumps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.runner import run
from tests.folders import family, write_family, write_folder


def test_inspect_shows_and_dumps_the_same(folders: list[Path]) -> None:
    shown, dumped = run("inspect", *folders), run("inspect", *folders, "--json")
    assert shown.exit_code == dumped.exit_code == 0
    document = json.loads(dumped.stdout)
    assert [adapter["name"] for adapter in document["adapters"]] == ["a", "b"]
    assert len(document["pairs"]) == 1
    assert "a – b" in shown.stdout
    assert dumped.stderr == shown.stderr == "inspect: 3 of 3: layers.1.q\n"
    assert run("inspect", *folders, "--quiet").stderr == ""


def test_factors_far_apart_whose_product_is_in_range_are_the_same_update(tmp_path: Path) -> None:
    (one,) = family("close", 1)
    turned = {module: (1e200 * b, 1e-200 * a) for module, (b, a) in one.items()}
    paths = [write_folder(tmp_path / "a", one), write_folder(tmp_path / "b", turned)]
    (pair,) = json.loads(run("inspect", *paths, "--json").stdout)["pairs"]
    assert pair["overlap"]["cosine"] == pytest.approx(1.0, rel=1e-14)


def test_of_many_adapters_a_map_is_advised(tmp_path: Path) -> None:
    paths = write_family(tmp_path, family("close", 8))
    assert "riemerge map compares many adapters" in run("inspect", *paths).stdout
    assert "riemerge map compares" not in run("inspect", *paths[:7]).stdout
