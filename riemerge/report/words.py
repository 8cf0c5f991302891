"""Words for people: numbers, shares, and names from outside, as every report shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from riemerge.methods import Parameter

MOST_NAMES = 4
"""Above so many inputs, a line shows the least and the greatest of their numbers."""


def text_of(value: float | None, form: str = "{}", *, missing: str = "-") -> str:
    """Return a value in a form of `str.format`; what stands for a missing one where it is None."""
    return missing if value is None else form.format(value)


def number(value: float | None) -> str:
    """Return a number to three digits, `-` for none."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-2 <= abs(value) < 1e3:
        return f"{value:#.3g}".rstrip(".")
    return f"{value:.1e}"


def printable(text: str) -> str:
    r"""Return the text with everything a terminal might act on written as an escape.

    >>> printable("law\x1b[31m")
    'law\\x1b[31m'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def when(condition: object, text: str) -> str:
    """Return the text where a condition holds, and an empty text elsewhere."""
    return text if condition else ""


def count(things: int, noun: str) -> str:
    """Return a number of things in words.

    >>> count(1, "adapter"), count(2, "family")
    ('1 adapter', '2 families')
    """
    if things == 1:
        return f"1 {noun}"
    return f"{things} {noun}s".replace("ys", "ies")


def shares_of(names: Sequence[str], shares: Sequence[float | None]) -> str:
    """Return each name with its share in percent; of many, the least and the greatest.

    >>> shares_of(["law", "code"], [0.5, None])
    'law 50%, code -'
    """
    if len(names) > MOST_NAMES:
        known = sorted((share, name) for share, name in zip(shares, names, strict=True) if share is not None)
        names, shares = [name for _, name in known], [share for share, _ in known]
        names, shares = names[:: len(names) - 1], shares[:: len(shares) - 1]
    texts = [f"{name} {text_of(share, '{:.0%}')}" for name, share in zip(names, shares, strict=True)]
    return ", ".join(texts)


def value_type(spec: Parameter) -> str:
    """Return the type and the range of a parameter's value, as help shows them.

    >>> from riemerge.methods import PARAMETERS
    >>> [value_type(PARAMETERS[name]) for name in ("density", "form", "max_passes", "scale", "rank")]
    ['FLOAT 0<..1', '[joint|nested]', 'INT 1..', 'FLOAT|matched', 'INT 1..|SHARE%|sum|auto']
    """
    if spec.kind == "choice":
        return f"[{'|'.join(spec.choices)}]"
    bounds = ""
    if spec.low is not None or spec.high is not None:
        low, high = (
            when(bound is not None, f"{bound}".removesuffix(".0")) for bound in (spec.low, spec.high)
        )
        bounds = f" {low}{when(spec.open_low, '<')}..{when(spec.open_high, '<')}{high}"
    return "|".join([f"{_TYPES[spec.kind]}{bounds}", *_WORDS.get(spec.kind, ()), *spec.words])


_TYPES = {"number": "FLOAT", "integer": "INT", "rank": "INT", "flag": "[true|false]", "text": "TEXT"}
_WORDS = {"rank": ("SHARE%", "sum", "auto")}
