"""Base models by their names: which names are of one model, and which of them a merge has."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from riemerge.errors import AdapterError
from riemerge.formats.files.text import show
from riemerge.formats.kinds import holds_adapter

KEY = "base_model_name_or_path"

# How copies in fewer bits are called: name-bnb-4bit, name-unsloth-bnb-4bit, name-GPTQ-Int4, name-AWQ.
_QUANTISED = re.compile(r"(-unsloth)?(-bnb)?-[48]bit$|-(gptq|awq)(-int[48])?$", re.IGNORECASE)
_CACHED = re.compile(r"(?:^|/)models--([^/]+)/snapshots/")
_LOCAL = re.compile(r"[/~.\\]|[A-Za-z]:|[^/]*/[^/]*/|[^\\]*\\")


@final
@dataclass(frozen=True, slots=True)
class Agreement:
    """What the names of the base models of some adapters come to.

    Attributes:
        name: The base model that a merge names; None where no adapter names one.
        notes: Names that were taken as one; paths of the machine by their last part only.
        problems: Why the adapters do not have one base model.
    """

    name: str | None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def agree_on_base(
    named: Mapping[Path, str | None], *, same: bool = False, name: str | None = None
) -> Agreement:
    """Find the one base model of some adapters.

    Law: names are of one model where they are equal, or where they have one repository and at most one owner,
    a local folder having none that is known. The merge names a model of a hub before a quantised copy, and
    that before a name without owner and a path. An adapter that was trained on a base model with another
    adapter added has another base than that adapter, unless it is said that they are one.

    Args:
        named: What each adapter names as its base model, by the folder of the adapter; "" and None name none.
        same: Whether all names are to be taken as of one model.
        name: The name that the merge is to have; it makes no names equal.
    """
    said = {path: base for path, base in named.items() if base}
    different = dict.fromkeys(said.values())
    if len(different) < 2:
        return Agreement(name or next(iter(different), None))
    stacked = {path: below for path, base in said.items() if (below := _adapter_below(path, base, named))}
    plain = {path: base for path, base in said.items() if path not in stacked} or said
    bases = [_parse(base) for base in dict.fromkeys(plain.values())]
    best = name or min(bases, key=_Base.rank).name
    if same or (not stacked and _are_one(bases)):
        listed = ", ".join(_parse(base).described for base in different)
        return Agreement(
            best, notes=(f"{KEY} differs: {listed}: taken as one base model; the result names {show(best)}",)
        )
    problems = [_sum_wanted(path, said[path], *below) for path, below in stacked.items()]
    if not _are_one(bases):
        each = ", ".join(f"{show(base)} in {path}" for path, base in plain.items())
        problems.append(f"{KEY} differs: {each}; {_advice(bases)}")
    return Agreement(best, problems=tuple(problems))


@final
@dataclass(frozen=True, slots=True)
class _Base:
    """A base model as an adapter's settings name it.

    Attributes:
        name: The id of a model of a hub, or else what was said.
        owner: The owner on the hub; None for a local folder, which does not tell.
        repository: The last part of the name, without the end that a quantised copy has.
        quantised: Whether it has such an end.
        cached: Whether it was given as a folder of the hub's cache.
    """

    name: str
    owner: str | None
    repository: str
    quantised: bool
    cached: bool = False

    def rank(self) -> tuple[bool, bool, bool]:
        """Return the lesser value, the better others can find the model by its name."""
        return self.owner is None, not self.owner, self.quantised

    @property
    def described(self) -> str:
        """The name in a record, which holds no paths, and what it was recognised as."""
        if self.owner is None:
            return f"{show(_last(self.name))} (a local folder)"
        kinds = {"a quantised copy": self.quantised, "in the hub's cache": self.cached}
        said = ", ".join(kind for kind, applies in kinds.items() if applies)
        return show(self.name) + f" ({said})" * bool(said)


def _parse(said: str) -> _Base:
    path = _write_slashes(said)
    cached = _CACHED.search(path)
    public = cached[1].replace("--", "/") if cached else path
    owner, _, last = public.rpartition("/")
    repository = _QUANTISED.sub("", last)
    if _LOCAL.match(said) and not cached:
        return _Base(said, None, repository, repository != last)
    return _Base(public, owner, repository, repository != last, cached is not None)


def _write_slashes(path: str) -> str:
    return path.replace("\\", "/").rstrip("/")


def _last(path: str) -> str:
    return _write_slashes(path).rpartition("/")[2]


def _are_one(bases: Sequence[_Base]) -> bool:
    owners = {base.owner.casefold() for base in bases if base.owner is not None}
    return _have_one_name(bases) and len(owners) < 2


def _have_one_name(bases: Iterable[_Base]) -> bool:
    return len({base.repository.casefold() for base in bases}) == 1


def _advice(bases: Sequence[_Base]) -> str:
    """Say what to do about base models of several names."""
    advice = (
        "it must be the same in all adapters: if these are one model, merge with --same-base (same_base: "
        "true in a recipe); --base-name NAME only says what the result names"
    )
    if not _have_one_name(bases):
        return advice
    listed = ", ".join(base.described for base in bases)
    return f"the repositories have one name but several owners ({listed}); {advice}"


def _adapter_below(path: Path, base: str, named: Mapping[Path, str | None]) -> tuple[Path, str] | None:
    """Return the folder of the adapter that another names as its base model, and how it is known; or None."""
    for folder in (Path(base), path / base):
        with suppress(AdapterError):
            if os.path.isdir(folder) and holds_adapter(folder):  # noqa: PTH112 - raises for no name
                return folder, "is the folder of the adapter"
    called = re.split(r"[-_+]", _last(base))
    for other, its in named.items():
        end = re.split(r"[-_+]", other.absolute().name)
        alike = bool(its) and _are_one([_parse(base), _parse(str(its))])
        if _LOCAL.match(base) and called[-len(end) :] == end and not alike:
            return other, "ends like the adapter"
    return None


def _sum_wanted(path: Path, base: str, below: Path, known: str) -> str:
    """Say that an adapter was trained on another, and the command that adds them."""
    return (
        f"{path}: was trained on a base model with another adapter in it: its {KEY} {show(base)} {known} "
        f"{below}. A mean of both would be of updates of different models; their sum is what it was trained "
        f"to be: riemerge merge {shlex.quote(str(below))} {shlex.quote(str(path))} -o NEW --method cat "
        "--same-base; --same-base merges them in any other way too"
    )
