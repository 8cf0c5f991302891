"""The plug-in of examples/my_lab: short, installed by pip, used from a shell in merges and comparisons."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import my_lab
import pytest
import torch
from my_lab import loss, method, metric, solver, symmetry

from riemerge import read_adapter
from riemerge.errors import RecipeError
from riemerge.methods import find_method
from tests.folders import family, write_family
from tests.helpers import ROOT
from tools.lines import count

LAB = ROOT / "examples" / "my_lab"
MOST_LINES = {metric: 15, symmetry: 10, loss: 3, solver: 15, method: 8}


# --- how little it is ---------------------------------------------------------------------------------------


def lines_of(source: str) -> int:
    """Count what a plug-in is: lines of code, less its imports."""
    body = ast.parse(source).body
    imports = [ast.get_source_segment(source, node) or "" for node in body if _is_import(node)]
    return count(source).code - sum(text.count("\n") + 1 for text in imports)


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


@pytest.mark.parametrize("module", MOST_LINES, ids=lambda module: module.__name__)
def test_a_plugin_is_few_lines(module: Any) -> None:
    assert 1 < lines_of(inspect.getsource(module)) <= MOST_LINES[module]


def test_lines_are_counted_without_imports_comments_and_docstrings() -> None:
    assert lines_of('"""Doc."""\n\nimport a\nfrom b import (\n    c,\n)\n\n# Why.\nx = (\n    1\n)\n') == 3


# --- installed, and used from a shell -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package into a folder by pip, without a network."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for path in (LAB / "pyproject.toml", *LAB.glob("my_lab/*.py")):  # pip may write beside what it builds
        target = source / path.relative_to(LAB)
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", folder / "site", source], check=True
    )
    return folder / "site"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folders = write_family(tmp_path_factory.mktemp("adapters"), family("close", 3, shapes={"q": (14, 12)}))
    return [str(folder) for folder in folders]


def riemerge(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with a folder on the path of Python."""
    path = os.pathsep.join([str(ROOT), str(site)])
    return subprocess.run(
        [sys.executable, "-m", "riemerge", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


def test_all_five_merge_from_a_shell(site: Path, adapters: list[str], tmp_path: Path) -> None:
    """Merge by a row of --plugin, where nothing is installed, and by its columns' entry points: the same."""
    columns = ["--geometry", "sized", "--loss", "cauchy", "--solver", "barzilai_borwein"]
    row = ["--method", "sized", "--plugin", "my_lab"]
    merged = []
    for place, asked in ((LAB, row), (site, columns)):
        folder = tmp_path / place.name
        ran = riemerge(place, "merge", *adapters, "-o", str(folder), "--rank", "sum", "--quiet", *asked)
        assert ran.returncode == 0, ran.stderr
        merged.append(read_adapter(folder))
    inputs = [read_adapter(folder) for folder in adapters]
    for module in inputs[0].modules:
        first, second = (one.update(module).dense() for one in merged)
        torch.testing.assert_close(second, first, rtol=0, atol=0)
        updates = torch.stack([one.update(module).dense() for one in inputs])
        average, size = updates.mean(dim=0), first.norm()
        torch.testing.assert_close(first, average * (size / average.norm()))
        # Where F is least: the distance of two sizes is |w - w'| / √2, and its pull (w - w') / (1 + d²).
        apart = size - updates.flatten(1).norm(dim=1)
        assert float((apart / (1 + apart.square() / 2)).sum().abs()) < 1e-6


def test_all_five_are_compared_from_a_shell(site: Path, adapters: list[str], tmp_path: Path) -> None:
    ran = riemerge(
        site,
        *("compare", *adapters, "-o", str(tmp_path / "study"), "--solvers", "lbfgs,barzilai_borwein"),
        *("--losses", "cauchy", "--geometries", "sized"),
    )
    assert ran.returncode == 0, ran.stderr
    record = json.loads((tmp_path / "study" / "comparison.json").read_text(encoding="utf-8"))
    text = json.dumps(record)
    assert all(name in text for name in ("barzilai_borwein", "cauchy", "sized"))


def test_without_the_plugin_its_names_are_unknown() -> None:
    with pytest.raises(RecipeError, match="unknown method 'sized'"):
        find_method("sized")


def test_both_ways_offer_the_same() -> None:
    """Compare what --plugin adds with what the entry points name."""
    import tomllib

    groups = tomllib.loads((LAB / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    for table in ("methods", "geometries", "losses", "solvers"):
        assert getattr(my_lab, table.upper()) == groups[f"riemerge.{table}"]
