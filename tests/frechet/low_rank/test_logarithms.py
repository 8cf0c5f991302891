"""All logarithms of a pass at once, against the manifold's own, pair by pair."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from riemerge.frechet import Evaluation
from riemerge.frechet.low_rank import logarithms
from riemerge.frechet.low_rank.joint import Joint
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold, stiefel_log
from riemerge.solvers import LBFGS
from tests.frechet.low_rank.passes import K, R, T, off, problem
from tests.frechet.problems import mean_of
from tests.helpers import FAMILIES
from tests.manifolds.subjects import family


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pass_is_what_the_manifold_says(name: str) -> None:
    """Cold, warm and loose: the same logarithms as `FixedRank.logarithm`, which knows none of this."""
    for length in (0.01, 0.3):
        subject = problem(name, torch.tensor([0.5, 0.3, 0.2]))
        start = subject.start()
        point = off(subject, start, length)
        truth, forward_errors = subject.certify(point)
        # Two roundings of the same numbers; cores have condition 10.
        assert float(forward_errors.max()) < 1e-12
        cold = subject.form.evaluate(point)
        subject.form.accept(subject.form.evaluate(start))
        warm = subject.form.evaluate(point, tight=True)
        for found in (cold, warm):
            torch.testing.assert_close(found.cost, truth.cost, rtol=1e-12, atol=0)
            torch.testing.assert_close(found.squared, truth.squared, rtol=1e-12, atol=0)
            torch.testing.assert_close(found.gradient, truth.gradient, rtol=0, atol=1e-11)
            torch.testing.assert_close(found.vertical, truth.vertical, rtol=0, atol=1e-11)
        loose = subject.form.evaluate(point)
        at_start = subject.evaluate(start).norms
        error = subject.form.manifold.norms(point, loose.gradient - truth.gradient)
        # Near the cut locus, where shared subspaces start, the curvature along the fibre is small.
        assert bool((error <= 0.25 * at_start).all())
        assert bool(((loose.cost - truth.cost).abs() <= 0.25 * at_start.square()).all())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pass_of_single_precision_is_one_of_double_precision_to_six_digits(name: str) -> None:
    """Cold and warm, also where half of the angles are too wide for products."""
    for length in (0.01, 0.3):
        subject = problem(name)
        form = subject.form
        start = subject.start()
        point = off(subject, start, length)
        truth = form.evaluate(point)
        assert form.coarse is not None
        assert truth.coarse is not None
        assert not bool(truth.coarse.any())
        form.coarse.fill_(True)
        cold = form.evaluate(point)
        form.coarse.fill_(False)
        form.accept(form.evaluate(start))
        form.coarse.fill_(True)
        warm = form.evaluate(point)
        left = float(form.evaluate(start).norms.max())
        for found, tolerance in ((cold, 3e-4), (warm, 0.06 * left)):
            assert found.coarse is not None
            assert bool(found.coarse.all())
            error = form.manifold.norms(point, found.gradient - truth.gradient)
            # Near the cut locus, where shared subspaces start, the curvature along the fibre is small.
            assert float(error.max()) <= 10 * tolerance + 1e-5
            # Grams are shifted by their round-off, 1e-5 of them.
            torch.testing.assert_close(found.cost, truth.cost, rtol=3e-5, atol=16 * tolerance**2)
        # Tight ones are of double precision whatever is asked for.
        tight = form.evaluate(point, tight=True)
        torch.testing.assert_close(tight.cost, truth.cost, rtol=1e-12, atol=0)


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A completion that is never turned is not a logarithm: the pass says so, by an infinite cost."""
    monkeypatch.setattr(logarithms, "_TURNS", 0)
    subject = problem("independent")
    assert bool(torch.isinf(subject.evaluate(off(subject, subject.form.start(None), 0.3)).cost).all())


def test_a_core_that_is_positive_by_round_off_only_costs_its_module_infinity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step too far may pass Cholesky and not `eigh`: no logarithm there, no error, and the other module as
    it is.
    """
    subject = problem("mix")
    point = off(subject, subject.start(), 0.1)
    truth = subject.form.evaluate(point)
    eigh = torch.linalg.eigh

    def with_a_negative_one(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(matrix)
        if matrix.shape == (K, R, R):
            values = values.clone()
            values[0, 0] = -1e-20
        return values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", with_a_negative_one)
    found = subject.form.evaluate(point)
    assert bool(torch.isinf(found.cost[0]))
    assert not bool(found.gradient[0].any())
    assert found.cost[1] == truth.cost[1]
    assert found.gradient[1].equal(truth.gradient[1])


@pytest.mark.parametrize("name", ["close", "lora_like", "independent"])
def test_a_logarithm_of_the_loop_needs_two_small_eigendecompositions(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On average over a solve in double precision: of size 2r for each side and pair, and of size r for each
    turn. One turn of each in advance saves most of the others; without it, the planted fault, there are more.
    In single precision, which close adapters leave at once, there is next to none of size 2r.
    """
    if name != "close":
        assert small_eigendecompositions(name, monkeypatch, tol=1e-2)[0] <= 0.1
    monkeypatch.setattr(LBFGS, "coarse", False)
    large, small = small_eigendecompositions(name, monkeypatch)
    # Every pair and side has one at least.
    assert 1 <= large <= 1.1
    assert small <= 1.1
    monkeypatch.setattr(
        logarithms,
        "continue_rotation",
        lambda frame, rotation, _: stiefel_log.move_completion(frame, rotation[..., 8:]),
    )
    assert small_eigendecompositions(name, monkeypatch)[0] > 1.3


def small_eigendecompositions(
    name: str, monkeypatch: pytest.MonkeyPatch, tol: float = 1e-8
) -> tuple[float, float]:
    """Of frames, of sizes 2r and r, for each logarithm of the loop of a solve at rank 8."""
    counts: Counter[str] = Counter()
    eigh, evaluate = torch.linalg.eigh, Joint.evaluate
    loop = False

    def counted(matrix: Tensor) -> tuple[Tensor, Tensor]:
        if (
            loop and matrix.ndim == 3 and matrix.shape[0] > K
        ):  # pairs in one axis: frames, not cores or modules
            counts[f"eigh {matrix.shape[-1]}"] += matrix.shape[0]
        found: tuple[Tensor, Tensor] = eigh(matrix)
        return found

    def passed(self: Joint, point: Tensor, *, tight: bool = False) -> Evaluation:
        nonlocal loop
        loop = self._anchor is not None
        counts["logs"] += 2 * T * self.k if loop else 0
        try:
            return evaluate(self, point, tight=tight)
        finally:
            loop = False

    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", counted)
        patch.setattr(Joint, "evaluate", passed)
        quotient = QuotientManifold(FixedRank(60, 50, 8, k=K), Orthogonal(8))
        mean_of(quotient, family(name, T, 60, 50, 8, 3, k=K), max_passes=60, tol=tol)
    return counts["eigh 16"] / counts["logs"], counts["eigh 8"] / counts["logs"]
