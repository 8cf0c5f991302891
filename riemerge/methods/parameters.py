"""Parameters as data: what a recipe and the command line may say, within what bounds, and the check of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, final


@final
@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter that methods may have.

    Attributes:
        name: In recipes; the command line's option is the same with dashes.
        kind: What its value is.
        summary: One line for a person.
        low: Least value, None for any.
        high: Greatest value, None for any.
        open_low: Whether `low` itself is refused.
        open_high: Whether `high` itself is refused.
        choices: The words of a `choice`.
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


def share(name: str, summary: str, **more: Any) -> Parameter:
    """Return a parameter that is a number from 0 to 1 and may differ between modules."""
    return Parameter(name, "number", summary, low=0, high=1, per_module=True, **more)


def choice(name: str, summary: str, choices: tuple[str, ...]) -> Parameter:
    """Return a parameter that is one of some words, the same in all modules."""
    return Parameter(name, "choice", summary, choices=choices)


MATCHED = "matched"
"""The scale that is found from norms: see `riemerge.methods.scale.matched`."""

PARAMETERS: dict[str, Parameter] = {
    one.name: one
    for one in (
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
        Parameter("solver", "text", "how the Fréchet mean is found, by name"),
        choice(
            "form",
            "alignments are solved for beside the mean (`joint`), or anew for each cost (`nested`)",
            ("joint", "nested"),
        ),
        Parameter("tol", "number", "bound on each module's gradient norm", low=0, open_low=True),
        Parameter("cost_tol", "number", "bound on the relative decrease of the cost", low=0),
        Parameter("max_passes", "integer", "budget of iterations", low=1),
        Parameter("max_seconds", "number", "budget of all solves in seconds", low=0, open_low=True),
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
}

# --- values: a scalar, a gradient over depth, or a list of filters ------------------------------------------

EVERY_MODULE = "*"  # as a filter, the same as none


def check_value(spec: Parameter, value: object, path: str, problems: list[str]) -> Any:
    """Return a value as plain data of its own; what is wrong with it is added to `problems`.

    Law: the answer is a scalar, a list of scalars, or a list of mappings with `value` (a scalar or a list of
    scalars) and perhaps `filter`; numbers of kind `number` are floats; it shares nothing with what was given.

    Args:
        spec: What is allowed.
        value: What was said.
        path: Where it was said, put before every problem.
        problems: Is added to; then the answer means nothing.
    """
    parts = [value] if isinstance(value, Mapping) else value
    if isinstance(parts, list | tuple) and not spec.per_module:
        problems.append(f"{path}: {described(value)}: expected {_expected(spec)}, the same for all modules")
        return None
    if not isinstance(parts, list | tuple) or not any(isinstance(part, Mapping) for part in parts):
        return _check_depth(spec, value, path, problems)
    checked = [_check_item(spec, item, f"{path}[{i}]", problems) for i, item in enumerate(parts)]
    if any(item and is_last(item) for item in checked[:-1]):
        problems.append(f"{path}: the items after the first that is for every module are never reached")
    return checked


def scalars(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every scalar of a checked value, each with its path."""
    if isinstance(value, list):
        for place, part in enumerate(value):
            yield from scalars(part, f"{path}[{place}]")
    elif isinstance(value, Mapping):
        yield from scalars(value["value"], f"{path}.value")
    else:
        yield path, value


def is_last(item: Mapping[str, Any]) -> bool:
    """Whether an item of a list of filters is for every module."""
    return bool(item.get("filter", EVERY_MODULE) == EVERY_MODULE)


def _check_item(spec: Parameter, item: Any, path: str, problems: list[str]) -> dict[str, Any]:
    """One `{filter: part of a module's name, value: ...}`."""
    if not isinstance(item, Mapping):
        problems.append(
            f"{path}: {described(item)}: expected a mapping with filter and value, like the rest of the list"
        )
        return {}
    problems += [
        f"{path}: unknown key {str(key)!r}: known: filter, value"
        for key in item
        if key not in {"filter", "value"}
    ]
    checked: dict[str, Any] = {}
    if "filter" in item:
        checked["filter"] = item["filter"]
        if not isinstance(item["filter"], str) or not item["filter"]:
            problems.append(
                f"{path}.filter: {described(item['filter'])}: expected a part of the names of some modules, "
                "or no filter for all"
            )
    if "value" not in item:
        problems.append(f"{path}.value: missing: a filter needs a value")
    else:
        checked["value"] = _check_depth(spec, item["value"], f"{path}.value", problems)
    return checked


