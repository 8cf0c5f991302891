"""Packages whose public names are imported when they are first used: importing the package costs nothing."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from typing import Any


def defer_imports(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of a package that imports its names when they are used.

    The names are stated once, as the imports from the package under `TYPE_CHECKING` in its
    `__init__.py`: type checkers follow them as they stand, and here their bytecode is read as a table.

    Args:
        package: `__name__` of the package.
    """
    module = sys.modules[package]
    assert module.__spec__ is not None
    loader: Any = module.__spec__.loader
    homes, home = {}, ""
    for instruction in dis.get_instructions(loader.get_code(package)):
        if instruction.opname == "IMPORT_NAME":
            home = instruction.argval
        elif instruction.opname == "IMPORT_FROM" and home.startswith(f"{package}.") and home != __name__:
            homes[instruction.argval] = home

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(__import__(homes[name], fromlist=[name]), name)
        return vars(module).setdefault(name, found)

    return [*homes], find, lambda: sorted(homes)
