"""All logarithms of a pass at once, against the manifold's own, pair by pair."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from riemerge import FrechetProblem, frechet_mean, linalg
from riemerge.frechet import mean
from riemerge.frechet.low_rank import logarithms
from riemerge.frechet.low_rank.joint import Joint
from riemerge.frechet.low_rank.search_space import JointManifold
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold, stiefel_log
from tests.helpers import FAMILIES, seeded
from tests.manifolds.subjects import family, updates

M, N, R, T, K = 30, 26, 4, 3, 2


def problem(name: str, weights: Tensor | None = None, **options: float) -> FrechetProblem:
    """The reduced problem of one family."""
    return FrechetProblem(updates(M, N, R, k=K), family(name, T, M, N, R, 7, **options), weights)


def off(subject: FrechetProblem, point: Tensor, length: float) -> Tensor:
    """A point at this distance from another one."""
    search = subject.form.manifold
    return search.retraction(point, length * search.random_tangent_vector(point))


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
    before = subject.passes
    for module in (0, 1):
        form.coarse[module] = False
        found = subject.evaluate_again(start, torch.tensor([module]))
        assert found.coarse is not None
        assert found.coarse.tolist() == (~torch.arange(K).le(module)).tolist()
        assert subject.evaluate(start) is found
    assert subject.passes == before + 1
    torch.testing.assert_close(found.cost, problem("mix").evaluate(start).cost, rtol=1e-12, atol=0)


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
    subject = FrechetProblem(updates(M, N, R, k=K), points, weights)
    point = off(subject, subject.start(), 0.2)
    truth, _ = subject.certify(point)
    found = subject.form.evaluate(point)
    torch.testing.assert_close(found.cost, truth.cost, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.gradient, truth.gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["close", "shared_subspace", "independent"])
def test_the_model_of_the_hessian_is_symmetric_and_positive(name: str) -> None:
    subject = problem(name, cond=1e3)
    form = subject.form
    assert isinstance(form, Joint)
    assert isinstance(form.manifold, JointManifold)
    point = off(subject, subject.start(), 0.2)
    pass_ = form.evaluate(point).state
    a, b = (form.manifold.projection(point, form.manifold.random_ambient(point)) for _ in range(2))
    inner = form.manifold.inner_products
    pa, pb = (form.manifold.precondition(point, x, pass_) for x in (a, b))
    torch.testing.assert_close(inner(point, a, pb), inner(point, pa, b), rtol=1e-11, atol=1e-11)
    assert bool((inner(point, a, pa) > 0).all())
    # Where the data are the point itself the metric is the Hessian.
    same = FrechetProblem(updates(M, N, R, k=K), [family(name, 1, M, N, R, 7)[0]] * 2, reduce=False)
    x = same.start()
    v = same.form.manifold.projection(x, same.form.manifold.random_ambient(x))
    assert isinstance(same.form, Joint)
    kept = same.form.precondition(x, v, same.evaluate(x))
    torch.testing.assert_close(kept, v, rtol=0, atol=1e-6 * float(v.abs().max()))


def test_frames_too_short_for_geodesics_in_general_position() -> None:
    """Below 2r rows the manifold's own logarithms are used, and the mean is as good."""
    quotient, points = updates(7, 9, 4, k=2), family("close", 3, 7, 9, 4, 3)
    solution = frechet_mean(quotient, points)
    assert solution.ok
    assert float(solution.gradient_norm.max()) < 1e-8


def test_shared_directions_have_a_normal_factor() -> None:
    gram = torch.zeros(1, 3, 3, dtype=torch.float64)
    gram[0, 0, 0] = 0.25
    factor, found = stiefel_log.normal_factor(gram)
    assert bool(found.all())
    torch.testing.assert_close(factor.mT @ factor, gram, rtol=0, atol=1e-14)
    assert not bool(stiefel_log.normal_factor(-gram)[1].any())


@pytest.mark.parametrize("length", [1e-9, 0.05, 0.3])
def test_a_completion_near_the_identity_is_the_one_that_lapack_finds(
    length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = linalg.skew(torch.randn(5, 2 * R, 2 * R, generator=seeded(4), dtype=torch.float64))
    size = torch.linalg.matrix_norm(drawn)[:, None, None]
    frame = linalg.exp_skew(length * drawn / size)[..., :R]
    near = stiefel_log.complete_rotation(frame)
    monkeypatch.setattr(stiefel_log, "_CLOSE", -1.0)
    torch.testing.assert_close(near, stiefel_log.complete_rotation(frame), rtol=0, atol=1e-14)


def test_a_completion_that_is_too_far_is_not_taken() -> None:
    frame = torch.eye(4, dtype=torch.float64)[None, :, :2]
    rest = torch.eye(4, dtype=torch.float64)[None, :, 2:]
    moved, near = stiefel_log.move_completion(frame, rest)
    assert bool(near.all())
    torch.testing.assert_close(moved, rest)
    assert not bool(stiefel_log.move_completion(frame, frame)[1].any())


@pytest.mark.parametrize("turned", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("angle", [0.5, 1.0, 1.3])
def test_a_completion_is_continued_to_first_order(turned: float, angle: float) -> None:
    """Of the block C, that a frame's way leaves in a completion made orthogonal to it, little is left."""
    drawn = torch.randn(3, 1, 2 * R, 2 * R, generator=seeded(3), dtype=torch.float64)
    upper, lower = linalg.skew(drawn[0, :, :R, :R]), drawn[1, :, :R, :R]
    log = stiefel_log.generator(
        turned * upper / torch.linalg.matrix_norm(upper, 2),
        angle * lower / torch.linalg.matrix_norm(lower, 2),
    )
    rotation = linalg.exp_skew(log)
    frame = linalg.exp_skew(1e-3 * linalg.skew(drawn[2])) @ rotation[..., :R]
    plain, _ = stiefel_log.move_completion(frame, rotation[..., R:])
    rest, near = stiefel_log.continue_rotation(frame, rotation, log)
    assert bool(near.all())
    left, before = (stiefel_log.fibre_log(frame, x, 0.0, 0).residual for x in (rest, plain))
    # The next power of L at these angles is (angle / pi)^4 / 45 and less.
    assert float(left) < float(before) / 30


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
    monkeypatch.setattr(mean, "_SINGLE", ())
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
        return eigh(matrix)

    def passed(self: Joint, point: Tensor, *, tight: bool = False):
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
        frechet_mean(quotient, family(name, T, 60, 50, 8, 3, k=K), max_passes=60, tol=tol)
    return counts["eigh 16"] / counts["logs"], counts["eigh 8"] / counts["logs"]