def _check_depth(spec: Parameter, value: object, path: str, problems: list[str]) -> Any:
    """A scalar, or a list of them over depth."""
    if not isinstance(value, list | tuple):
        return _check_scalar(spec, value, path, problems)
    if spec.kind in {"integer", "rank"}:
        problems.append(f"{path}: a list goes over depth through numbers that are not whole: use filters")
    elif not value:
        problems.append(f"{path}: an empty list: expected at least one value")
    numbers = replace(spec, words=())  # a word has no place on the way from one number to the next
    return [_check_scalar(numbers, one, f"{path}[{i}]", problems) for i, one in enumerate(value)]


_TYPES: dict[str, tuple[type, ...]] = {
    "number": (int, float),
    "integer": (int,),
    "rank": (int,),
    "flag": (bool,),
    "choice": (str,),
    "text": (str,),
}


def _check_scalar(spec: Parameter, value: object, path: str, problems: list[str]) -> Any:
    if spec.kind == "rank" and isinstance(value, str) and (value == "sum" or energy_of(value) is not None):
        return value
    if isinstance(value, str) and value in spec.words:
        return value
    fits = isinstance(value, _TYPES[spec.kind]) and isinstance(value, bool) == (spec.kind == "flag")
    if not fits or value == "":
        problems.append(f"{path}: {described(value)}: expected {_expected(spec)}{_unquoted(spec, value)}")
        return None
    if spec.kind == "choice" and value not in spec.choices:
        problems.append(f"{path}: {value!r} is not known: expected {_expected(spec)}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if fault := _out_of_bounds(spec, value):
        problems.append(f"{path}: {described(value)}: expected {fault}")
        return None
    return float(value) if spec.kind == "number" else value


def energy_of(rank: str) -> float | None:
    """Return the share of the squared norm that a rank given as `auto` or `95%` keeps; None for other words.

    >>> energy_of("95%"), energy_of("auto"), energy_of("sum"), energy_of("0%")
    (0.95, 0.95, None, None)
    """
    if rank == "auto":
        return 0.95
    number = re.fullmatch(r"(\d+(?:\.\d+)?)%", rank)
    share = float(number[1]) / 100 if number else 0.0
    return share if 0.0 < share < 1.0 else None


def _out_of_bounds(spec: Parameter, value: float) -> str:
    """What was expected of a number that is not finite or not within the bounds; nothing of others."""
    if not abs(value) <= sys.float_info.max:
        return "a finite number"
    if spec.low is not None and (value < spec.low or (spec.open_low and value == spec.low)):
        return f"{'more than' if spec.open_low else 'at least'} {described(spec.low)}"
    if spec.high is not None and (value > spec.high or (spec.open_high and value == spec.high)):
        return f"{'less than' if spec.open_high else 'at most'} {described(spec.high)}"
    return ""


def _expected(spec: Parameter) -> str:
    words = {
        "number": "a number",
        "integer": "a whole number",
        "rank": "a whole number, 'sum', 'auto' or a share such as '95%'",
        "flag": "true or false",
        "text": "a text that is not empty",
        "choice": " or ".join(repr(word) for word in spec.choices),
    }
    return " or ".join([words[spec.kind], *map(repr, spec.words)])


def _unquoted(spec: Parameter, value: object) -> str:
    """The remedy for a number or a truth value between quotes."""
    if not isinstance(value, str) or spec.kind in {"choice", "text"}:
        return ""
    if spec.kind == "flag":
        return f": write {value} without quotes" if value.lower() in {"true", "false"} else ""
    try:
        float(value)
    except ValueError:
        return ""
    return f": write {value} without quotes"


def described(value: object) -> str:
    """Return what a value is, in words for a problem."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, int | float):
        return str(value).removesuffix(".0")
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else repr(value)
