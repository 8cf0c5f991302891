"""The parameters of all methods, as data: what a recipe and the command line may say, and within what bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final


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
    per_module: bool = False
    per_model: bool = False


PARAMETERS: dict[str, Parameter] = {
    one.name: one
    for one in (
        Parameter(
            "weight", "number", "share of a model; 1 if not given", per_module=True, per_model=True
        ),
        Parameter("rank", "rank", "rank of the result (or of the inputs: see the method): a number, or `sum`", low=1),
        Parameter("scale", "number", "factor on the merged update", per_module=True),
        Parameter("solver", "text", "how the Fréchet mean is found, by name"),
        Parameter("tol", "number", "bound on each module's gradient norm", low=0, open_low=True),
        Parameter("cost_tol", "number", "bound on the relative decrease of the cost", low=0),
        Parameter("max_passes", "integer", "budget of iterations", low=1),
        Parameter("max_seconds", "number", "budget of all solves in seconds", low=0, open_low=True),
        Parameter("starts", "integer", "starts to solve from, to see how far they end apart", low=1),
        Parameter("seed", "integer", "of every random draw", low=0, high=2**31 - 1),
        Parameter(
            "density",
            "number",
            "share of the entries that an edit keeps",
            low=0,
            open_low=True,
            high=1,
            per_module=True,
            per_model=True,
        ),
    )
}
