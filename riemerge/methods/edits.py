"""Edits: what is done to the updates of a module before their mean is taken, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from riemerge.registry import Registry, parse_scalar

_ENTRYWISE = "riemerge.methods.elections.entrywise:"


@final
@dataclass(frozen=True)
class Edit:
    """An edit of a module's updates, as data.

    It acts on the entries of dW itself, which no gauge of the factors changes. A geometry that needs factors
    is given, of each edited update, the nearest one of the rank that it had.

    Attributes:
        function: The function (see `riemerge.methods.setting.FlatEdit`), or `package.module:name` of it.
        own_parameters: Names of parameters that it reads, each with its default; None for one left open.
        survey: `package.module:function` of what looks at all modules first; empty for none.
        by_rows: Whether the function may be applied to runs of rows apart, each by itself.
        look: `package.module:function` of what looks at all rows of a module before its rows are edited apart
            (see `riemerge.methods.setting.Look`); empty where there is none.
    """

    function: str | Callable[..., Any]
    own_parameters: Mapping[str, Any] = field(default_factory=dict)
    survey: str = ""
    by_rows: bool = False
    look: str = ""


def _adapt(entry: Any) -> Edit:
    """Return what a plug-in gives as an edit: one, or a function of dense updates and a setting."""
    if isinstance(entry, Edit):
        return entry
    return Edit(entry)


_DROP = {"density": 1.0, "rescale": "expected", "seed": None}

EDITS: Registry[Edit] = Registry(
    "edit",
    {
        "trim": Edit(_ENTRYWISE + "trim", {"density": 1.0}, look=_ENTRYWISE + "look_for_trim"),
        "trim_globally": Edit(
            _ENTRYWISE + "trim_globally",
            {"density": 1.0},
            survey="riemerge.methods.elections.election:vote",
            look=_ENTRYWISE + "look_for_trim_globally",
        ),
        "trim_both_ends": Edit(
            _ENTRYWISE + "trim_both_ends",
            {"density": 1.0, "gamma": 0.01},
            look=_ENTRYWISE + "look_for_both_ends",
        ),
        "drop": Edit(_ENTRYWISE + "drop", _DROP, look=_ENTRYWISE + "look_for_drop"),
        "drop_by_rank": Edit(
            _ENTRYWISE + "drop_by_rank",
            {**_DROP, "epsilon": 0.15},
            look=_ENTRYWISE + "look_for_drop_by_rank",
        ),
        "clip": Edit(_ENTRYWISE + "clip", {"t": 1e-4}, by_rows=True),
        "ignore_small": Edit(_ENTRYWISE + "ignore_small", {"epsilon": 1e-5}, by_rows=True),
        "reward_unique": Edit(
            _ENTRYWISE + "reward_unique", {"r": 0.1, "alpha": 0.2}, look=_ENTRYWISE + "look_for_unique"
        ),
        "elect": Edit("riemerge.methods.elections.election:keep_elected", by_rows=True),
        "truncate": Edit(_ENTRYWISE + "truncate", {"rank": None}),
    },
    _adapt,
)
"""The edits by name."""


def parse_edit(text: str) -> tuple[Edit, dict[str, Any]]:
    """Return the edit that a text names, and the parameters that the text gives it.

    >>> parse_edit("trim:density=0.3")[1]
    {'density': 0.3}

    Raises:
        RecipeError: No such edit, or no such parameter of it.
    """
    name, words = EDITS.split(text)
    edit: Edit = EDITS[name]
    EDITS.refuse_unknown(name, words, edit.own_parameters)
    return edit, {option: parse_scalar(word) for option, word in words.items()}
