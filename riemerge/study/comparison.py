"""Scores compared: normalised by those of specialists, with paired errors where there are scores of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from riemerge.errors import RecipeError
from riemerge.records.run_record import PairedDifference
from riemerge.study import bootstrap
from riemerge.study.scores import Answers, means_of, sizes_of


class Compared(NamedTuple):
    """One of several: see `record.Entry`, whose fields these are."""

    test: dict[str, float]
    normalised: float
    error: float | None
    to_average: PairedDifference
    to_best: PairedDifference


def normalised(scores: Mapping[str, float], specialist: Mapping[str, float]) -> float:
    """Return the mean over tasks of the score divided by the specialist's, or by 1 where there is none."""
    return math.fsum(score / specialist.get(task, 1.0) for task, score in scores.items()) / len(scores)


def compare(
    answers: Sequence[Answers],
    specialists: Mapping[str, int],
    average: int,
    best: int,
    *,
    groups: Mapping[str, Sequence[int]],
    resamples: int,
    seed: int,
) -> list[Compared]:
    """Compare several answers to the same rows with two of them.

    Law: all see the same draws of rows, so an error is of the difference itself: what answers alike differs
    by 0 with error 0. There are errors only where every task has scores of rows, and where at least two draws
    have an answer (see `bootstrap.draws`).

    Args:
        answers: Of the same tasks and rows.
        specialists: By task the place of the answers that are 1; a task that is not here counts as it is.
        average: The place of one to compare with.
        best: The place of the other.
        groups: By task for each row the number of what is drawn as one.
        resamples: How often rows are drawn again.
        seed: Of these draws.
    """
    means = [means_of(one) for one in answers]
    own = {task: means[place][task] for task, place in specialists.items()}
    found = np.array([normalised(one, own) for one in means])
    drawn = None
    if without_errors(answers[0]) == []:
        tasks = [_task(answers, task, specialists.get(task), groups.get(task)) for task in answers[0]]
        drawn = bootstrap.draws(tasks, resamples, seed)
        drawn = drawn if len(drawn) > 1 else None

    def difference(first: int, second: int) -> PairedDifference:
        if drawn is None:
            return PairedDifference(value=float(found[first] - found[second]))
        return PairedDifference(**bootstrap.difference(found, drawn, first, second)._asdict())

    return [
        Compared(
            one,
            float(found[place]),
            None if drawn is None else float(drawn[:, place].std(ddof=1)),
            difference(place, average),
            difference(place, best),
        )
        for place, one in enumerate(means)
    ]


def without_errors(answers: Answers) -> list[str]:
    """Return the tasks that have one score alone."""
    return [task for task, size in sizes_of(answers).items() if size is None]


def check_groups(groups: Mapping[str, Sequence[int]], answers: Answers) -> None:
    """Check that groups are of tasks that there are, one number for each row.

    Raises:
        RecipeError: With every problem found.
    """
    sizes = sizes_of(answers)
    problems = [
        f"groups: {task}: {len(numbers)} numbers: expected {sizes.get(task) or 'none'}, one for each test row"
        for task, numbers in groups.items()
        if len(numbers) != sizes.get(task)
    ]
    if problems:
        raise RecipeError(problems)


def _task(
    answers: Sequence[Answers], task: str, specialist: int | None, groups: Sequence[int] | None
) -> bootstrap.Task:
    scores = np.array([one[task] for one in answers], dtype=float)
    return bootstrap.Task(
        scores, np.ones(scores.shape[1]) if specialist is None else scores[specialist], groups
    )
