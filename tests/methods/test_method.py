"""What the rows of the table say: facts are columns, and the default of a parameter is stated in the row."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import riemerge.methods
from riemerge.methods import METHODS, PARAMETERS, Method

FILES = sorted(Path(riemerge.methods.__file__).parent.rglob("*.py"))


def second_defaults(source: str) -> list[str]:
    """Return the expressions that read a parameter beside another value for where it is missing."""
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if _is_second_default(node)]


def _is_second_default(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=values, attr="get"), args=[_, _]):
            return _is_values(values)
        case ast.BoolOp(op=ast.Or(), values=[ast.Call(func=ast.Attribute(value=values, attr="get")), *_]):
            return _is_values(values)
        case ast.BinOp(left=ast.Dict(), op=ast.BitOr(), right=ast.Attribute(attr="values")):
            return True
        case _:
            return False


def _is_values(node: ast.expr) -> bool:
    return ast.unparse(node).split(".")[-1] == "values"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_default_of_a_parameter_is_stated_in_the_row_alone(path: Path) -> None:
    assert second_defaults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "planted",
    [
        "tol = setting.values.get('tol', 1e-12)",
        "tol = values.get('cost_tol') or 0.0",
        "values = {'outer_lr': 1.0} | setting.values",
    ],
)
def test_a_second_default_is_caught(planted: str) -> None:
    assert len(second_defaults(planted)) == 1
    assert second_defaults("t = setting.values.get('t'); tol = setting.values['tol']") == []


@pytest.mark.parametrize("row", METHODS.values(), ids=lambda row: row.name)
def test_a_row_knows_its_parameters(row: Method) -> None:
    assert row.parameters[:2] == ("rank", "scale")
    assert len(set(row.parameters)) == len(row.parameters)
    assert set(row.own_parameters) <= set(row.parameters) <= set(PARAMETERS)
    assert set(row.defaults) <= set(row.own_parameters)
    assert None not in row.defaults.values()


def test_a_parameter_that_stays_open_has_no_default() -> None:
    row = Method("trial", "", "", own_parameters={"rank": "sum", "t": None, "tol": 1e-9})
    assert row.parameters == ("rank", "scale", "t", "tol")
    assert row.defaults == {"rank": "sum", "tol": 1e-9}


def test_facts_that_hold_together() -> None:
    for row in METHODS.values():
        assert row.truncates_inputs == (row.domain == "factors")
        assert row.may_be_undetermined == ("starts" in row.parameters)
        assert not (row.constrained and row.truncates_inputs)
        assert row.geometric or not row.constrained
        assert row.normalised or not row.server_step
