"""Names for values: tables from words to what they mean, which plug-ins add to."""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, Generic, TypeVar, final

from riemerge.errors import RecipeError, RiemergeError

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
        self._own = frozenset(entries)
        self._given: dict[str, Any] = {}
        self._adapt = adapt

    def __getitem__(self, name: str) -> Any:
        entry = self._entries[name] if name in self._entries else self._find_point(name)
        if isinstance(entry, str):
            entry = EntryPoint(name, entry, self.group)
        if isinstance(entry, EntryPoint):
            try:
                self._entries[name] = self._adapt(entry.load())
            except Exception as fault:
                if name in self._own:
                    raise
                raise RecipeError(f"{self.kind} {name!r} of the plug-in {entry.value}: {fault!r}") from fault
        return self._entries[name]

    def __setitem__(self, name: str, entry: Any) -> None:
        if not isinstance(entry, str):
            entry = self._adapt(entry)
        self._entries[name] = entry

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
            RecipeError: The name is taken by something else, or what is given makes no entry.
        """
        if self._given.get(name) is entry:
            return
        if name in self._entries:
            raise RecipeError(f"{self.kind} {name!r} is there already: give yours another name")
        try:
            self[name] = entry
        except Exception as fault:
            raise RecipeError(f"{self.kind} {name!r}: {fault}") from fault
        self._given[name] = entry

    def text_of(self, value: Any) -> str:
        """Return the text that `make` turns into a value.

        A class or a function without a name here gets one, and so does a value that no text can hold: the
        name of its class, with a number where that is taken. What got a name keeps it, in this process.

        Args:
            value: A text, which is returned; a dataclass, whose fields that are not at their defaults are
                said if all are numbers, truth values, words, None or tuples of numbers; or any other object.
        """
        if isinstance(value, str):
            return value
        if isinstance(value, type) or (callable(value) and not is_dataclass(value)):
            return self._name(value) or self._add(value, self._adapt(value))
        if not is_dataclass(value):
            return self._name(value) or self._add(value, lambda: value)
        given = [field for field in fields(value) if field.init]
        words = {field.name: getattr(value, field.name) for field in given}
        texts = {field.name: _say(words[field.name], field.default) for field in given}
        if None in texts.values():
            return self._name(value) or self._add(value, partial(_vary, value))
        kind = type(value)
        name = self._name(kind) or self._add(kind, self._adapt(kind))
        said = [f"{field.name}={texts[field.name]}" for field in given if words[field.name] != field.default]
        return ":".join([name, *said])

    def split(self, text: str) -> tuple[str, dict[str, str]]:
        """Return the name that a text begins with, and the words of its options.

        Raises:
            RecipeError: No such name, or what follows it is no `option=value`.
        """
        name, *assignments = text.split(":")
        if name not in self:
            raise RecipeError(f"unknown {self.kind} {name!r}: {did_you_mean(name, self)}")
        words = {}
        for assignment in assignments:
            option, equals, words[option] = assignment.partition("=")
            if not equals:
                raise RecipeError(f"{self.kind} {text!r}: {assignment!r} is no option=value")
        return name, words

    def refuse_unknown(self, name: str, options: Iterable[str], known: Iterable[str]) -> None:
        """Refuse options of a name that are none of those that are known.

        Raises:
            RecipeError: There is one.
        """
        names = list(known)
        for option in options:
            if option not in names:
                advice = did_you_mean(option, names) if names else "it takes no options"
                raise RecipeError(f"{self.kind} {name}: unknown option {option!r}: {advice}")

    def make(self, text: str, **options: Any) -> Value:
        """Build the value that a text names.

        Args:
            text: `name`, or `name:option=value:option=value`; values are numbers, `true`, `false`, `none`,
                words, or numbers with slashes between them where the default is a tuple.
            options: Options beside those of the text, which wins.

        Raises:
            RecipeError: No such name, no such option, a value that the option does not take, or any fault of
                a plug-in.
        """
        name, words = self.split(text)
        build = self[name]
        try:
            value: Value = build(**self._read_options(text, build, words, options))
        except (TypeError, ValueError) as fault:
            raise RecipeError(f"{self.kind} {text!r}: {fault}") from fault
        except Exception as fault:
            if name in self._own or isinstance(fault, RiemergeError):
                raise
            raise RecipeError(f"{self.kind} {text!r} of a plug-in: {fault!r}") from fault
        return value

    def _read_options(
        self, text: str, build: Callable[..., Any], words: Mapping[str, str], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the options of a call of `build`: those of a text over others."""
        kinds = inspect.signature(build).parameters.values()
        known = {
            one.name: one.default for one in kinds if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        }
        takes_any = any(one.kind is one.VAR_KEYWORD for one in kinds)
        given = dict(options)
        for option, word in words.items():
            given[option] = _read(word, known.get(option))
            if isinstance(known.get(option), bool) and given[option] not in (True, False):
                raise RecipeError(f"{self.kind} {text!r}: {option} is {word!r}; expected true or false")
        if not takes_any:
            self.refuse_unknown(text.partition(":")[0], given, known)
        return given

    def _find_point(self, name: str) -> EntryPoint:
        """Return the entry point of a name that an installed plug-in gives.

        Raises:
            KeyError: There is none.
            RecipeError: Plug-ins give different things under it.
        """
        points = {point.value: point for point in _entry_points(self.group).select(name=name)}
        if not points:
            raise KeyError(name)
        if len(points) > 1:
            raise RecipeError(
                f"{self.kind} {name!r} is given by {' and by '.join(sorted(points))}: "
                "uninstall all but one of these plug-ins"
            )
        return next(iter(points.values()))

    def _name(self, thing: Any) -> str:
        """Return the name of a class, a function or a value; empty where it has none."""
        address = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '')}"
        for name, known in {**self._entries, **self._given}.items():
            if known is thing or (isinstance(known, str) and known == address):
                return name
        return ""

    def _add(self, thing: Any, entry: Any) -> str:
        """Enter what has no name yet under one that nothing else has, which is returned."""
        named = getattr(thing, "func", thing)  # of a partial
        word = getattr(named, "__name__", type(named).__name__).strip("<>")
        others = (f"{word}-{count}" for count in itertools.count(2))
        name = next(name for name in itertools.chain([word], others) if name not in self)
        self._given[name], self._entries[name] = thing, entry
        return name


