"""The joint formulation: its precision, its anchor, its alignments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from riemerge import Status
from riemerge.frechet import Evaluation
from riemerge.frechet.low_rank.joint import Joint
from riemerge.manifolds import Orthogonal
from riemerge.solvers import LBFGS
from tests.frechet.certificates import certified
from tests.frechet.low_rank.passes import K, M, N, R, T, off, problem
from tests.frechet.problems import mean_of, search_of
from tests.helpers import seeded
from tests.manifolds.subjects import family, updates


def test_horizontal_logs_at_an_aligned_minimiser() -> None:
    quotient, points = updates(40, 36, 4, k=2), family("mix", 4, 40, 36, 4, seed=11)
    solution = mean_of(quotient, points, tol=1e-9, solver="trust_regions")
    assert solution.ok
    assert solution.horizontality.max() < 1e-8 * max(1, np.sqrt(2 * solution.cost.max()))
    # The same, found anew: each point aligned to the mean from scratch.
    for x in points:
        log = quotient.total.logarithm(solution.point, quotient.align(x, to=solution.point)).tangent
        vertical = log - quotient.horizontal(solution.point, log)
        assert float(quotient.norm(solution.point, vertical)) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["close", "mix", "lora_like", "independent", "shared_subspace"])
def test_alignment_is_near_the_best_of_many_starts(name: str) -> None:
    quotient = updates(48, 40, 6, k=6)
    a, b = family(name, 2, 48, 40, 6, seed=21, k=6)
    found = quotient.dists(a, b) ** 2
    action = quotient.action
    assert isinstance(action, Orthogonal)
    starts = action.random_element((48, 6), seeded(0))
    _, squared, _ = action._refine(quotient.total, b, a, starts, 1e-3)
    best = squared.amin(dim=0)
    defined = torch.isfinite(best) & torch.isfinite(found)
    # Exactly shared subspaces can want two determinants at once: then there is no geodesic, which is flagged.
    assert bool(defined.all()) or name == "shared_subspace"
    assert float((found / best)[defined].max()) < 1.02


@pytest.mark.parametrize("name", ["close", "mix", "lora_like", "shared_subspace", "independent"])
def test_single_precision_is_left_in_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A solve that begins in single precision ends where one in double precision does, and as certain; and
    one that ends early ends in about as good a place.
    """
    quotient, points = updates(60, 50, 4, k=2), family(name, 3, 60, 50, 4, seed=5)
    early: dict[str, Any]
    late: dict[str, Any]
    early, late = ({"cost_tol": 1e-3}, {"tol": 1e-6, "max_passes": 600})
    coarse = [mean_of(quotient, points, **options) for options in (early, late)]
    monkeypatch.setattr(LBFGS, "coarse", False)
    fine = [mean_of(quotient, points, **options) for options in (early, late)]
    np.testing.assert_allclose(coarse[0].cost, fine[0].cost, rtol=1e-4)
    if fine[1].ok:
        assert certified(coarse[1], 1e-6)
        np.testing.assert_allclose(coarse[1].cost, fine[1].cost, rtol=1e-10)
    # Costs of one precision are compared with each other only: none rises by more than that of one digit.
    for one in coarse:
        costs = np.stack([x.cost for x in one.trace])
        assert (np.diff(costs, axis=0) <= 3e-5 * costs[:-1]).all()


