"""How sure scores and their differences are: test rows drawn again, the same draws for all compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from riemerge.errors import RecipeError
from riemerge.records.evaluation_record import PairedDifference
from riemerge.study.scorer import Answers, average_rows, count_rows, mean_share

RESAMPLES = 10_000
SEED = 20261123

_AT_ONCE = 4_000_000  # counts that are in memory together


class Task(NamedTuple):
    """Scores of the rows of one task, numbers or bool.

    Attributes:
        scores: Scores of all methods, (methods, rows).
        specialist: Scores of the specialist, (rows,); all 1 where raw scores are meant.
        groups: For each row the number of what is drawn as one; each row by itself if None.
        number: Tasks of one number are of the same rows, and all see the same draws: such as those of two
            collections that were scored alike. If None, its place among the tasks.
    """

    scores: np.ndarray
    specialist: np.ndarray
    groups: Sequence[int] | None = None
    number: int | None = None


def measure_shares(tasks: Sequence[Task]) -> np.ndarray:
    """Return the mean over tasks of mean score / mean score of the specialist, (methods,)."""
    shares = [task.scores.mean(axis=1) / task.specialist.mean() for task in tasks]
    mean: np.ndarray = np.mean(shares, axis=0)
    return mean


def draw_shares(tasks: Sequence[Task], resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Return `measure_shares` of rows drawn again with replacement within each task, (resamples, methods).

    Law: all methods and the specialist see the same draws, so differences are paired, and a method that
    answers as the specialist does has 1 each time. Seeded by the task's number, so equal inputs give equal
    bits. Draws in which some specialist has nothing right, as a handful of rows may give, have no answer and
    are left out.

    Args:
        tasks: At least one, all of the same methods.
        resamples: How often rows are drawn.
        seed: Random seed of the draws.
    """
    total = np.zeros((resamples, len(tasks[0].scores)))
    for place, task in enumerate(tasks):
        scores = np.vstack([task.scores, task.specialist]).astype(float).T
        if task.groups is not None:
            groups = np.asarray(task.groups)
            scores = np.stack([scores[groups == group].sum(axis=0) for group in np.unique(groups)])
        generator = np.random.default_rng([seed, place if task.number is None else task.number])
        weights = np.full(len(scores), 1 / len(scores))
        step = max(1, _AT_ONCE // len(scores))
        for start in range(0, resamples, step):
            counts = generator.multinomial(len(scores), weights, size=min(step, resamples - start))
            # How many rows were drawn cancels between a method and the specialist.
            sums = counts @ scores
            with np.errstate(invalid="ignore", divide="ignore"):
                total[start : start + step] += sums[:, :-1] / sums[:, -1:]
    return total[np.isfinite(total).all(axis=1)] / len(tasks)


def compare_two(shares: np.ndarray, drawn: np.ndarray, first: int, second: int) -> PairedDifference:
    """Compare two methods, given by their places in `measure_shares` and `draw_shares`."""
    return summarize_draws(float(shares[first] - shares[second]), drawn[:, first] - drawn[:, second])


def summarize_draws(value: float, drawn: np.ndarray) -> PairedDifference:
    """Return a difference with how sure it is.

    Args:
        value: The difference on the rows as they are.
        drawn: Differences on rows drawn again, (resamples,); fewer than two say nothing of errors.
    """
    if len(drawn) < 2:
        return PairedDifference(value=value)
    low, high = np.quantile(drawn, [0.025, 0.975])
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    return PairedDifference(value=value, error=_error(drawn), low=float(low), high=float(high), p=p)


def _error(drawn: np.ndarray) -> float | None:
    """Return the standard deviation of drawn scores; None of fewer than two."""
    return float(drawn.std(ddof=1)) if len(drawn) > 1 else None


# --- answers of scorers -------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """One of several answers compared with two of them; its fields are those of `evaluation_record.Entry`."""

    test: dict[str, float]
    normalised: float
    error: float | None
    to_average: PairedDifference
    to_best: PairedDifference


def compare(
    answers: Sequence[Answers],
    specialists: Mapping[str, int],
    average: int,
    best: int,
    *,
    groups: Mapping[str, Sequence[int]],
    resamples: int,
    seed: int,
) -> list[Comparison]:
    """Compare several answers to the same rows with two of them.

    Law: all see the same draws of rows, so an error is of the difference itself: what answers alike differs
    by 0 with error 0. There are errors only where every task has scores of rows, and where at least two draws
    have an answer (see `draw_shares`).

    Args:
        answers: Answers for the same tasks and rows.
        specialists: By task the place of the answers that are 1; a task that is not here counts as it is.
        average: The place of the first answers to compare with.
        best: The place of the second answers to compare with.
        groups: By task for each row the number of what is drawn as one.
        resamples: How often rows are drawn again.
        seed: Random seed of the draws.
    """
    means = [average_rows(answer) for answer in answers]
    own = {task: means[place][task] for task, place in specialists.items()}
    shares = np.array([mean_share(scores, own) for scores in means])
    drawn = np.empty((0, len(answers)))
    if not name_single_scores(answers[0]):
        tasks = [_task(answers, task, specialists.get(task), groups.get(task)) for task in answers[0]]
        drawn = draw_shares(tasks, resamples, seed)
    return [
        Comparison(
            scores,
            float(shares[place]),
            _error(drawn[:, place]),
            compare_two(shares, drawn, place, average),
            compare_two(shares, drawn, place, best),
        )
        for place, scores in enumerate(means)
    ]


def name_single_scores(answers: Answers) -> list[str]:
    """Return the tasks that have one score alone, and so no errors."""
    return [task for task, size in count_rows(answers).items() if size is None]


def check_groups(groups: Mapping[str, Sequence[int]], answers: Answers) -> None:
    """Check that groups are of tasks that there are, one number for each row.

    Raises:
        RecipeError: The problems, all of them.
    """
    sizes = count_rows(answers)
    problems = [
        f"groups: {task}: {len(numbers)} numbers: expected {sizes.get(task) or 'none'}, one for each test row"
        for task, numbers in groups.items()
        if len(numbers) != sizes.get(task)
    ]
    RecipeError.refuse(problems)


def _task(
    answers: Sequence[Answers], task: str, specialist: int | None, groups: Sequence[int] | None
) -> Task:
    scores = np.array([answer[task] for answer in answers], dtype=float)
    own = np.ones(scores.shape[1])
    if specialist is not None:
        own = scores[specialist]
    return Task(scores, own, groups)
