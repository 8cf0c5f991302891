"""Pictures of a comparison: both formats, the same bytes for the same comparison, a line for each solver."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from riemerge.report.comparison_figures import draw_figures
from tests.study.comparisons import made_comparison, made_run

pytest.importorskip("matplotlib")


def test_pictures_name_every_solver_once_and_are_the_same_again() -> None:
    runs = made_run("a", [2, 4, 9]), made_run("b:x=1", [1, 1, 1]), made_run("b:x=2", [1, 2, 1], gradient=1.0)
    comparison = made_comparison(*runs)
    files = draw_figures(comparison)
    assert set(files) == {"curves.png", "curves.svg", "profiles.png", "profiles.svg"}
    assert draw_figures(comparison) == files
    for name, content in files.items():
        if name.endswith("png"):
            assert content.startswith(b"\x89PNG")
        else:
            texts = [element.text for element in ET.fromstring(content).iter() if element.text]
            assert all(texts.count(run.solver) == 1 for run in runs)
