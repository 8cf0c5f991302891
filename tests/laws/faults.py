"""Tolerances of the laws."""

from __future__ import annotations

from typing import Any

# Round-off of a few hundred operations on numbers of order one; the Gauss lemma is measured by central
# differences.
EXACT = 1e-12


DIFFERENCES = 1e-6


def broken(base: Any, **verbs: object) -> Any:
    """The same manifold with some verbs replaced."""
    for verb, function in verbs.items():
        setattr(base, verb, function)
    return base
