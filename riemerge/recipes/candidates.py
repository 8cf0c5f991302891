"""Words of a command line: values of parameters; a candidate (a method with its parameters) as one word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from riemerge.errors import RecipeError, try_each
from riemerge.methods import METHODS, PARAMETERS, find_method
from riemerge.recipes.recipe import parse_value, suggest_parameter
from riemerge.recipes.translations import METHOD_WORDS


@final
@dataclass(frozen=True)
class Candidate:
    """A row of the table of methods and the parameters that are not at its defaults."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The word that `parse` reads as this candidate."""
        values = (f"{name}={self.parameters[name]}" for name in sorted(self.parameters))
        return ":".join([self.method, *values])


def parse(text: str) -> Candidate:
    """Read `method`, or `method:parameter=value:parameter=value`.

    >>> parse("ties:rank=sum:density=0.2").name
    'ties:density=0.2:rank=sum'
    >>> parse("linear").name  # as mergekit calls it
    'average'

    Raises:
        RecipeError: No such method, a parameter that it does not take or that is said twice, or no value.
    """
    method, *words = text.split(":")
    if method not in METHODS and method in METHOD_WORDS:
        method = METHOD_WORDS[method].ours
    pairs = [word.partition("=")[::2] for word in words]
    names = [name for name, _ in pairs]
    takes = find_method(method).parameters
    if unknown := [name for name in names if name not in takes]:
        raise RecipeError(f"{text}: {method} takes no {', '.join(unknown)}: it takes {', '.join(takes)}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(f"{text}: {', '.join(twice)}: said more than once: say it once")
    return Candidate(method, {name: parse_value(PARAMETERS[name], value) for name, value in pairs})


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Read values of parameters as the option `-p` of the command line takes them: each as `NAME=VALUE`.

    Law: each value is that of the same text in a recipe, but that words need no quotes. Whether the method
    takes the parameter is for the recipe to say.

    >>> parse_assignments(["density=0.2", "rank=sum"])
    {'density': 0.2, 'rank': 'sum'}

    Raises:
        RecipeError: A text without `=`, a name that is no parameter or is said twice, a value that its
            parameter does not take: every fault of every text at once.
    """
    names: set[str] = set()

    def assign(text: str) -> tuple[str, Any]:
        name, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"-p {text}: no value: expected NAME=VALUE")
        if name == "weight":
            raise RecipeError("-p weight: each model has its own: write it behind the model, as in a:0.5")
        if name not in PARAMETERS:
            advice = suggest_parameter(name, [known for known in PARAMETERS if known != "weight"])
            raise RecipeError(f"-p {name}: unknown parameter {name!r}: {advice}")
        if name in names:
            raise RecipeError(f"-p {name}: said more than once: say it once")
        names.add(name)
        return name, parse_value(PARAMETERS[name], value, where=f"-p {name}")

    return dict(try_each(assign, texts))


def parse_renames(texts: Iterable[str]) -> dict[str, str]:
    """Read prefixes of module names as `--rename` takes them, each as `OLD=NEW`; one of them may be empty.

    >>> parse_renames(["language_model.="])
    {'language_model.': ''}

    Raises:
        RecipeError: A text without `=`, nothing on both sides, or a prefix that is said twice.
    """
    names: dict[str, str] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not equals or old == new:
            raise RecipeError(f"--rename {text}: expected OLD=NEW, two prefixes of module names")
        if old in names:
            raise RecipeError(f"--rename {text}: {old or 'the empty prefix'} is renamed twice: say it once")
        names[old] = new
    return names
