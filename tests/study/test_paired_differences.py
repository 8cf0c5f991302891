"""Errors are the binomial ones, and those of scipy; draws are paired, seeded, and in groups where asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats

from riemerge.records.evaluation_record import PairedDifference
from riemerge.study import paired_differences
from riemerge.study.scorer import Answers


def answers(rows: int, rates: Sequence[float], seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.random((len(rates), rows)) < np.array(rates)[:, None]


@pytest.mark.parametrize(("rows", "rates"), [(120, (0.5, 0.6)), (400, (0.9, 0.3))])
def test_errors_are_the_binomial_ones_where_the_specialist_is_always_right(
    rows: int, rates: tuple[float, ...]
) -> None:
    tasks = [paired_differences.Task(answers(rows, rates, seed), np.ones(rows, bool)) for seed in (1, 2)]
    drawn, found = paired_differences.draw_shares(tasks), paired_differences.measure_shares(tasks)
    means = np.array([task.scores.mean(axis=1) for task in tasks])
    np.testing.assert_allclose(found, means.mean(axis=0), rtol=1e-12)
    errors = np.sqrt((means * (1 - means) / rows).sum(axis=0)) / 2
    # A standard deviation of 10,000 draws is good to 1/sqrt(20,000) = 0.7 %: four times that.
    np.testing.assert_allclose(drawn.std(axis=0), errors, rtol=0.03)
    apart = [task.scores[0].astype(float) - task.scores[1] for task in tasks]
    error = math.sqrt(sum(one.var() / rows for one in apart)) / 2
    ours = paired_differences.compare_two(found, drawn, 0, 1)
    assert ours.error == pytest.approx(error, rel=0.03)
    assert ours.high is not None
    assert ours.low is not None
    assert ours.high - ours.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    # A normal tail, to four errors of a share of 10,000 draws.
    p = 2 * scipy.stats.norm.sf(abs(ours.value) / error)
    assert ours.p == pytest.approx(p, abs=4 * math.sqrt(max(p, 1e-3) / 10_000) + 2e-3)


@pytest.mark.oracle
def test_one_task_agrees_with_scipy() -> None:
    rows = 150
    method, specialist = answers(rows, (0.6, 0.75), 3)

    def ratio(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        quotient: np.ndarray = x.mean(axis=axis) / y.mean(axis=axis)
        return quotient

    theirs = scipy.stats.bootstrap(
        (method, specialist), ratio, paired=True, n_resamples=10_000, method="percentile", rng=1
    )
    task = paired_differences.Task(np.stack([method, np.zeros(rows, bool)]), specialist)
    drawn, found = paired_differences.draw_shares([task]), paired_differences.measure_shares([task])
    ours = paired_differences.compare_two(found, drawn, 0, 1)
    assert ours.value == pytest.approx(float(ratio(method, specialist)))
    assert ours.error is not None
    assert ours.error == pytest.approx(float(theirs.standard_error), rel=0.03)
    # A quantile at 2.5 % of 10,000 draws is good to about 0.03 errors; two of them differ by some more.
    interval = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), abs=0.15 * ours.error)
    assert ours.p == pytest.approx(2 / 10_001)


def test_draws_are_paired_seeded_and_those_of_groups_where_rows_are_no_evidence_alone() -> None:
    right = answers(60, (0.5, 0.7), 8)
    tasks = [paired_differences.Task(np.stack([right[0], right[1], right[1]]), right[1])]
    drawn = paired_differences.draw_shares(tasks, 500)
    assert np.array_equal(drawn, paired_differences.draw_shares(tasks, 500))
    assert not np.array_equal(drawn, paired_differences.draw_shares(tasks, 500, seed=1))
    assert (drawn[:, 1:] == 1).all()  # who answers as the specialist does, whatever is drawn
    same = paired_differences.compare_two(paired_differences.measure_shares(tasks), drawn, 1, 2)
    assert same == PairedDifference(value=0, error=0, low=0, high=0, p=1)
    singles = [tasks[0]._replace(groups=list(range(60)))]
    np.testing.assert_allclose(paired_differences.draw_shares(singles, 500), drawn, rtol=1e-12)
    # Four copies of each row, drawn together, tell as much as one.
    fourfold = paired_differences.Task(
        np.repeat(tasks[0].scores, 4, 1), np.repeat(right[1], 4), [*np.repeat(range(60), 4)]
    )
    np.testing.assert_allclose(paired_differences.draw_shares([fourfold], 500), drawn, rtol=1e-12)


def test_draws_in_blocks_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    right = answers(60, (0.5, 0.7), 8)
    tasks = [paired_differences.Task(right, right[1])]
    whole = paired_differences.draw_shares(tasks, 500)
    monkeypatch.setattr(paired_differences, "_AT_ONCE", 60 * 7)
    # Sums of ones and zeros are exact in any order.
    assert np.array_equal(paired_differences.draw_shares(tasks, 500), whole)


def test_tasks_of_one_number_are_drawn_alike() -> None:
    rows = 90
    scores, specialist = answers(rows, (0.6, 0.4), 5), np.ones(rows, bool)
    twice = paired_differences.draw_shares([paired_differences.Task(scores, specialist, number=3)] * 2)
    once = paired_differences.draw_shares([paired_differences.Task(scores, specialist, number=3)])
    np.testing.assert_array_equal(twice, once)
    apart = paired_differences.draw_shares([paired_differences.Task(scores, specialist)] * 2)
    # Two draws of their own halve the variance.
    np.testing.assert_allclose(apart.std(axis=0), once.std(axis=0) / math.sqrt(2), rtol=0.05)


def test_an_error_is_that_of_the_mean_of_paired_differences() -> None:
    generator = np.random.default_rng(4)
    rows = 200
    base = generator.random(rows)
    answers: list[Answers] = [
        {"t": tuple(base + shift + 0.1 * generator.standard_normal(rows)), "u": tuple(base)}
        for shift in (0.0, 0.05)
    ]
    found = paired_differences.compare(answers, {}, 0, 1, groups={}, resamples=4000, seed=1)
    apart = np.array(answers[1]["t"]) - np.array(answers[0]["t"])
    ours = found[1].to_average
    assert ours.value == pytest.approx(apart.mean() / 2)
    # A standard deviation of 4,000 draws is good to 1.1 %: four times that.
    assert ours.error == pytest.approx(apart.std() / math.sqrt(rows) / 2, rel=0.045)
    # Rows differ more than the methods do.
    assert found[0].error > 2 * ours.error  # type: ignore[operator]
