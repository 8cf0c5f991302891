"""Names for values: tables from words to what they mean, which plug-ins add to."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
from typing import Any, Generic, TypeVar, final

from riemerge.errors import RecipeError

Value = TypeVar("Value")

_PLURALS = {"geometry": "geometries", "loss": "losses"}


@final
class Registry(MutableMapping[str, Any], Generic[Value]):
    """What a word of a recipe or of the command line means: `name`, or `name:option=value:option=value`.

    Law: a name of the package always means the package's own; installed plug-ins are found by their entry
    points (the groups `riemerge.methods`, `riemerge.losses` and so on), and each is loaded when its name is
    asked for, never before.

    Args:
        kind: The word for one value in messages, such as `solver`.
        entries: Each name with what builds its value: a class or function, or `package.module:name` of one,
            which is imported when it is first needed.
        adapt: What turns an object that a plug-in gives into an entry; by default it is one.
    """

    def __init__(
        self, kind: str, entries: Mapping[str, Any], adapt: Callable[[Any], Any] = lambda entry: entry
    ) -> None:
        self.kind = kind
        self.group = f"riemerge.{_PLURALS.get(kind, kind + 's')}"
        self._entries = dict(entries)
        self._given: dict[str, Any] = {}
        self._adapt = adapt

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            (point,) = _entry_points(self.group).select(name=name) or (None,)
            if point is None:
                raise KeyError(name)
            try:
                self._entries[name] = self._adapt(point.load())
            except Exception as fault:
                raise RecipeError(f"{self.kind} {name!r} of the plug-in {point.value}: {fault!r}") from fault
        if isinstance(entry := self._entries[name], str):
            module, _, attribute = entry.partition(":")
            self[name] = getattr(import_module(module), attribute)
        return self._entries[name]

    def __setitem__(self, name: str, entry: Any) -> None:
        self._entries[name] = entry
        if not isinstance(entry, str):
            self._entries[name] = self._adapt(entry)

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in _entry_points(self.group).names

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._entries, *sorted(_entry_points(self.group).names))))

    def __len__(self) -> int:
        return len(list(iter(self)))

    @property
    def own(self) -> list[Any]:
        """The entries of the package and of the plug-ins that are loaded."""
        return [self[name] for name in list(self._entries)]

    def register(self, name: str, entry: Any) -> None:
        """Add what a plug-in gives under a name.

        Raises:
            RecipeError: The name is taken by something else.
        """
        if self._given.get(name) is entry:
            return
        if name in self._entries:
            raise RecipeError(f"{self.kind} {name!r} is there already: give yours another name")
        self._given[name] = entry
        self[name] = entry

    def text_of(self, value: Any) -> str:
        """Return the text that `make` turns into a value, whose class gets a name here if it has none.

        Args:
            value: A text, which is returned; a dataclass whose fields are numbers, truth values and words; or
                what a plug-in may give, such as a function.
        """
        if isinstance(value, str):
            return value
        kind = type(value) if is_dataclass(value) else value
        for name in list(self._entries):
            if self._given.get(name, self._entries[name]) in (kind, f"{kind.__module__}:{kind.__name__}"):
                break
        else:
            name = kind.__name__
            self.register(name, kind)
        given = [] if kind is value else fields(value)
        words = ((field.name, getattr(value, field.name)) for field in given if field.init)
        defaults = {field.name: field.default for field in given}
        said = [f"{option}={word}" for option, word in words if word != defaults[option]]
        return ":".join([name, *said])

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
            option, equals, word = assignment.partition("=")
            if not equals:
                raise RecipeError(f"{self.kind} {text!r}: {assignment!r} is no option=value")
            given[option] = parse_scalar(word)
        if unknown := [option for option in given if option not in known]:
            raise RecipeError(
                f"{self.kind} {name}: unknown option {unknown[0]!r}: {did_you_mean(unknown[0], known)}"
            )
        try:
            value: Value = build(**given)
        except (TypeError, ValueError) as fault:
            raise RecipeError(f"{self.kind} {text!r}: {fault}") from fault
        return value


@cache
def _entry_points(group: str) -> EntryPoints:
    """Return the entry points of a group of plug-ins, none of them loaded."""
    return entry_points(group=group)


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
