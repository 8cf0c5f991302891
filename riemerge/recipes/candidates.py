"""Words of a command line: values of parameters; a candidate (a method with its parameters) as one word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from riemerge.errors import RecipeError
from riemerge.methods import PARAMETERS, find_method
from riemerge.recipes.recipe import parse_value, suggest_parameter


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

    Raises:
        RecipeError: No such method, a parameter that it does not take or that is said twice, or no value.
    """
    method, *words = text.split(":")
    pairs = [_split(word) for word in words]
    takes = find_method(method).parameters
    if unknown := [name for name, _ in pairs if name not in takes]:
        raise RecipeError(f"{text}: {method} takes no {', '.join(unknown)}: it takes {', '.join(takes)}")
    if twice := _repeated(pairs):
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
    texts = list(texts)
    pairs = [_split(text) for text in texts if "=" in text]
    problems = [f"-p {text}: no value: expected NAME=VALUE" for text in texts if "=" not in text]
    problems += [f"-p {name}: said more than once: say it once" for name in _repeated(pairs)]
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name not in PARAMETERS:
            advice = suggest_parameter(name, PARAMETERS)
            problems.append(f"-p {name}: unknown parameter {name!r}: {advice}")
            continue
        try:
            values[name] = parse_value(PARAMETERS[name], value, where=f"-p {name}")
        except RecipeError as fault:
            problems += fault.problems
    if problems:
        raise RecipeError(problems)
    return values


def _split(word: str) -> tuple[str, str]:
    """Return the name and the text of the value of `name=value`; an empty value where there is no `=`."""
    name, _, value = word.partition("=")
    return name, value


def _repeated(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return the names that are said more than once, sorted."""
    names = [name for name, _ in pairs]
    return sorted({name for name in names if names.count(name) > 1})
