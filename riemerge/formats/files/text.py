"""Text that may come from anyone: JSON read strictly, names judged, and both shown safely in messages."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

MAX_JSON_BYTES = 16 * 2**20
MAX_NAME = 512


def strict_json(content: bytes, *, most: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON that may come from anyone.

    Args:
        content: The bytes.
        most: The most bytes that are taken.

    Raises:
        ValueError: More bytes, not UTF-8, not JSON, nested too deeply, a key twice, or NaN or Infinity.
    """
    if len(content) > most:
        raise ValueError(f"is {len(content)} bytes long: expected at most {most}")
    if not content.strip():
        raise ValueError("is empty: expected a JSON object")
    try:
        return json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError("is not acceptable JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not acceptable JSON: {error}") from None


def as_json(content: object) -> bytes:
    """Return content as the package writes JSON: sorted, indented, one line end."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def show(text: str) -> str:
    """Return the text as it may appear in a message: printable and of at most 200 characters."""
    if not text.isprintable():
        text = ascii(text)
    return _shorten(text, 200)


def list_names(names: Iterable[str], most: int = 3) -> str:
    """Return the first few names in words, and how many more there are."""
    names = list(names)
    first = ", ".join(map(show, names[:most]))
    if len(names) <= most:
        return first
    return f"{first} and {len(names) - most} more"


def find_repeated(paths: Iterable[Path]) -> list[str]:
    """Say which of these paths are given more than once, under whatever name."""
    given: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        given[path.resolve()].append(path)
    return [
        f"{same[0]}: is listed {len(same)} times: give it once, with a larger weight"
        for same in given.values()
        if len(same) > 1
    ]


def brief(value: object) -> str:
    """Return a value as JSON, in at most 60 characters."""
    return _shorten(show(json.dumps(value, ensure_ascii=False)), 60)


def can_be_shown(name: str) -> bool:
    """Return whether a name is printable and of at most `MAX_NAME` characters."""
    return name.isprintable() and len(name) <= MAX_NAME


def is_plain_name(name: str) -> bool:
    """Return whether a name stands for a file in its own folder, on every system."""
    return name.isprintable() and name not in {"", ".", ".."} and not {*name} & {"/", "\\", ":"}


def _shorten(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return text[: most - 3] + "..."


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {brief(key)} occurs twice")
        result[key] = value
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")
