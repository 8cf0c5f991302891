"""What is declared in pyproject.toml is what the package imports, and what an index shows of it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

from tests.helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"yaml": "pyyaml"}
# Imported by name alone: pymanopt.function.autograd needs it. Extras are imported where they are needed.
UNSEEN = {"autograd"}
OPTIONAL = {"distributed", "huggingface_hub", "matplotlib", "peft", "pyarrow", "transformers"}


def imported(paths: list[Path]) -> set[str]:
    """The distributions of other people whose packages these files import."""
    names: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    foreign = names - set(sys.stdlib_module_names) - {"riemerge"}
    return {DISTRIBUTIONS.get(name, name) for name in foreign}


def declared(lines: list[str]) -> set[str]:
    return {re.split(r"[<>=\[]", line)[0].strip().lower() for line in lines}


def test_the_dependencies_are_what_the_package_imports() -> None:
    used = imported(sorted((ROOT / "riemerge").rglob("*.py")))
    assert used - OPTIONAL | UNSEEN == declared(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    for_users = ("dask", "hub", "parquet", "peft", "plot")
    assert declared([line for name in for_users for line in extras[name]]) == OPTIONAL


def test_an_import_that_is_not_declared_is_caught(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("import os\nimport scipy.linalg\nfrom yaml import safe_load\n", encoding="utf-8")
    assert imported([module]) == {"scipy", "pyyaml"}


def test_an_index_has_what_it_shows() -> None:
    assert {"authors", "urls", "description", "readme", "license", "keywords"} <= PROJECT.keys()
    least = int(PROJECT["requires-python"].removeprefix(">=3."))
    assert f"Programming Language :: Python :: 3.{least}" in PROJECT["classifiers"]
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())
