"""Candidates: rows of the table of methods with their parameters, as one word each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from riemerge.errors import RecipeError
from riemerge.methods import PARAMETERS, find_method
from riemerge.recipes.recipe import parse_value


@final
@dataclass(frozen=True)
class Candidate:
    """A row of the table of methods and the parameters that are not at its defaults."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As `parse` reads it."""
        said = (f"{name}={self.parameters[name]}" for name in sorted(self.parameters))
        return ":".join([self.method, *said])


def parse(text: str) -> Candidate:
    """Read `method`, or `method:parameter=value:parameter=value`.

    >>> parse("ties:rank=sum:density=0.2").name
    'ties:density=0.2:rank=sum'

    Raises:
        RecipeError: No such method, a parameter that it does not take or that is said twice, or no value.
    """
    method, *said = text.split(":")
    takes, pairs = find_method(method).parameters, [one.partition("=")[::2] for one in said]
    if unknown := [name for name, _ in pairs if name not in takes]:
        raise RecipeError(f"{text}: {method} takes no {', '.join(unknown)}: it takes {', '.join(takes)}")
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(f"{text}: {', '.join(twice)}: said more than once: say it once")
    return Candidate(method, {name: parse_value(PARAMETERS[name], value) for name, value in pairs})
