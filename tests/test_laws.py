"""The verdicts on laws."""

from __future__ import annotations

import math

from riemerge.laws import LAWS, judge


def test_verdicts_are_by_tolerance_and_say_what_is_optional() -> None:
    defects = {"projection": 1e-16, "norm": 1.0, "isometry": 0.3, "gauss": math.inf}
    found = {finding.name: finding.verdict for finding in judge("manifold", defects)}
    assert found == {"projection": "holds", "norm": "fails", "isometry": "optional", "gauss": "fails"}


def test_every_law_says_what_it_is_and_who_needs_it() -> None:
    for laws in LAWS.values():
        for law in laws.values():
            assert law.says
            assert law.needed_by
            assert 0 <= law.tolerance <= 0.1
