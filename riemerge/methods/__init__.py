"""Methods as rows of a table: edits of each update, a geometry (what *near* means), a solver, a scale."""

from __future__ import annotations

from collections.abc import Iterator

from riemerge.methods.columns import COLUMNS, PLAIN_METHOD, compose, find_recorded_row, find_row
from riemerge.methods.edits import EDITS, Edit
from riemerge.methods.geometries import FORMULA, GEOMETRIES
from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter
from riemerge.methods.stack import Evidence, Merged, Options, Stack
from riemerge.methods.table import DEFAULT_METHOD, METHODS, PARAMETERS, find_method

__all__ = [
    "COLUMNS",
    "DEFAULT_METHOD",
    "EDITS",
    "FORMULA",
    "GEOMETRIES",
    "METHODS",
    "PARAMETERS",
    "PLAIN_METHOD",
    "Edit",
    "Evidence",
    "Merged",
    "Method",
    "Options",
    "Parameter",
    "Stack",
    "compose",
    "find_method",
    "find_recorded_row",
    "find_row",
    "run_method",
]


def run_method(method: Method, stack: Stack, options: Options) -> Iterator[tuple[str, Merged]]:
    """Merge a stack of modules by one row of the table: its edits on each update, then its geometry.

    Law: the result is before the scale λ; it depends on the order neither of the adapters nor of the modules.

    Returns:
        Each module with what it merged to, in the order of their names, as they are done (see `Geometry`).

    Raises:
        NumericalError: An edit or the geometry has no answer for some updates; every one of them is named.
        AdapterError: The updates do not fit each other in this geometry.
    """
    from riemerge.methods.engine import merge_modules

    return merge_modules(method, stack, options)
