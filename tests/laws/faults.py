"""Tolerances of the laws."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Round-off of a few hundred operations on numbers of order one; the Gauss lemma is measured by central
# differences.
EXACT = 1e-12


DIFFERENCES = 1e-6
# Laws that are measured by central differences.
DIFFERENTIAL = ("torsion", "compatibility")


def pop_worst(defects: dict[str, float], names: Iterable[str]) -> float:
    """Take some laws out of what was measured: the worst of their defects."""
    return max(defects.pop(name) for name in names)


def broken(base: Any, **verbs: object) -> Any:
    """The same manifold with some verbs replaced."""
    for verb, function in verbs.items():
        setattr(base, verb, function)
    return base
