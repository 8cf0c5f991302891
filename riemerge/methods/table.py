"""The methods, as data: each row is a point in the product edits × geometry × solver × scale."""

from __future__ import annotations

import difflib

from riemerge.errors import RecipeError
from riemerge.methods import constrained, data, elections, geodesic, polar, rounds, singular, spectrum, sums
from riemerge.methods.method import Method
from riemerge.methods.parameters import COMMON, Parameter
from riemerge.registry import Registry

DEFAULT_METHOD = "spectrum"


_FAMILIES = (geodesic, polar, sums, elections, singular, spectrum, data, constrained, rounds)

METHODS: Registry[Method] = Registry("method", {row.name: row for family in _FAMILIES for row in family.ROWS})
"""All rows, by name."""

PARAMETERS: dict[str, Parameter] = {
    spec.name: spec
    for specs in (COMMON, *(getattr(family, "PARAMETERS", ()) for family in _FAMILIES))
    for spec in specs
}
"""All parameters of all rows, by name."""


def find_method(name: str) -> Method:
    """Return the row of METHODS with this name.

    Raises:
        RecipeError: No such method; the text says the three that have the nearest names.
    """
    if name in METHODS:
        row: Method = METHODS[name]
        return row
    near = ", ".join(difflib.get_close_matches(name, list(METHODS), n=3, cutoff=0.0))
    raise RecipeError(
        f"merge_method: unknown method {name!r}: the nearest names are {near}; `riemerge methods` lists all"
    )
