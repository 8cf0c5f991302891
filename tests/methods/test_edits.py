"""Edits by name: what a text says, and what is refused."""

from __future__ import annotations

import pytest
import torch

from riemerge.errors import RecipeError
from riemerge.methods import EDITS, PARAMETERS
from riemerge.methods.edits import Edit, parse_edit
from riemerge.methods.setting import FlatEdit
from riemerge.methods.stack import resolve
from tests.methods.edited import random_updates, setting


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_names_a_function_and_parameters_that_there_are(name: str) -> None:
    edit: Edit = EDITS[name]
    assert callable(resolve(edit.function))
    assert set(edit.own_parameters) <= set(PARAMETERS)


def test_a_text_gives_an_edit_its_parameters() -> None:
    edit, given = parse_edit("trim_both_ends:density=0.5:gamma=0.1")
    assert edit is EDITS["trim_both_ends"]
    assert given == {"density": 0.5, "gamma": 0.1}
    assert parse_edit("elect")[1] == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trimm", "unknown edit 'trimm': did you mean 'trim'"),
        ("trim:denisty=1", "edit trim: unknown option 'denisty': did you mean 'density'"),
        ("trim:density", "'density' is no option=value"),
    ],
)
def test_what_is_no_edit_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_edit(text)


def test_elected_entries_are_those_that_agree() -> None:
    keep: FlatEdit = resolve(EDITS["elect"].function)
    x = random_updates((3, 6, 5))
    kept = keep(x, setting(x))
    sign = x.sum(dim=0).sign()
    assert torch.equal(kept != 0, (x.sign() == sign) & (x != 0))
    assert torch.equal(kept[kept != 0], x[kept != 0])
    assert torch.equal(keep(kept, setting(x)), kept)
