"""The generated parts of the pages are what the code and the benchmark files make."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.build import BLOCKS, HEADLINE, PAGES, fill, headline, methods_table, parameters_table
from riemerge.methods import METHODS, PARAMETERS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_generated_parts_of_a_page_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert fill(text) == text


def test_every_generated_part_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(f"<!-- {name} -->\n" in text for name in BLOCKS)


def test_a_figure_that_was_typed_is_made_anew() -> None:
    page = f"before\n<!-- headline -->\n{headline()}\n<!-- /headline -->\nafter"
    assert fill(page) == page
    assert fill(page.replace("0.", "1.")) == page
    with pytest.raises(KeyError):
        fill("<!-- unknown -->\nx\n<!-- /unknown -->")


def test_the_tables_have_a_row_for_each_method_and_parameter() -> None:
    assert len(methods_table().splitlines()) == len(METHODS) + 2
    assert len(parameters_table().splitlines()) == len(PARAMETERS) + 2
    assert len(headline().splitlines()) == len(HEADLINE) + 4 <= 12
