"""Models as words of a command line: a folder, or a folder with its weight behind a colon."""

from __future__ import annotations

import os
from collections.abc import Sequence

from riemerge.errors import RecipeError, try_each


def parse_spec(text: str) -> tuple[str, float]:
    """Split `folder:weight` at its last colon, if a number follows it; a folder alone has weight 1.

    Law: what exists under the whole text is a folder alone. Where what stands before the colon exists too,
    either may be meant, and neither is taken.

    >>> parse_spec("adapters/law:0.5")
    ('adapters/law', 0.5)
    >>> parse_spec("C:/adapters/law")
    ('C:/adapters/law', 1.0)

    Raises:
        RecipeError: Both the whole text and what stands before the colon exist.
    """
    folder, colon, number = text.rpartition(":")
    if not colon or not folder:
        return text, 1.0
    try:
        weight = float(number)
    except ValueError:
        return text, 1.0
    if not os.path.lexists(text):
        return folder, weight
    if os.path.lexists(folder):
        raise RecipeError(
            f"{text}: both {text} and {folder} exist, so {number} is part of a name or a weight: write "
            f"{text}:1 for the first, {folder}{os.sep}:{number} for the second"
        )
    return text, 1.0


def parse_specs(sources: Sequence[str | tuple[str, float]]) -> list[tuple[str, float]]:
    """Return the folder and weight of each model, given as a text (see `parse_spec`) or as both.

    Raises:
        RecipeError: Texts may be read in two ways: all of them at once.
    """
    return try_each(lambda source: parse_spec(source) if isinstance(source, str) else source, sources)
