"""How sure a normalised accuracy is, and a difference of two: test rows drawn again, paired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
SEED = 20261123


class Task(NamedTuple):
    """Answers on the rows of one task, bool.

    Attributes:
        correct: (methods, rows).
        specialist: (rows,), of the specialist.
        groups: For each row the number of what is drawn as one; each row by itself if None.
    """

    correct: np.ndarray
    specialist: np.ndarray
    groups: Sequence[int] | None = None


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
    """Mean over tasks of accuracy / accuracy of the specialist, (methods,)."""
    shares = [task.correct.mean(axis=1) / task.specialist.mean() for task in tasks]
    return np.mean(shares, axis=0)


def draws(tasks: Sequence[Task], resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """The same statistic of rows drawn again with replacement within each task, (resamples, methods).

    Law: all methods and the specialist see the same draws, so differences are paired, and a method that
    answers as the specialist does has 1 each time. Seeded by task, so equal inputs give equal bits. Draws in
    which some specialist has nothing right, as a handful of rows may give, have no answer and are left out.
    """
    total = np.zeros((resamples, len(tasks[0].correct)))
    for place, task in enumerate(tasks):
        right = np.vstack([task.correct, task.specialist]).astype(float).T
        if task.groups is not None:
            right = np.stack(
                [right[np.asarray(task.groups) == group].sum(axis=0) for group in sorted(set(task.groups))]
            )
        generator = np.random.default_rng([seed, place])
        counts = generator.multinomial(len(right), np.full(len(right), 1 / len(right)), size=resamples)
        # How many rows were drawn cancels between a method and the specialist.
        found = counts @ right
        with np.errstate(invalid="ignore", divide="ignore"):
            total += found[:, :-1] / found[:, -1:]
    return total[np.isfinite(total).all(axis=1)] / len(tasks)


def difference(found: np.ndarray, drawn: np.ndarray, first: int, second: int) -> Difference:
    """Compare two methods, given by their places in `normalised` and `draws`."""
    value = float(found[first] - found[second])
    moved = drawn[:, first] - drawn[:, second]
    low, high = np.quantile(moved, [0.025, 0.975])
    beyond = min(int((moved <= 0).sum()), int((moved >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(moved) + 1))
    return Difference(value, float(moved.std(ddof=1)), float(low), float(high), p)
