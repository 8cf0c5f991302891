"""Parameters as data: what a recipe and the command line may say, within what bounds, and the check of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, final


@final
@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter that methods may have.

    Attributes:
        name: Name in recipes; the command line's option is the same with dashes.
        kind: Kind of the value.
        summary: One line for a person.
        low: Least value, None for any.
        high: Greatest value, None for any.
        open_low: Whether `low` itself is refused.
        open_high: Whether `high` itself is refused.
        choices: Words that a `choice` may be.
        words: Words that a number may be instead.
        per_module: Whether it may be a list over depth or a list of filters.
        per_model: Whether each model may have its own.
    """

    name: str
    kind: Literal["number", "integer", "flag", "choice", "text", "rank"]
    summary: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    per_module: bool = False
    per_model: bool = False


def share(name: str, summary: str, *, high: float = 1, **more: Any) -> Parameter:
    """Return a parameter that is a number from 0 to 1, or less, and may differ between modules."""
    return Parameter(name, "number", summary, low=0, high=high, per_module=True, **more)


def positive(name: str, summary: str, **more: Any) -> Parameter:
    """Return a parameter that is a number above 0."""
    return Parameter(name, "number", summary, low=0, open_low=True, **more)


def factor(name: str, summary: str, **more: Any) -> Parameter:
    """Return a parameter that is a number of at least 0 and may differ between modules."""
    return Parameter(name, "number", summary, low=0, per_module=True, **more)


def choice(name: str, summary: str, choices: tuple[str, ...]) -> Parameter:
    """Return a parameter that is one of some words, the same in all modules."""
    return Parameter(name, "choice", summary, choices=choices)


MATCHED = "matched"
"""The scale that is found from norms: see `riemerge.methods.scale.matched`."""

COMMON: tuple[Parameter, ...] = (
    Parameter("weight", "number", "share of a model; 1 if not given", per_module=True, per_model=True),
    Parameter(
        "rank",
        "rank",
        "rank of the result (or of the inputs: see the method): a number, in every module, by columns of "
        "zero where it has less; `sum`, all of it; a share such as `95%`, in each module the least that "
        "keeps so much of the squared norm; `auto`, 95% of it",
        low=1,
    ),
    Parameter(
        "scale",
        "number",
        "factor on the merged update: a number, 1 where the method has no other default; or `matched`, "
        "where weights are divided by their sum: the factor that makes ‖dW‖ of the whole merge, all "
        "modules together, the weighted mean of the inputs'",
        words=(MATCHED,),
        per_module=True,
    ),
    Parameter("solver", "text", "name of the solver of the Fréchet mean"),
    choice(
        "form",
        "alignments are solved for beside the mean (`joint`), or anew for each cost (`nested`)",
        ("joint", "nested"),
    ),
    positive("tol", "bound on each module's gradient norm"),
    Parameter("cost_tol", "number", "bound on the relative decrease of the cost", low=0),
    Parameter("max_passes", "integer", "budget of iterations", low=1),
    positive("max_seconds", "budget of all solves in seconds"),
    Parameter(
        "starts",
        "integer",
        "starts to solve from, to see how far they end apart; `auto`: ten, solved to a cost_tol of 1e-6, "
        "in the modules whose overlap does not tell, and one in the others",
        low=1,
        words=("auto",),
    ),
    Parameter("seed", "integer", "random seed of every draw", low=0, high=2**31 - 1),
    share("density", "share of the entries that an edit keeps", open_low=True, per_model=True),
)
"""Parameters of rows of several families; those of one family are beside its rows."""

# --- values: a scalar, a gradient over depth, or a list of filters ------------------------------------------

EVERY_MODULE = "*"
"""The filter that every module passes, as where none is given."""


def check_value(spec: Parameter, value: object, path: str, problems: list[str]) -> Any:
    """Return a value as plain data of its own; what is wrong with it is added to `problems`.

    Law: the answer is a scalar, a list of scalars, or a list of mappings with `value` (a scalar or a list of
    scalars) and perhaps `filter`; numbers of kind `number` are floats; it shares nothing with what was given.

    Args:
        spec: The parameter, which says what is allowed.
        value: The value as it was given.
        path: Place where it was given, put before every problem.
        problems: List that problems are added to; where it grew, the answer means nothing.
    """
    if not isinstance(value, list | tuple | Mapping):
        return _check_scalar(spec, value, path, problems)
    if not spec.per_module:
        problems.append(f"{path}: {describe(value)}: expected {_expectation(spec)}, the same for all modules")
        return None
    parts = [value] if isinstance(value, Mapping) else value
    if not any(isinstance(part, Mapping) for part in parts):
        return _check_depth(spec, value, path, problems)
    checked = [_check_item(spec, item, f"{path}[{i}]", problems) for i, item in enumerate(parts)]
    if any(item and is_last(item) for item in checked[:-1]):
        problems.append(f"{path}: the items after the first that is for every module are never reached")
    return checked


