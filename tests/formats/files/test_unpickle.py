"""The program that opens pickles: it is no part of the package that is imported, and is given no names."""

from __future__ import annotations

import ast

from tests.helpers import ROOT


def test_the_program_knows_nothing_of_the_package_and_reads_weights_only() -> None:
    tree = ast.parse((ROOT / "riemerge" / "formats" / "files" / "unpickle.py").read_text(encoding="utf-8"))
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not any(str(name).startswith("riemerge") for name in imported)
    (load,) = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_load(node.func))
    said = {keyword.arg: ast.literal_eval(keyword.value) for keyword in load.keywords}
    assert said == {"map_location": "cpu", "weights_only": True}


def _is_load(called: ast.expr) -> bool:
    return isinstance(called, ast.Attribute) and called.attr == "load"
