"""Models as words: a folder, a folder with its weight behind a colon, a base model with an adapter added."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from riemerge.errors import RecipeError, try_each
from riemerge.formats.hub import locate


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


def split_sum(text: str, beside: str | Path = "") -> tuple[str, str] | None:
    """Split `base+adapter`, a base model and the adapter that is added to it, at the plus between them.

    Law: what exists under the whole text is one folder, and a plus in the name of a folder is part of it:
    the text is split where both parts exist, else where one of them does. What exists nowhere is split
    nowhere.

    Args:
        text: What names the model.
        beside: The folder from which relative paths start.

    Returns:
        The texts before and behind the plus; None where the text names one model.

    Raises:
        RecipeError: The text may be split at more than one plus.
    """
    if "+" not in text or _is_there(text, beside):
        return None
    places = [i for i, letter in enumerate(text) if letter == "+" and 0 < i < len(text) - 1]
    parts = [(text[:i], text[i + 1 :]) for i in places]
    for enough in (all, any):
        fitting = [pair for pair in parts if enough(_is_there(part, beside) for part in pair)]
        if len(fitting) > 1:
            named = " or ".join(f"{base} with {adapter}" for base, adapter in fitting)
            raise RecipeError(
                f"{text}: is {named}: rename a folder, or give the adapter as ./{fitting[0][1]}"
            )
        if fitting:
            return fitting[0]
    return None


def parts_of(model: str) -> tuple[str, ...]:
    """Return the texts of a base model and of the adapter added to it; of one model, its own."""
    return split_sum(model) or (model,)


def _is_there(text: str, beside: str | Path) -> bool:
    return os.path.lexists(locate(text, beside))


def locate_model(text: str, beside: str | Path = "", names: Collection[str] = ()) -> str:
    """Return the path of a model, or those of a base model and of the adapter added to it, with a plus.

    Args:
        text: What names the model: a path, an id of the hub such as `org/name@revision`, or two with a plus.
        beside: The folder from which relative paths start.
        names: Names that stay as they are.
    """
    if text in names:
        return text
    if parts := split_sum(text, beside):
        return "+".join(locate_model(part, beside, names) for part in parts)
    return str(locate(text, beside))