def scalars(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every scalar of a checked value, each with its path."""
    if isinstance(value, list):
        for i, part in enumerate(value):
            yield from scalars(part, f"{path}[{i}]")
    elif isinstance(value, Mapping):
        yield from scalars(value["value"], f"{path}.value")
    else:
        yield path, value


def is_last(item: Mapping[str, Any]) -> bool:
    """Return whether an item of a list of filters is for every module."""
    return bool(item.get("filter", EVERY_MODULE) == EVERY_MODULE)


def _check_item(spec: Parameter, item: Any, path: str, problems: list[str]) -> dict[str, Any]:
    """Return one `{filter: part of a module's name, value: ...}`, checked."""
    if not isinstance(item, Mapping):
        problems.append(
            f"{path}: {describe(item)}: expected a mapping with filter and value, like the rest of the list"
        )
        return {}
    unknown = [key for key in item if key not in {"filter", "value"}]
    problems += [f"{path}: unknown key {str(key)!r}: known: filter, value" for key in unknown]
    checked: dict[str, Any] = {}
    if "filter" in item:
        checked["filter"] = item["filter"]
        if not isinstance(item["filter"], str) or not item["filter"]:
            problems.append(
                f"{path}.filter: {describe(item['filter'])}: expected a part of the names of some modules, "
                "or no filter for all"
            )
    if "value" not in item:
        problems.append(f"{path}.value: missing: a filter needs a value")
    else:
        checked["value"] = _check_depth(spec, item["value"], f"{path}.value", problems)
    return checked


def _check_depth(spec: Parameter, value: object, path: str, problems: list[str]) -> Any:
    """Return a scalar, or a list of scalars over depth, checked."""
    if not isinstance(value, list | tuple):
        return _check_scalar(spec, value, path, problems)
    if spec.kind in {"integer", "rank"}:
        problems.append(f"{path}: a list goes over depth through numbers that are not whole: use filters")
    elif not value:
        problems.append(f"{path}: an empty list: expected at least one value")
    numbers = replace(spec, words=())  # a word has no place on the way from one number to the next
    return [_check_scalar(numbers, part, f"{path}[{i}]", problems) for i, part in enumerate(value)]


class _Kind(NamedTuple):
    """Values of one kind: their types in a recipe, the type they are kept in, and what they are in words."""

    types: tuple[type, ...]
    keep: Callable[[Any], Any]
    words: str = ""


_KINDS: dict[str, _Kind] = {
    "number": _Kind((int, float), float, "a number"),
    "integer": _Kind((int,), int, "a whole number"),
    "rank": _Kind((int,), int, "a whole number, 'sum', 'auto' or a share such as '95%'"),
    "flag": _Kind((bool,), bool, "true or false"),
    "choice": _Kind((str,), str),
    "text": _Kind((str,), str, "a text that is not empty"),
}


def _check_scalar(spec: Parameter, value: Any, path: str, problems: list[str]) -> Any:
    if spec.kind == "rank" and isinstance(value, str) and (value == "sum" or energy_of(value) is not None):
        return value
    if isinstance(value, str) and value in spec.words:
        return value
    kind = _KINDS[spec.kind]
    fits = isinstance(value, kind.types) and isinstance(value, bool) == (spec.kind == "flag")
    if not fits or value == "":
        problems.append(f"{path}: {describe(value)}: expected {_expectation(spec)}{_advise(spec, value)}")
        return None
    if spec.choices and value not in spec.choices:
        problems.append(f"{path}: {value!r} is not known: expected {_expectation(spec)}")
    if kind.keep in {int, float} and (bound := _missed_bound(spec, value)):
        problems.append(f"{path}: {describe(value)}: expected {bound}")
        return None
    return kind.keep(value)


def energy_of(rank: str) -> float | None:
    """Return the share of the squared norm that a rank given as `auto` or `95%` keeps; None for other words.

    >>> energy_of("95%"), energy_of("auto"), energy_of("sum"), energy_of("0%")
    (0.95, 0.95, None, None)
    """
    if rank == "auto":
        return 0.95
    number = re.fullmatch(r"(\d+(?:\.\d+)?)%", rank)
    if number is None or not 0.0 < float(number[1]) / 100 < 1.0:
        return None
    return float(number[1]) / 100


def _missed_bound(spec: Parameter, value: float) -> str:
    """Return what is expected of a number that is not finite or not within the bounds; nothing for others."""
    if not abs(value) <= sys.float_info.max:
        return "a finite number"
    if spec.low is not None and (value < spec.low or (spec.open_low and value == spec.low)):
        return f"{'more than' if spec.open_low else 'at least'} {describe(spec.low)}"
    if spec.high is not None and (value > spec.high or (spec.open_high and value == spec.high)):
        return f"{'less than' if spec.open_high else 'at most'} {describe(spec.high)}"
    return ""


def _expectation(spec: Parameter) -> str:
    """Return what a value may be, in words."""
    return " or ".join(filter(None, [_KINDS[spec.kind].words, *map(repr, spec.choices + spec.words)]))


def _advise(spec: Parameter, value: Any) -> str:
    """Return the remedy for a number or a truth value between quotes."""
    if not isinstance(value, str) or not _reads_as(spec.kind, value):
        return ""
    return f": write {value} without quotes"


def _reads_as(kind: str, text: str) -> bool:
    """Return whether a text would be a value of a kind, if it had no quotes."""
    if kind == "flag":
        return text.lower() in {"true", "false"}
    try:
        float(text)
    except ValueError:
        return False
    return kind not in {"choice", "text"}


def describe(value: object) -> str:
    """Return what a value is, in words for a problem."""
    match value:
        case None:
            words = "nothing"
        case bool():
            words = f"the truth value {str(value).lower()}"
        case str():
            words = f"the text {value!r}"
        case int() | float():
            words = str(value).removesuffix(".0")
        case Mapping():
            words = "a mapping"
        case list() | tuple():
            words = "a list"
        case _:
            words = repr(value)
    return words
