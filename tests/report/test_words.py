"""Numbers, shares, types and names as reports show them."""

from __future__ import annotations

import pytest

from riemerge.methods import PARAMETERS
from riemerge.report.words import number, printable, shares_of, value_type


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (4.2, "4.20"),
        (123.4, "123"),
        (0.0123, "0.0123"),
        (1234.0, "1.2e+03"),
        (1e-9, "1.0e-09"),
        (float("inf"), "inf"),
        (-2.5, "-2.50"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_printable_text_stays_and_anything_else_becomes_visible() -> None:
    assert printable("Ω é 中 [x]") == "Ω é 中 [x]"
    assert printable("a\tb\u2028\udcff") == "a\\tb\\u2028\\udcff"


def test_of_many_inputs_the_least_and_the_greatest_share_are_shown() -> None:
    assert shares_of(["law", "code"], [0.5, None]) == "law 50%, code -"
    names = list("abcdef")
    assert shares_of(names, [0.3, 0.1, None, 0.9, 0.2, -0.1]) == "f -10%, d 90%"


def test_every_parameter_has_a_type_with_its_range() -> None:
    types = {name: value_type(PARAMETERS[name]) for name in PARAMETERS}
    assert types["density"] == "FLOAT 0<..1"
    assert types["epsilon"] == "FLOAT 0..<0.5"
    assert types["form"] == "[joint|nested]"
    assert types["max_passes"] == "INT 1.."
    assert types["scale"] == "FLOAT|matched"
    assert types["rank"] == "INT 1..|SHARE%|sum|auto"
    assert all(text.isprintable() and " None" not in text for text in types.values())
