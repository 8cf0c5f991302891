"""Candidates read back under their names, and are refused where a recipe would refuse them."""

from __future__ import annotations

import pytest

from riemerge.errors import RecipeError
from riemerge.recipes.candidates import Candidate, parse


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("average", {}),
        ("average:rank=sum", {"rank": "sum"}),
        ("ties:density=0.2:normalize=false", {"density": 0.2, "normalize": False}),
        ("geomerge:solver=lbfgs:max_passes=3", {"solver": "lbfgs", "max_passes": 3}),
        ("ties:density=[0.2, 0.4]", {"density": [0.2, 0.4]}),
    ],
)
def test_what_is_read_has_a_name_that_reads_back(text: str, parameters: dict[str, object]) -> None:
    found = parse(text)
    assert found == Candidate(text.partition(":")[0], parameters)
    assert parse(found.name) == found


@pytest.mark.parametrize(
    "text",
    [
        "tsvv",
        "average:density=0.2",
        "ties:density=2",
        "ties:density",
        "ties:",
        "",
        "ties:density=0.2:density=0.5",
    ],
)
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse(text)
