"""Names for values: a table from words to what they build, which plug-ins add to."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, final

from riemerge.errors import RecipeError

Value = TypeVar("Value")

_PLURALS = {"geometry": "geometries", "loss": "losses"}


@final
class Registry(Mapping[str, Callable[..., Value]], Generic[Value]):
    """What a word of a recipe or of the command line builds: `name`, or `name:option=value:option=value`.

    Law: a name of the package always means the package's own; installed plug-ins are found by their entry
    points and loaded when one of their names is asked for, never before.

    Args:
        kind: The word for one value in messages, such as `solver`.
        entries: Each name with what builds its value: a class or function, or `package.module:name` of one,
            which is imported when it is first needed.
    """

    def __init__(self, kind: str, entries: Mapping[str, str | Callable[..., Value]]) -> None:
        self.kind = kind
        self.group = f"riemerge.{_PLURALS.get(kind, kind + 's')}"
        self._entries: dict[str, str | Callable[..., Value]] = dict(entries)

    def __getitem__(self, name: str) -> Callable[..., Value]:
        entry = self._entries.get(name)
        if entry is None:
            for point in entry_points(group=self.group, name=name):
                entry = point.load()
        if entry is None:
            raise KeyError(name)
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = getattr(import_module(module), attribute)
        self._entries[name] = entry
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._entries, *entry_points(group=self.group).names)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def register(self, name: str, entry: Callable[..., Value]) -> None:
        """Add a name.

        Raises:
            RecipeError: The name is taken by something else.
        """
        if self._entries.setdefault(name, entry) is not entry:
            raise RecipeError(f"{self.kind} {name!r} is there already: give yours another name")

    def make(self, text: str, **options: Any) -> Value:
        """Build the value that a text names.

        Args:
            text: `name`, or `name:option=value:option=value`; values are numbers, `true`, `false` or words.
            options: Options beside those of the text, which wins.

        Raises:
            RecipeError: No such name, no such option, or a value that the option does not take.
        """
        name, *assignments = text.split(":")
        if name not in self:
            raise RecipeError(f"unknown {self.kind} {name!r}: {did_you_mean(name, self)}")
        build = self[name]
        known = inspect.signature(build).parameters
        given = dict(options)
        for assignment in assignments:
            option, equals, value = assignment.partition("=")
            if not equals:
                raise RecipeError(f"{self.kind} {text!r}: {assignment!r} is no option=value")
            given[option] = parse_scalar(value)
        if unknown := [option for option in given if option not in known]:
            raise RecipeError(
                f"{self.kind} {name}: unknown option {unknown[0]!r}: {did_you_mean(unknown[0], known)}"
            )
        try:
            return build(**given)
        except (TypeError, ValueError) as fault:
            raise RecipeError(f"{self.kind} {text!r}: {fault}") from fault


def parse_scalar(text: str) -> Any:
    """Return the number, truth value or word that a text says.

    >>> [parse_scalar(text) for text in ("3", "0.5", "true", "matched")]
    [3, 0.5, True, 'matched']
    """
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say which of the known words was probably meant, and what the others are."""
    words = list(known)
    listed = f"known: {', '.join(words)}"
    for near in difflib.get_close_matches(word, words, n=1):
        return f"did you mean {near!r}? ({listed})"
    return listed
