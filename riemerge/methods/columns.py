"""Rows with other columns: any edits, any geometry, any loss in place of a method's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from string import Formatter
from typing import Any

from riemerge.errors import RecipeError
from riemerge.methods.edits import parse_edit
from riemerge.methods.geometries import FORMULA, GEOMETRIES
from riemerge.methods.method import Method
from riemerge.methods.parameters import check_value
from riemerge.methods.table import METHODS, PARAMETERS, find_method

PLAIN_METHOD = "average"
"""The method whose columns others are put in place of, where none is named."""
COLUMNS = ("edits", "geometry", "loss")
"""The columns that a recipe may put others in place of; the solver is a parameter."""

# What a mean that is solved for is told, where no row of its geometry says otherwise.
_SOLVING: dict[str, Any] = {
    "solver": "lbfgs",
    "form": None,
    "tol": 1e-8,
    "cost_tol": 0.0,
    "max_passes": 1000,
    "max_seconds": None,
    "starts": None,
    "seed": None,
}
# What a geometry decides: a composed row has it from the first row of that geometry.
_OF_GEOMETRY = (
    "domain",
    "models",
    "statistics",
    "checkpoints",
    "truncates_inputs",
    "may_be_undetermined",
    "directions",
    "output_rank",
)
_OF_FORMULA = ("mean", "look", "survey")


def compose(
    row: Method,
    *,
    edits: Sequence[str] | None = None,
    geometry: str | None = None,
    loss: str | None = None,
    solver: str | None = None,
) -> Method:
    """Return a row with some of its columns changed.

    Law: `compose(row)` is the row. What a geometry decides (which inputs it takes, the parameters of its
    solver) is that of the first row of METHODS with this geometry and loss.

    Raises:
        RecipeError: No such edit or geometry; or another loss than the square where the mean is a formula.
    """
    given: dict[str, Any] = {"geometry": geometry, "loss": loss, "solver": solver}
    if edits is not None:
        given["edits"] = tuple(edits)
    changed = {name: value for name, value in given.items() if value is not None}
    if not changed:
        return row
    own: dict[str, Any] = {}
    surveys: list[str] = []
    problems: list[str] = []
    for edit in row.edits if edits is None else edits:
        known, options = parse_edit(edit)
        own |= known.own_parameters
        if known.survey:
            # A survey sees the parameters of the row alone.
            surveys.append(known.survey)
            own |= options
        for name, value in options.items():
            check_value(PARAMETERS[name], value, f"edits: {edit}", problems)
    RecipeError.refuse(problems)
    facts: dict[str, Any] = {}
    if geometry is not None or loss is not None:
        facts = _facts(row, geometry or row.geometry, loss or row.loss)
        kept = {name: row.own_parameters[name] for name in _placeholders(row) if name in row.own_parameters}
        own = {**facts.pop("own_parameters"), **own, **kept}
    else:
        own = {**own, **row.own_parameters}
    facts["survey"] = next(iter(surveys), facts.get("survey", row.survey))
    said = ", ".join(
        f"{name} {','.join(value) if name == 'edits' else value}" for name, value in changed.items()
    )
    return replace(
        row,
        name=f"{row.name} with {said}",
        summary=f"the row `{row.name}` with other columns",
        own_parameters=own,
        differs={},
        **facts,
        **changed,
    )


def _facts(row: Method, geometry: str, loss: str) -> dict[str, Any]:
    """Return what a geometry and a loss decide of a row."""
    if geometry == FORMULA:
        raise RecipeError(f"{row.name} is a formula, and no mean of distances: give a geometry with the loss")
    name, _ = GEOMETRIES.split(geometry)
    alike = [other for other in METHODS.own if _name(other.geometry) == name]
    alike.sort(key=lambda other: (_name(other.loss) != _name(loss), other.geometry != geometry))
    facts: dict[str, Any] = {**dict.fromkeys(_OF_FORMULA, ""), "by_rows": False, "own_parameters": _SOLVING}
    for other in alike[:1]:
        facts |= {fact: getattr(other, fact) for fact in _OF_GEOMETRY}
        facts["own_parameters"] = {**_SOLVING, **other.own_parameters}
        if other.loss == loss and other.geometry == geometry:
            facts |= {fact: getattr(other, fact) for fact in (*_OF_FORMULA, "by_rows")}
    return facts


def _placeholders(row: Method) -> Iterator[str]:
    """Yield the names of the parameters that a row's geometry and loss take options from."""
    for _, name, _, _ in Formatter().parse(row.geometry + row.loss):
        yield from filter(None, [name])


def _name(text: str) -> str:
    """Return the name that a text such as `huber:delta=1` begins with."""
    return text.partition(":")[0]


def find_row(asked: Mapping[str, Any]) -> Method:
    """Return the row that `merge_method` names, with the `edits`, `geometry` and `loss` that are asked for.

    Raises:
        RecipeError: No such method, edit or geometry, or columns that do not fit together.
    """
    return _compose(find_method(asked["merge_method"]), asked)


def find_recorded_row(recipe: Mapping[str, Any]) -> Method:
    """Return the row of a record's recipe; one without facts where it is of a plug-in that is not loaded."""
    name = recipe["merge_method"]
    try:
        return _compose(METHODS[name], recipe)
    except (KeyError, RecipeError):
        return Method(name, "a method of a plug-in that is not loaded", "not known here")


def _compose(row: Method, asked: Mapping[str, Any]) -> Method:
    return compose(row, **{name: asked[name] for name in COLUMNS if asked.get(name)})
