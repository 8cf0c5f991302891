"""What is said of a method is what its row says, and its command is one that runs."""

from __future__ import annotations

import pytest

from riemerge.methods import DEFAULT_METHOD, METHODS, PARAMETERS
from riemerge.recipes.candidates import parse_assignments
from riemerge.recipes.recipe import read_recipe
from riemerge.report.method_page import cautions, command, parameter_rows
from riemerge.report.words import value_type


@pytest.mark.parametrize("name", METHODS)
def test_the_command_of_a_method_is_a_recipe_of_it(name: str) -> None:
    program, verb, *words = command(METHODS[name]).split()
    assert (program, verb) == ("riemerge", "merge")
    options: dict[str, list[str]] = {}
    while words[-2].startswith("-"):
        value, option = words.pop(), words.pop()
        options.setdefault(option, []).insert(0, value)
    overrides = {
        "merge_method": options["--method"][0],
        "base_statistics": options.get("--base-statistics", [None])[0],
        **parse_assignments(options.get("-p", [])),
    }
    recipe = read_recipe(words, overrides, options.get("--statistics", []))
    assert recipe.merge_method == name
    assert options["-o"] == ["merged"]
    # What is shown is the default, so the command merges as it would without.
    assert all(METHODS[name].defaults[key] == value for key, value in recipe.parameters.items())


def test_every_parameter_has_its_type_default_and_meaning() -> None:
    for row in METHODS.values():
        rows = {name: rest for name, *rest in parameter_rows(row)}
        assert [*rows] == [*row.parameters]
        for name, (kind, default, meaning) in rows.items():
            assert (kind, meaning) == (value_type(PARAMETERS[name]), PARAMETERS[name].summary)
            assert name not in row.defaults or default == str(row.defaults[name]).lower()


def test_when_not_to_use_a_method_follows_from_its_row() -> None:
    texts = {name: " ".join(cautions(row)) for name, row in METHODS.items()}
    for name, row in METHODS.items():
        assert ("nearly identical" in texts[name]) == (not row.idempotent)
        assert ("below zero" in texts[name]) == (not row.negative_weights)
        assert ("dense dW" in texts[name]) == (row.domain == "entries")
    assert "unrelated tasks" in texts["geomerge"]
    assert "unrelated tasks" not in texts[DEFAULT_METHOD]
