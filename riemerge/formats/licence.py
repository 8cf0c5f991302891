"""The licence of a model, as the card beside it says."""

from __future__ import annotations

import re
from pathlib import Path

from riemerge.formats.files.tensor_file import read_start

CARD_FILE = "README.md"

_MOST_BYTES = 2**16
_FRONT = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", re.DOTALL)
# One word, as the hub lists them: no YAML from anyone is parsed.
_LICENCE = re.compile(
    r"""^license:[ \t]*(["']?)(?P<name>[A-Za-z0-9][\w.+-]{0,62})\1[ \t]*(#.*)?$""", re.MULTILINE | re.ASCII
)


def read_licence(folder: Path) -> str | None:
    """Return the licence that the front matter of a model's card names; None where none is named.

    Law: at most 64 KiB are read. `other` and `unknown` name none.

    >>> read_licence(Path("nowhere"))
    """
    try:
        text = read_start(folder / CARD_FILE, _MOST_BYTES).decode(errors="replace").replace("\r\n", "\n")
    except ValueError:
        return None
    front = _FRONT.match(text.removeprefix("\ufeff"))
    found = {match["name"].lower() for match in _LICENCE.finditer(front[1])} if front else set()
    if len(found) != 1 or found & {"other", "unknown"}:
        return None
    return found.pop()
