"""Plug-ins: methods, geometries, losses, solvers and edits of other people's, under names of their own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from riemerge.errors import RecipeError
from riemerge.methods.edits import EDITS
from riemerge.methods.geometries import GEOMETRIES
from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter
from riemerge.methods.table import METHODS, PARAMETERS
from riemerge.registry import Registry

LOADED: dict[str, None] = {}
"""Names of the modules that were loaded, in that order: what another process has to load to do the same."""


def load_plugin(module: str) -> None:
    """Import a module and add what it offers to the tables.

    A plug-in is a module with one or more of `METHODS`, `GEOMETRIES`, `LOSSES`, `SOLVERS`, `EDITS` (mappings
    from names to what the tables of those names hold) and `PARAMETERS` (the parameters of its methods that
    are none of ours). Entries that are texts, `package.module:name`, are imported when they are needed: those
    of METHODS at once. Loading it twice changes nothing.

    Law: runs the code of the module. So only a command line or a program loads one, never a recipe.

    Args:
        module: Name of the module, found as Python finds modules, or in the working directory.

    Raises:
        RecipeError: There is no such module, it cannot be imported, it offers nothing, a name is taken, or a
            method is no row or has a parameter that is not known.
    """
    try:
        plugin = import_named(module)
    except Exception as fault:
        raise RecipeError(f"--plugin {module}: it cannot be imported: {fault!r}") from fault
    tables = _tables()
    shares = {name: getattr(plugin, name, {}) for name in tables}
    for name, share in shares.items():
        if not isinstance(share, Mapping):
            raise RecipeError(f"--plugin {module}: {name} is {share!r}; expected a mapping from names")
    if not any(shares.values()):
        raise RecipeError(f"--plugin {module}: it offers nothing: expected one of {', '.join(tables)}")
    for parameter in getattr(plugin, "PARAMETERS", ()):
        _add_parameter(module, parameter)
    for name, row in shares["METHODS"].items():
        _check_method(module, name, row)
    for name, share in shares.items():
        for word, entry in share.items():
            tables[name].register(word, entry)
    LOADED[module] = None


def import_named(module: str) -> ModuleType:
    """Import a module that a command line names: found as Python does, or in the working directory."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # and stays: entries beside the module are imported when they are needed
    return import_module(module)


def _tables() -> dict[str, Registry[Any]]:
    """Return the tables that a plug-in adds to, by the name that a plug-in gives its share."""
    from riemerge.frechet.loss import LOSSES
    from riemerge.frechet.solvers.catalogue import SOLVERS

    return {
        "METHODS": METHODS,
        "GEOMETRIES": GEOMETRIES,
        "LOSSES": LOSSES,
        "SOLVERS": SOLVERS,
        "EDITS": EDITS,
    }


def _check_method(module: str, name: str, row: Any) -> None:
    """Refuse what is no row, or a row with a parameter that nothing says the kind of."""
    if isinstance(row, str):
        try:
            row = EntryPoint(name, row, METHODS.group).load()
        except Exception as fault:
            raise RecipeError(f"--plugin {module}: method {name} is {row}: {fault!r}") from fault
    if not isinstance(row, Method):
        raise RecipeError(f"--plugin {module}: method {name} is {row!r}; expected a riemerge.Method")
    for parameter in row.own_parameters:
        if parameter not in PARAMETERS:
            raise RecipeError(
                f"--plugin {module}: method {name}: parameter {parameter} is not known: "
                "add it to PARAMETERS of the plug-in"
            )


def _add_parameter(module: str, parameter: Any) -> None:
    """Add a parameter of a plug-in's methods to the table."""
    if not isinstance(parameter, Parameter):
        raise RecipeError(
            f"--plugin {module}: PARAMETERS has {parameter!r}; expected a riemerge.methods.Parameter"
        )
    known = PARAMETERS.setdefault(parameter.name, parameter)
    if known != parameter:
        raise RecipeError(f"--plugin {module}: parameter {parameter.name!r} is there already, and is another")
