"""How sure a normalised score is, and a difference of two: test rows drawn again, paired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
SEED = 20261123

_AT_ONCE = 4_000_000  # counts that are in memory together


class Task(NamedTuple):
    """Scores of the rows of one task, numbers or bool.

    Attributes:
        scores: (methods, rows).
        specialist: (rows,), of the specialist; all 1 where raw scores are meant.
        groups: For each row the number of what is drawn as one; each row by itself if None.
        number: Tasks of one number are of the same rows, and all see the same draws: such as those of two
            collections that were scored alike. If None, its place among the tasks.
    """

    scores: np.ndarray
    specialist: np.ndarray
    groups: Sequence[int] | None = None
    number: int | None = None


class Difference(NamedTuple):
    """How much better the first is than the second.

    Attributes:
        value: On the rows as they are.
        error: Standard error.
        low: Lower end of the 95 % interval, by percentiles.
        high: Upper end.
        p: Two-sided: how often the sign is not that of the value, doubled; at least 2 / (resamples + 1).
    """

    value: float
    error: float
    low: float
    high: float
    p: float


def normalised(tasks: Sequence[Task]) -> np.ndarray:
    """Mean over tasks of mean score / mean score of the specialist, (methods,)."""
    shares = [task.scores.mean(axis=1) / task.specialist.mean() for task in tasks]
    found: np.ndarray = np.mean(shares, axis=0)
    return found


def draws(tasks: Sequence[Task], resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """The same statistic of rows drawn again with replacement within each task, (resamples, methods).

    Law: all methods and the specialist see the same draws, so differences are paired, and a method that
    answers as the specialist does has 1 each time. Seeded by the task's number, so equal inputs give equal
    bits. Draws in which some specialist has nothing right, as a handful of rows may give, have no answer and
    are left out.

    Args:
        tasks: At least one, all of the same methods.
        resamples: How often rows are drawn.
        seed: Of the draws.
    """
    total = np.zeros((resamples, len(tasks[0].scores)))
    for place, task in enumerate(tasks):
        scores = np.vstack([task.scores, task.specialist]).astype(float).T
        if task.groups is not None:
            groups = np.asarray(task.groups)
            scores = np.stack([scores[groups == group].sum(axis=0) for group in np.unique(groups)])
        generator = np.random.default_rng([seed, place if task.number is None else task.number])
        shares = np.full(len(scores), 1 / len(scores))
        step = max(1, _AT_ONCE // len(scores))
        for start in range(0, resamples, step):
            counts = generator.multinomial(len(scores), shares, size=min(step, resamples - start))
            # How many rows were drawn cancels between a method and the specialist.
            found = counts @ scores
            with np.errstate(invalid="ignore", divide="ignore"):
                total[start : start + step] += found[:, :-1] / found[:, -1:]
    return total[np.isfinite(total).all(axis=1)] / len(tasks)


def difference(found: np.ndarray, drawn: np.ndarray, first: int, second: int) -> Difference:
    """Compare two methods, given by their places in `normalised` and `draws`."""
    return spread(float(found[first] - found[second]), drawn[:, first] - drawn[:, second])


def spread(value: float, moved: np.ndarray) -> Difference:
    """Return a difference with how sure it is.

    Args:
        value: The difference on the rows as they are.
        moved: The same of rows drawn again, (resamples,).
    """
    low, high = np.quantile(moved, [0.025, 0.975])
    beyond = min(int((moved <= 0).sum()), int((moved >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(moved) + 1))
    return Difference(value, float(moved.std(ddof=1)), float(low), float(high), p)
