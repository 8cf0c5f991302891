"""Names of modules: read under other prefixes, and compared but for those that a wrapper puts before them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile

# What models are wrapped in: by code of several modalities, by PEFT, parallel training, torch.compile, FSDP.
_WRAPPERS = {"language_model", "model", "base_model", "module", "_orig_mod", "_fsdp_wrapped_module"}


def rename(name: str, prefixes: Mapping[str, str]) -> str:
    """Return a name with its prefix replaced: the longest of those that have a replacement.

    >>> rename("language_model.model.embed", {"language_model.": "", "vision.": "tower."})
    'model.embed'

    Args:
        name: The name of a module or tensor.
        prefixes: New prefixes by old ones, of which one may be empty.
    """
    old = max((old for old in prefixes if name.startswith(old)), key=len, default="")
    return prefixes.get(old, "") + name[len(old) :]


def find_renaming(names: Collection[str], others: Collection[str]) -> tuple[str, str] | None:
    """Find a prefix and its replacement under which two sets of names are equal, or None.

    Law: the prefix is not empty, and renaming both sets makes them equal. Names differ by a wrapper's prefix
    where one set has parts put into all its names, or where the parts of both are usual words for one. So
    layers of other numbers, or an encoder and a decoder, do not.

    >>> find_renaming({"model.q", "model.v"}, {"language_model.model.q", "language_model.model.v"})
    ('language_model.', '')
    """
    longer, shorter = sorted([_common_parts(names), _common_parts(others)], key=len, reverse=True)
    head = len(_common_start([longer, shorter]))
    tail = len(_common_start([longer[head:][::-1], shorter[head:][::-1]]))
    put_in, instead = longer[head : len(longer) - tail], shorter[head : len(shorter) - tail]
    if instead and not {part.rstrip(".") for part in (*put_in, *instead)} <= _WRAPPERS:
        return None
    for kept in range(tail, -1, -1):
        old, new = ("".join(parts[: len(parts) - kept]) for parts in (longer, shorter))
        both = [{rename(name, {old: new}) for name in every} for every in (names, others)]
        if old and both[0] == both[1]:
            return old, new
    return None


def _common_parts(names: Iterable[str]) -> list[str]:
    """Return the parts, each with its dot, with which all of these names begin."""
    return _common_start([[f"{part}." for part in name.split(".")[:-1]] for name in names])


def _common_start(lists: Iterable[Sequence[str]]) -> list[str]:
    columns = zip(*lists, strict=False)
    return [column[0] for column in takewhile(lambda column: len({*column}) == 1, columns)]
