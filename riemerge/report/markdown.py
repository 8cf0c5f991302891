"""Markdown of model cards: tables, front matter, and text from outside shown as it is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from riemerge.report.words import printable


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_yaml(data: Mapping[str, Any]) -> str:
    """Return data that JSON can hold as YAML, in the order given and without anchors."""
    apart = json.loads(json.dumps(data))  # what stands in two places is two objects
    text: str = yaml.safe_dump(apart, sort_keys=False, allow_unicode=True, width=math.inf)
    return text


def escape(text: str) -> str:
    r"""Return text that Markdown and HTML show as it is, on one line.

    >>> escape("a*b")
    'a\\*b'
    """
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", printable(text))