def test_precision_is_of_each_module_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is nearly solved goes on in double precision, what is not in single; what is finished stays in
    the trace as it was found.
    """
    close, far = (family(name, 4, 60, 50, 4, seed=11, k=1) for name in ("close", "independent"))
    # One of five, so that it stays in the batch when it is finished.
    points = [torch.cat((x, y, y, y, y)) for x, y in zip(close, far, strict=True)]
    seen = []
    evaluate = Joint.evaluate

    def watched(self: Joint, point: torch.Tensor, *, tight: bool = False) -> Evaluation:
        found = evaluate(self, point, tight=tight)
        if found.cost.numel() == 5 and found.coarse is not None:
            seen.append(found.coarse.tolist())
        return found

    monkeypatch.setattr(Joint, "evaluate", watched)
    solution = mean_of(updates(60, 50, 4, k=5), points, max_passes=40)
    assert [True, True, True, True, True] in seen
    assert [False, True, True, True, True] in seen
    costs = np.stack([x.cost for x in solution.trace])
    ended = next(i for i, x in enumerate(solution.trace) if x.active < 5)
    assert ended < len(solution.trace) - 3
    assert (costs[ended:, 0] == costs[ended, 0]).all()
    assert solution.status[0] is Status.CONVERGED


def test_modules_of_either_precision_are_those_of_passes_of_one() -> None:
    subject = problem("mix")
    form = subject.form
    start = subject.start()
    point = off(subject, start, 0.1)
    whole = {}
    for coarse in (False, True):
        form = problem("mix").form
        assert form.coarse is not None
        form.accept(form.evaluate(start))
        form.coarse.fill_(coarse)
        whole[coarse] = form.evaluate(point)
    form.coarse = torch.tensor([True, False])
    mixed = form.evaluate(point)
    assert mixed.coarse is not None
    assert mixed.coarse.tolist() == [True, False]
    for place, one in ((0, whole[True]), (1, whole[False])):
        # Products of another number of matrices may be of another order.
        torch.testing.assert_close(
            mixed.cost[place], one.cost[place], rtol=1e-6 if place == 0 else 1e-13, atol=0
        )
        torch.testing.assert_close(
            mixed.gradient[place], one.gradient[place], rtol=0, atol=1e-5 if place == 0 else 1e-13
        )
        torch.testing.assert_close(
            mixed.state.momentum[:, place],
            one.state.momentum[:, place],
            rtol=0,
            atol=1e-5 if place == 0 else 1e-12,
        )
    form.accept(mixed)
    torch.testing.assert_close(form.evaluate(point, tight=True).cost, whole[False].cost, rtol=1e-5, atol=0)


def test_passes_computed_anew_are_one_whenever_a_module_leaves_single_precision() -> None:
    subject = problem("mix")
    form = subject.form
    assert form.coarse is not None
    form.coarse.fill_(True)
    start = subject.start()
    before, found = subject.passes, subject.evaluate(start)
    for module in (0, 1):
        form.coarse[module] = False
        found = subject.evaluate_again(start, torch.tensor([module]))
        assert found.coarse is not None
        assert found.coarse.tolist() == (~torch.arange(K).le(module)).tolist()
        assert subject.evaluate(start) is found
    assert subject.passes == before + 1
    torch.testing.assert_close(found.cost, problem("mix").evaluate(start).cost, rtol=1e-12, atol=0)


def test_a_lost_completion_is_found_again() -> None:
    """An anchor that is no completion at all costs time, not correctness."""
    subject = problem("mix")
    point = off(subject, subject.start(), 0.3)
    truth = subject.form.evaluate(point)
    subject.form.accept(truth._replace(state=truth.state._replace(rotations=0 * truth.state.rotations)))
    torch.testing.assert_close(subject.form.evaluate(point, tight=True).cost, truth.cost, rtol=1e-13, atol=0)


def test_weights_of_zero_take_data_out() -> None:
    weights = torch.tensor([[0.5, 1.0], [0.5, 0.0], [0.0, 0.0]], dtype=torch.float64)
    points = family("close", T, M, N, R, 7)
    subject = search_of(updates(M, N, R, k=K), points, weights)
    point = off(subject, subject.start(), 0.2)
    truth, _ = subject.certify(point)
    found = subject.form.evaluate(point)
    torch.testing.assert_close(found.cost, truth.cost, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.gradient, truth.gradient, rtol=0, atol=1e-12)


def test_frames_too_short_for_geodesics_in_general_position() -> None:
    """Below 2r rows the manifold's own logarithms are used, and the mean is as good."""
    quotient, points = updates(7, 9, 4, k=2), family("close", 3, 7, 9, 4, 3)
    solution = mean_of(quotient, points)
    assert solution.ok
    assert float(solution.gradient_norm.max()) < 1e-8
