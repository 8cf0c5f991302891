"""Plug-ins: methods, geometries, losses, solvers and edits of other people's, under names of their own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from riemerge.errors import RecipeError
from riemerge.methods.edits import EDITS
from riemerge.methods.geometries import GEOMETRIES
from riemerge.methods.parameters import Parameter
from riemerge.methods.table import METHODS, PARAMETERS
from riemerge.registry import Registry


def load_plugin(module: str) -> None:
    """Import a module and add what it offers to the tables.

    A plug-in is a module with one or more of `METHODS`, `GEOMETRIES`, `LOSSES`, `SOLVERS`, `EDITS` (mappings
    from names to what the tables of those names hold) and `PARAMETERS` (the parameters of its methods that
    are none of ours). Loading it twice changes nothing.

    Law: runs the code of the module. So only a command line or a program loads one, never a recipe.

    Args:
        module: Name of the module, found as Python finds modules, or in the working directory.

    Raises:
        RecipeError: There is no such module, it cannot be imported, it offers nothing, or a name is taken.
    """
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        plugin = import_module(module)
    except Exception as fault:
        raise RecipeError(f"--plugin {module}: it cannot be imported: {fault!r}") from fault
    finally:
        sys.path.remove(here)
    offered = 0
    for name, table in _tables().items():
        given = getattr(plugin, name, {})
        if not isinstance(given, Mapping):
            raise RecipeError(f"--plugin {module}: {name} is {given!r}; expected a mapping from names")
        for word, entry in given.items():
            table.register(word, entry)
        offered += len(given)
    for parameter in getattr(plugin, "PARAMETERS", ()):
        _add_parameter(module, parameter)
    if not offered:
        raise RecipeError(f"--plugin {module}: it offers nothing: expected one of {', '.join(_tables())}")


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


def _add_parameter(module: str, parameter: Parameter) -> None:
    known = PARAMETERS.setdefault(parameter.name, parameter)
    if known != parameter:
        raise RecipeError(f"--plugin {module}: parameter {parameter.name!r} is there already, and is another")
