"""The page of a comparison: well-formed, escaped, with nothing to load from anywhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from riemerge.report.comparison_page import comparison_page
from tests.study.comparisons import made_comparison, made_run

EMPTY = {"meta", "path", "use", "rect"}


class Nesting(HTMLParser):
    """Raises where tags are not closed in their order; keeps the cells of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in EMPTY or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["td"]:
            self.cells.append(data)


def test_the_page_is_well_formed_escaped_and_whole() -> None:
    runs = made_run("a", [2, 4, 9]), made_run("</td>", [3, 3, 3], cost=(1.0, 1.2, 1.0))
    svg = b'<?xml version="1.0"?><!DOCTYPE svg><svg><path/></svg>'
    page = comparison_page(made_comparison(*runs), {"curves.svg": svg, "curves.png": b"\x89"}, "no <b> here")
    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    assert {"</td>", "<v>", "another minimum"} <= set(parser.cells)
    assert "no &lt;b&gt; here" in page
    assert page.count("<svg>") == 1
    assert "<?xml" not in page
    assert not re.search(r"(src|href)=|@import|<script", page)


def test_only_solvers_that_miss_the_least_cost_are_marked() -> None:
    runs = made_run("a", [2, 4, 9]), made_run("b", [3, 3, 3], cost=(1.0, 1.2, 1.0))
    assert comparison_page(made_comparison(*runs), {}).count('<tr class="short">') == 1
    assert 'class="short"' not in comparison_page(made_comparison(runs[0]), {})