@cache
def _entry_points(group: str) -> EntryPoints:
    """Return the entry points of a group of plug-ins, none of them loaded."""
    return entry_points(group=group)


def parse_scalar(text: str) -> Any:
    """Return the number, truth value or word that a text says.

    >>> [parse_scalar(text) for text in ("3", "0.5", "true", "False", "matched")]
    [3, 0.5, True, False, 'matched']
    """
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _read(text: str, default: Any) -> Any:
    """Return what a text says of an option, given its default: `none` is a word where that is a word."""
    if text.lower() == "none" and not isinstance(default, str):
        return None
    if isinstance(default, tuple):
        numbers = tuple(parse_scalar(part) for part in text.split("/"))
        if all(isinstance(number, int | float) for number in numbers):
            return numbers
    return parse_scalar(text)


def _say(word: Any, default: Any) -> str | None:
    """Return the text of an option that `_read` reads; None where there is no such text."""
    parts = word if isinstance(word, tuple) else (word,)
    if not all(isinstance(part, int | float | str | None) for part in parts):
        return None
    text = "/".join(str(part) for part in parts)
    if word is None or isinstance(word, bool):
        text = text.lower()
    slashed = isinstance(word, str) and isinstance(default, tuple)
    if ":" in text or not (slashed or _read(text, default) == word):
        return None
    return text


def _vary(value: Any, /, **options: Any) -> Any:
    """Return a dataclass itself, or with the options that are at their defaults in it changed."""
    defaults = {field.name: field.default for field in fields(value)}
    free = {
        name: option
        for name, option in options.items()
        if name not in defaults or getattr(value, name) is defaults[name]
    }
    if not free:
        return value
    return replace(value, **free)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say which of the known words was probably meant, and what the others are."""
    words = list(known)
    listed = f"known: {', '.join(words)}"
    for near in difflib.get_close_matches(word, words, n=1):
        return f"did you mean {near!r}? ({listed})"
    return listed
