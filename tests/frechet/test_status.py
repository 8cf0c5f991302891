"""One list of outcomes: every solver and every row ends with a member of `Status`, never with a text."""

from __future__ import annotations

import ast
from pathlib import Path

import riemerge
from riemerge.frechet.status import Status


def literal_statuses(source: str) -> list[str]:
    """Return the texts of a module that spell the name of a status."""
    constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return [text for text in constants if isinstance(text, str) and text in Status.__members__]


def test_every_outcome_has_advice_of_its_own() -> None:
    assert len({status.advice for status in Status}) == len(Status.__members__)
    assert all(status.advice.endswith(".") for status in Status)


def test_an_outcome_is_good_where_the_mean_answers_what_was_asked() -> None:
    assert {status.name for status in Status if status.ok} == {"EXACT", "CONVERGED", "FLAT"}


def test_no_module_of_the_package_spells_a_status_as_text() -> None:
    root = Path(riemerge.__file__).parent
    assert {
        str(path): found for path in root.rglob("*.py") if (found := literal_statuses(path.read_text()))
    } == {}


def test_a_status_that_is_spelt_as_text_is_caught() -> None:
    assert literal_statuses('if found.status == "UNDEFINED":\n    Answer(x, "BUDGET")') == [
        "UNDEFINED",
        "BUDGET",
    ]
