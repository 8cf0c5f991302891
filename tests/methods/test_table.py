"""The table of methods: names are found, and near ones are named for those that are not there."""

from __future__ import annotations

import pytest

from riemerge.errors import RecipeError
from riemerge.methods import DEFAULT_METHOD, METHODS, PARAMETERS, find_method


def test_a_row_is_found_by_its_name() -> None:
    assert all(find_method(name) is row for name, row in METHODS.items())
    assert DEFAULT_METHOD in METHODS
    assert all(spec.name == name for name, spec in PARAMETERS.items())


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        RecipeError, match="merge_method: unknown method 'averge': the nearest names are average, "
    ):
        find_method("averge")
