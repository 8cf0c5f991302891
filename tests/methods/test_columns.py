"""Rows with other columns: what a composed row takes over from which row, and what is refused."""

from __future__ import annotations

from contextlib import suppress
from string import Formatter

import pytest

from riemerge.errors import RecipeError
from riemerge.methods import GEOMETRIES, METHODS, compose, find_method, find_recorded_row, find_row
from riemerge.methods.edits import parse_edit


def test_nothing_changed_is_the_row() -> None:
    for row in METHODS.own:
        assert compose(row) is row
        assert find_row({"merge_method": row.name, "geometry": None}) is row


def test_what_a_geometry_decides_comes_with_it() -> None:
    geomerge = find_method("geomerge")
    row = compose(find_method("average"), geometry="polar:core=euclidean")
    assert (row.geometry, row.mean) == ("polar:core=euclidean", "")
    assert row.checkpoints == geomerge.checkpoints == "no"
    assert row.truncates_inputs
    assert row.own_parameters == geomerge.own_parameters
    assert row.name == "average with geometry polar:core=euclidean"


def test_a_loss_brings_the_parameters_of_its_solver() -> None:
    row = compose(find_method("average"), loss="absolute")
    assert {"solver", "tol", "max_passes"} <= set(row.parameters)
    assert row.defaults["tol"] == find_method("median").defaults["tol"]


def test_edits_bring_their_parameters() -> None:
    row = find_row({"merge_method": "average", "edits": ["trim:density=0.3", "elect"]})
    assert row.edits == ("trim:density=0.3", "elect")
    assert "density" in row.parameters


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"geometry": "polr"}, "unknown geometry 'polr': did you mean 'polar'"),
        ({"edits": ["trimm"]}, "unknown edit 'trimm': did you mean 'trim'"),
        ({"edits": ["trim:densty=1"]}, "unknown option 'densty': did you mean 'density'"),
    ],
)
def test_what_does_not_exist_is_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        find_row({"merge_method": "average", **asked})


def test_a_formula_has_no_loss() -> None:
    with pytest.raises(RecipeError, match="spectrum is a formula, and no mean of distances"):
        find_row({"merge_method": "spectrum", "loss": "huber"})


def test_a_record_of_a_plugin_that_is_not_loaded_can_be_shown() -> None:
    assert find_recorded_row({"merge_method": "ties"}) is find_method("ties")
    for recipe in ({"merge_method": "theirs"}, {"merge_method": "average", "geometry": "theirs"}):
        row = find_recorded_row(recipe)
        assert row.name == recipe["merge_method"]
        assert "plug-in that is not loaded" in row.summary


def test_every_row_composes_with_what_its_columns_take_from_parameters() -> None:
    """Options that a kept geometry, loss or edit takes from a parameter have one in the composed row."""
    composed = 0
    for row in METHODS.own:
        for geometry in (None, *GEOMETRIES):
            for loss in (None, "huber", "absolute"):
                with suppress(RecipeError):
                    made = compose(row, geometry=geometry, loss=loss)
                    composed += 1
                    asked = {name for _, name, _, _ in Formatter().parse(made.geometry + made.loss) if name}
                    for edit in (parse_edit(text)[0] for text in made.edits):
                        asked |= {*edit.own_parameters}
                        assert made.survey or not edit.survey
                    assert asked <= {*made.own_parameters}
    assert composed > 1000


def test_an_edit_that_looks_at_all_modules_brings_its_survey() -> None:
    row = find_row({"merge_method": "average", "edits": ["trim_globally:density=0.3"], "geometry": "sphere"})
    assert row.survey.endswith(":vote")
    assert row.defaults["density"] == 0.3
