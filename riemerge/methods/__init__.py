"""Methods as rows of a table: edits of each update, a geometry (what *near* means), a solver, a scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, cast

from riemerge.errors import NumericalError
from riemerge.methods.stack import Edit, Evidence, Geometry, Merged, Options, Stack
from riemerge.methods.table import DEFAULT_METHOD, METHODS, Method, did_you_mean, find_method

if TYPE_CHECKING:
    from riemerge.updates import LowRankUpdate

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "Edit",
    "Evidence",
    "Geometry",
    "Merged",
    "Method",
    "Options",
    "Stack",
    "did_you_mean",
    "find_method",
    "run_method",
]


def run_method(method: Method, stack: Stack, options: Options) -> dict[str, Merged]:
    """Merge a stack of modules by one row of the table: its edits on each update, then its geometry.

    Law: the result is before the scale λ; it depends on the order neither of the adapters nor of the modules.

    Raises:
        NumericalError: An edit or the geometry has no answer for some updates; every one of them is named.
        AdapterError: The updates do not fit each other in this geometry.
    """
    if not method.edits:
        return _geometry(method)(stack, options)
    edited, kept = _edited(method, stack, options)
    merged = _geometry(method)(replace(stack, modules=edited), options)
    return {
        module: replace(one, evidence=replace(one.evidence, energy_kept=kept[module]))
        if kept[module] is not None
        else one
        for module, one in merged.items()
    }


def _edited(
    method: Method, stack: Stack, options: Options
) -> tuple[dict[str, tuple[LowRankUpdate, ...]], dict[str, float | None]]:
    edits = [cast("Edit", _resolve(edit)) for edit in method.edits]
    modules: dict[str, tuple[LowRankUpdate, ...]] = {}
    kept: dict[str, float | None] = {}
    problems: list[str] = []
    for module, updates in stack.modules.items():
        results: list[LowRankUpdate] = []
        for name, update in zip(stack.names, updates, strict=True):
            result = update
            try:
                for edit in edits:
                    result = edit(result, options)
            except NumericalError as fault:
                problems += [f"{name}: {module}: {problem}" for problem in fault.problems]
            results.append(result)
        modules[module] = tuple(results)
        changed = [
            (after.norm() / before.norm()) ** 2
            for before, after in zip(updates, results, strict=True)
            if after is not before
        ]
        kept[module] = min(*changed, 1.0) if changed else None
    if problems:
        raise NumericalError(problems)
    return modules, kept


def _geometry(method: Method) -> Geometry:
    return cast("Geometry", _resolve(method.geometry))


def _resolve(dotted: str) -> Callable[..., object]:
    """Return what `package.module:name` names."""
    module, _, name = dotted.partition(":")
    return cast("Callable[..., object]", getattr(import_module(module), name))
