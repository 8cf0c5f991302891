"""The norm at which a merge scores best: a search of a few looks, as many for one method as for another.

A coefficient is the norm of a merge, all modules together, as a multiple of that of the plain average. So it
means the same for sums and means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from riemerge.records.evaluation_record import Look
from riemerge.study.scorer import Answers, average_rows, mean_share

NORMS = (1.0, 2.0, 4.0)
"""Coefficients of the first looks; two more are half an octave either side of the best of them."""

HALF_OCTAVE = math.sqrt(2.0)


class NormSearch(NamedTuple):
    """What a search of norms saw.

    Attributes:
        looks: The looks, in their order.
        best: The coefficient of the best look, the first of equal ones.
        answers: What the scorer said at the best coefficient.
    """

    looks: tuple[Look, ...]
    best: float
    answers: Answers


def search_norms(
    ask: Callable[[float], Answers],
    specialist: Mapping[str, float],
    norms: Sequence[float] = NORMS,
    *,
    refine: bool = True,
) -> NormSearch:
    """Look at a merge at some norms, then half an octave either side of the best of these.

    Law: as many looks whatever is seen; which the last two are, the first ones decide (ties: the first).

    Args:
        ask: Returns what the scorer says of the merge at a coefficient.
        specialist: By task the score that counts as 1; a task that is not here counts as it is.
        norms: Coefficients of the first looks, at least one, none twice.
        refine: Whether the last two looks are taken.
    """
    looks: dict[float, Look] = {}
    answers: dict[float, Answers] = {}

    def look(coefficient: float) -> None:
        answers[coefficient] = ask(coefficient)
        scores = average_rows(answers[coefficient])
        looks[coefficient] = Look(
            coefficient=coefficient, dev=scores, normalised=mean_share(scores, specialist)
        )

    def best() -> float:
        return max(looks.values(), key=lambda one: one.normalised).coefficient

    for coefficient in norms:
        look(coefficient)
    if refine:
        first = best()
        look(first / HALF_OCTAVE)
        look(first * HALF_OCTAVE)
    return NormSearch(tuple(looks.values()), best(), answers[best()])
