"""A search of norms has as many looks whatever it sees."""

from __future__ import annotations

import math

from riemerge.study.norm_search import search_norms
from riemerge.study.scorer import Answers


def test_the_search_goes_half_an_octave_either_side_of_the_best_the_first_of_equals() -> None:
    def at(*best: float) -> list[float]:
        seen: list[float] = []

        def ask(coefficient: float) -> Answers:
            seen.append(coefficient)
            return {"task": float(coefficient in best)}

        assert [look.coefficient for look in search_norms(ask, {}).looks] == seen
        return seen

    root = math.sqrt(2)
    assert at(4.0) == [1, 2, 4, 4 / root, 4 * root]
    assert at(2.0, 4.0) == [1, 2, 4, 2 / root, 2 * root]
    assert at() == [1, 2, 4, 1 / root, root]
    given = search_norms(lambda c: {"task": c}, {"task": 2.0}, (3, 1), refine=False)
    assert [look.coefficient for look in given.looks] == [3, 1]
    assert [look.normalised for look in given.looks] == [1.5, 0.5]
    assert (given.best, given.answers) == (3, {"task": 3})
