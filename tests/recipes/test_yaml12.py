"""YAML is read as plain data with the scalars of YAML 1.2, and its traps are refused by line."""

from __future__ import annotations

import math

import pytest

from riemerge.errors import RecipeError
from riemerge.recipes.yaml12 import parse_yaml


def yaml_problem(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        (".5", 0.5),
        ("-2.", -2.0),
        ("08", 8),
        ("+12", 12),
        ("0.5", 0.5),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("'0.5'", "0.5"),
        ('"true"', "true"),
        ("<<", "<<"),
        ("=", "="),
        ("Ω", "Ω"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read_as_such_and_refused_later() -> None:
    assert math.isnan(parse_yaml("key: .nan")["key"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' stands already on line 1"),
        ("x: {a: 1,\n a: 2}", "line 2: 'a' stands already on line 1"),
        ("a: &x 1\nb: *x\n", "line 1: anchors and aliases are refused"),
        ("a: !!python/object:os.system 1", "line 1: the tag"),
        ("a: !mine 1", "line 1: the tag '!mine' is refused"),
        ("? [1, 2]\n: 3\n", "a key must be a word"),
        ("a: " + "[" * 5000, "nested deeper than"),
    ],
)
def test_yaml_that_is_no_plain_data_is_refused(text: str, says: str) -> None:
    assert says in yaml_problem(text)


def test_an_alias_bomb_does_not_expand() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert "anchors and aliases are refused" in yaml_problem(bomb)


def test_every_duplicate_key_is_reported() -> None:
    assert len(yaml_problem("a: 1\na: 2\nb: {c: 1, c: 2}\n").splitlines()) == 2
