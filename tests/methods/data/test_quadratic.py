"""Means under a quadratic form per model: each is the minimiser of its form, and agrees with other code's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.frechet.status import Status
from riemerge.methods.data import PARAMETERS, ROWS
from riemerge.methods.data.quadratic import (
    fisher,
    fisher_norms,
    gradient_matching,
    look_for_fisher,
    look_for_gradient_matching,
    mats,
    mats_forward,
    regmean,
)
from riemerge.methods.method import Method
from riemerge.methods.setting import Answer, Setting
from tests.helpers import ROOT, seeded

SHAPES = [(3, 5), (6, 4), (1, 1)]
WEIGHTS = [(0.5, 0.3, 0.2), (1.0, 1.0, 1.0)]
FROZEN = ROOT / "tests" / "oracles" / "quadratic.safetensors"
ROUND_OFF = 1e-12  # float64 at sizes below ten and conditions below 1e3
DEFAULTS: Mapping[str, Any] = {
    "floor": 1e-6,
    "normalize_fisher": False,
    "off_diagonal": 1.0,
    "tol": 1e-13,
    "max_passes": 100,
}


def random_updates(m: int, n: int, models: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(models, m, n, generator=seeded(seed), dtype=torch.float64)


def random_statistics(
    m: int, n: int, models: int = 3, seed: int = 1, tokens: int = 20
) -> list[dict[str, Tensor]]:
    """Of models that saw different numbers of tokens, of scales that differ by a factor of ten."""
    generator = seeded(seed)
    found = []
    for t in range(models):
        count = tokens + 3 * t
        x, g = (
            (10.0**-t) * torch.randn(count, size, generator=generator, dtype=torch.float64) for size in (n, m)
        )
        information = torch.rand(m, n, generator=generator, dtype=torch.float64) * 10.0**-t
        found.append(
            {"fisher": information, "gram": x.T @ x, "covariance": g.T @ g, "tokens": torch.tensor(count)}
        )
    return found


def setting(
    x: Tensor, weights: Sequence[float], statistics: Sequence[Mapping[str, Tensor]], **more: Any
) -> Setting:
    known = {"base_statistics", "facts"}
    return Setting(
        module="layer",
        weights=torch.tensor(weights, dtype=torch.float64),
        values={**DEFAULTS, **{name: value for name, value in more.items() if name not in known}},
        shape=tuple(x.shape[1:]),
        places=tuple(range(len(x))),
        statistics=tuple(statistics),
        **{name: value for name, value in more.items() if name in known},
    )


def value(answer: Tensor | Answer) -> Tensor:
    return answer.value if isinstance(answer, Answer) else answer


def shrunk(gram: Tensor, factor: float) -> Tensor:
    return factor * gram + (1 - factor) * gram.diag().diag()


Form = Callable[[Mapping[str, Tensor], Tensor], Tensor]

# What a row's form does to a displacement, written with other operations than the code.
FORMS: dict[str, tuple[Any, dict[str, Any], Form]] = {
    "fisher": (fisher, {"floor": 1e-3}, lambda s, v: (s["fisher"] + 1e-3) * v),
    "regmean": (regmean, {}, lambda s, v: v @ (s["gram"] / s["tokens"])),
    "regmean, shrunk": (
        regmean,
        {"off_diagonal": 0.9},
        lambda s, v: v @ (shrunk(s["gram"], 0.9) / s["tokens"]),
    ),
    "mats": (mats, {}, lambda s, v: (s["covariance"] / s["tokens"]) @ v @ (s["gram"] / s["tokens"])),
    "mats_forward": (mats_forward, {}, lambda s, v: v @ (s["gram"] / s["tokens"])),
    "gradient_matching": (gradient_matching, {"floor": 1e-3}, lambda s, v: (s["fisher"] + 1e-3 + 0.2) * v),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_mean_is_the_minimiser_of_its_form(name: str, shape: tuple[int, int]) -> None:
    mean, values, form = FORMS[name]
    x, statistics = random_updates(*shape), random_statistics(*shape)
    weights = [0.5, 0.3, 0.2]
    base = {"fisher": torch.full(shape, 0.2, dtype=torch.float64)}
    found = value(mean(x, setting(x, weights, statistics, base_statistics=base, **values)))

    def cost(point: Tensor) -> Tensor:
        return sum(
            (
                w * ((point - one) * form(s, point - one)).sum()
                for w, one, s in zip(weights, x, statistics, strict=True)
            ),
            start=torch.zeros((), dtype=torch.float64),
        )

    point = found.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(point), point)
    # The cost is of the size of the largest form (about 1) times the updates'.
    assert gradient.abs().max() < 1e-11
    least = cost(found)
    for seed in range(20):
        for size in (1e-3, 1.0):
            other = found + size * torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
            assert cost(other) > least


MEANS = {name: (mean, values) for name, (mean, values, _) in FORMS.items()}


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("shape", SHAPES)
def test_copies_merge_to_themselves_and_order_is_nothing(name: str, shape: tuple[int, int]) -> None:
    mean, values = MEANS[name]
    statistics = random_statistics(*shape)
    base = {"fisher": torch.rand(shape, generator=seeded(3), dtype=torch.float64)}
    x, weights = random_updates(*shape), [0.5, 0.3, 0.2]
    copies = x[:1].expand(3, -1, -1)
    same = value(mean(copies, setting(copies, weights, statistics, base_statistics=base, **values)))
    torch.testing.assert_close(same, x[0], rtol=0, atol=ROUND_OFF)
    one = value(mean(x, setting(x, weights, statistics, base_statistics=base, **values)))
    back = value(mean(x.flip(0), setting(x, weights[::-1], statistics[::-1], base_statistics=base, **values)))
    torch.testing.assert_close(one, back, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("mean", [regmean, mats_forward])
@pytest.mark.parametrize("shape", [(2, 5), (4, 3)])
def test_means_in_halves_know_the_left_side_up_to_isometries_only(mean: Any, shape: tuple[int, int]) -> None:
    p, n = shape
    x, statistics = random_updates(p, n), random_statistics(p, n)
    left, _ = torch.linalg.qr(torch.randn(7, p, generator=seeded(2), dtype=torch.float64))
    small = value(mean(x, setting(x, WEIGHTS[0], statistics)))
    tall = value(mean(left @ x, setting(left @ x, WEIGHTS[0], statistics)))
    torch.testing.assert_close(tall, left @ small, rtol=0, atol=ROUND_OFF)


# --- other code, and other ways to solve --------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("case", range(4))
def test_fisher_and_regmean_are_those_of_fusion_bench(case: int) -> None:
    tensors = load_file(FROZEN)
    stored = {key.split(".", 1)[1]: one for key, one in tensors.items() if key.startswith(f"{case}.")}
    modules = sorted({key.split(".")[0] for key in stored})
    weights = stored[f"{modules[0]}.weights"]

    def at(name: str, **values: Any) -> Setting:
        statistics = [
            {"fisher": one, "gram": gram, "tokens": torch.tensor(1)}
            for one, gram in zip(stored[f"{name}.fisher"], stored[f"{name}.gram"], strict=True)
        ]
        return setting(stored[f"{name}.x"], weights.tolist(), statistics, **values)

    for normalized in (False, True):
        stream = [(stored[f"{name}.x"], at(name, normalize_fisher=normalized)) for name in modules]
        facts = fisher_norms(partial(iter, stream))
        for name in modules:
            ours = fisher(stored[f"{name}.x"], at(name, normalize_fisher=normalized, facts=facts))
            theirs = stored[f"{name}.fisher_{'normalized' if normalized else 'plain'}"]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUND_OFF)
    for name in modules:
        # RegMean has no weights there: ours with equal ones.
        equal = Setting(
            **{
                **_fields(at(name, off_diagonal=0.9)),
                "weights": torch.ones(len(weights), dtype=torch.float64),
            }
        )
        torch.testing.assert_close(
            regmean(stored[f"{name}.x"], equal), stored[f"{name}.regmean"], rtol=0, atol=1e-10
        )  # it inverts Gram matrices of condition up to 1e4


def _fields(at: Setting) -> dict[str, Any]:
    return {name: getattr(at, name) for name in Setting.__dataclass_fields__}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_mats_is_the_dense_solution_of_the_kronecker_system(
    shape: tuple[int, int], weights: tuple[float, ...]
) -> None:
    x, statistics = random_updates(*shape), random_statistics(*shape)
    blocks = [
        w * torch.kron(s["covariance"] / s["tokens"], s["gram"] / s["tokens"])
        for w, s in zip(weights, statistics, strict=True)
    ]
    rhs = sum(
        (block @ one.flatten() for block, one in zip(blocks, x, strict=True)),
        start=torch.zeros(x[0].numel(), dtype=torch.float64),
    )
    expected = torch.linalg.solve(torch.stack(blocks).sum(0), rhs).reshape(shape)
    answer = mats(x, setting(x, weights, statistics))
    assert answer.status == Status.CONVERGED
    # tol times the condition number of the sum, below 1e3 here.
    torch.testing.assert_close(answer.value, expected, rtol=0, atol=1e-10)


@pytest.mark.oracle
def test_mats_is_scipy_s_conjugate_gradients() -> None:
    import scipy.sparse.linalg as sparse

    m, n = 6, 4
    x, statistics = random_updates(m, n), random_statistics(m, n)
    weights = WEIGHTS[0]
    forms = [
        (w * s["covariance"].numpy() / int(s["tokens"]), s["gram"].numpy() / int(s["tokens"]))
        for w, s in zip(weights, statistics, strict=True)
    ]
    operator = sparse.LinearOperator(
        (m * n, m * n),
        matvec=lambda v: sum(left @ v.reshape(m, n) @ right for left, right in forms).ravel(),
        dtype=float,
    )
    rhs = sum(left @ one.numpy() @ right for (left, right), one in zip(forms, x, strict=True)).ravel()
    expected, info = sparse.cg(operator, rhs, rtol=1e-13, maxiter=500)
    assert info == 0
    answer = mats(x, setting(x, weights, statistics))
    torch.testing.assert_close(answer.value, torch.from_numpy(expected).reshape(m, n), rtol=0, atol=1e-10)
    assert answer.passes <= m * n + 5  # exact in mn passes, but for round-off


@pytest.mark.parametrize("shape", SHAPES)
def test_mats_with_identities_is_mats_forward_is_regmean_unshrunk(shape: tuple[int, int]) -> None:
    x, statistics = random_updates(*shape), random_statistics(*shape)
    at = setting(x, WEIGHTS[0], statistics)
    expected = regmean(x, at)
    torch.testing.assert_close(mats_forward(x, at).value, expected, rtol=0, atol=1e-10)
    identity = [
        {**one, "covariance": one["tokens"] * torch.eye(shape[0], dtype=torch.float64)} for one in statistics
    ]
    torch.testing.assert_close(mats(x, setting(x, WEIGHTS[0], identity)).value, expected, rtol=0, atol=1e-10)


def test_a_budget_that_runs_out_is_told() -> None:
    x, statistics = random_updates(6, 4), random_statistics(6, 4)
    answer = mats(x, setting(x, WEIGHTS[0], statistics, max_passes=2))
    assert (answer.ok, answer.status, answer.passes) == (False, Status.BUDGET, 2)
    assert "max_passes" in answer.advice
    stalled = mats(x, setting(x, WEIGHTS[0], statistics, tol=1e-40, max_passes=10_000))
    assert not stalled.ok


def test_directions_that_no_form_sees_stay_at_the_weighted_average() -> None:
    x, statistics = random_updates(3, 6), random_statistics(3, 6)
    seen = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    dead = [{**one, "gram": one["gram"] * seen * seen[:, None]} for one in statistics]
    weights = torch.tensor(WEIGHTS[0], dtype=torch.float64)
    average = torch.einsum("t,tmn->mn", weights, x)
    small = [{**one, "gram": one["gram"][:4, :4]} for one in statistics]
    for mean, values in ((regmean, {}), (regmean, {"off_diagonal": 0.9}), (mats, {}), (mats_forward, {})):
        found = value(mean(x, setting(x, WEIGHTS[0], dead, **values)))
        torch.testing.assert_close(found[:, 4:], average[:, 4:], rtol=0, atol=ROUND_OFF)
        alone = value(mean(x[..., :4], setting(x[..., :4], WEIGHTS[0], small, **values)))
        torch.testing.assert_close(found[:, :4], alone, rtol=0, atol=1e-10)


def test_regmean_refuses_what_it_cannot_determine_and_mats_forward_does_not() -> None:
    x, statistics = random_updates(3, 6), random_statistics(3, 6, tokens=1)  # 1 + 4 + 7 tokens: enough
    few = [{**one, "gram": statistics[0]["gram"], "tokens": torch.tensor(1)} for one in statistics]
    with pytest.raises(NumericalError, match=r"singular .* off_diagonal below 1"):
        regmean(x, setting(x, WEIGHTS[0], few))
    assert torch.isfinite(regmean(x, setting(x, WEIGHTS[0], few, off_diagonal=0.9))).all()
    answer = mats_forward(x, setting(x, WEIGHTS[0], few))
    assert answer.ok
    assert torch.isfinite(answer.value).all()


@pytest.mark.parametrize("seed", range(20))
def test_regmean_refuses_also_where_round_off_hides_that_the_sum_is_singular(seed: int) -> None:
    """One input is the sum of the others: the last pivot is a few eps, of either sign."""
    x = random_updates(3, 6)
    inputs = torch.randn(40, 6, generator=seeded(seed), dtype=torch.float64)
    inputs[:, 5] = inputs[:, :5].sum(dim=1)
    statistics = [{"gram": inputs.T @ inputs}] * 3
    with pytest.raises(NumericalError, match="singular"):
        regmean(x, setting(x, WEIGHTS[0], statistics))


def test_inputs_of_any_scale_keep_regmean_exact() -> None:
    x, statistics = random_updates(3, 4), random_statistics(3, 4)
    scale = torch.tensor([1e-8, 1.0, 1e3, 1e8], dtype=torch.float64)
    scaled = [{**one, "gram": one["gram"] * scale * scale[:, None]} for one in statistics]
    expected = regmean(x, setting(x, WEIGHTS[0], statistics)) / scale
    found = regmean(x / scale, setting(x, WEIGHTS[0], scaled))
    torch.testing.assert_close(found * scale, expected * scale, rtol=0, atol=1e-10)


# --- fisher and gradient matching ---------------------------------------------------------------------------


def test_norms_span_all_modules_and_are_asked_for_only_when_wanted() -> None:
    one, other = random_statistics(2, 3), random_statistics(4, 5, seed=7)
    x, y = random_updates(2, 3), random_updates(4, 5)
    stream = [
        (x, setting(x, WEIGHTS[0], one, normalize_fisher=True)),
        (y, setting(y, WEIGHTS[0], other, normalize_fisher=True)),
    ]
    found = fisher_norms(lambda: iter(stream))["fisher_norms"]
    expected = [
        torch.cat([a["fisher"].flatten(), b["fisher"].flatten()]).norm()
        for a, b in zip(one, other, strict=True)
    ]
    for place, norm in enumerate(expected):
        torch.testing.assert_close(found[place], norm, rtol=1e-14, atol=0)
    plain = [(x, setting(x, WEIGHTS[0], one))]
    assert fisher_norms(lambda: iter(plain)) == {}


def test_normalised_information_does_not_depend_on_each_model_s_scale() -> None:
    x, statistics = random_updates(3, 4), random_statistics(3, 4)
    scaled = [{**one, "fisher": one["fisher"] * 10.0**t} for t, one in enumerate(statistics)]

    def merged(of: list[dict[str, Tensor]]) -> Tensor:
        at = setting(x, WEIGHTS[0], of, normalize_fisher=True, floor=1e-30)
        facts = fisher_norms(lambda: iter([(x, at)]))
        return fisher(x, setting(x, WEIGHTS[0], of, normalize_fisher=True, floor=1e-30, facts=facts))

    torch.testing.assert_close(merged(statistics), merged(scaled), rtol=0, atol=ROUND_OFF)


def test_no_information_anywhere_is_refused_without_a_floor_and_averaged_with_one() -> None:
    x = random_updates(2, 3)
    none = [{"fisher": torch.zeros(2, 3, dtype=torch.float64)} for _ in x]
    with pytest.raises(NumericalError, match="not positive in all entries; expected a positive one"):
        fisher(x, setting(x, WEIGHTS[0], none, floor=0.0))
    average = torch.einsum("t,tmn->mn", torch.tensor(WEIGHTS[0], dtype=torch.float64), x)
    torch.testing.assert_close(fisher(x, setting(x, WEIGHTS[0], none)), average, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 0.3, 0.2), (1.0, -0.2, 0.4)])
def test_gradient_matching_is_its_closed_form(weights: tuple[float, ...]) -> None:
    """Daheim et al.'s sum of preconditioned updates, each with its own quotient."""
    x, statistics = random_updates(3, 4), random_statistics(3, 4)
    base = torch.rand(3, 4, generator=seeded(5), dtype=torch.float64) + 0.5
    total = base + 1e-12 + sum(w * s["fisher"] for w, s in zip(weights, statistics, strict=True))
    expected = sum(
        w * (s["fisher"] + base + 1e-12) / total * one
        for w, s, one in zip(weights, statistics, x, strict=True)
    )
    found = gradient_matching(
        x, setting(x, weights, statistics, floor=1e-12, base_statistics={"fisher": base})
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUND_OFF)


def test_gradient_matching_without_base_curvature_is_fisher_and_without_any_other_a_sum() -> None:
    x, statistics = random_updates(3, 4), random_statistics(3, 4)
    zero = {"fisher": torch.zeros(3, 4, dtype=torch.float64)}
    found = gradient_matching(x, setting(x, WEIGHTS[1], statistics, floor=0.0, base_statistics=zero))
    torch.testing.assert_close(
        found, fisher(x, setting(x, WEIGHTS[1], statistics, floor=0.0)), rtol=0, atol=ROUND_OFF
    )
    flat = setting(x, WEIGHTS[1], [zero] * 3, floor=1.0, base_statistics=zero)
    torch.testing.assert_close(gradient_matching(x, flat), x.sum(dim=0), rtol=0, atol=ROUND_OFF)


def test_gradient_matching_refuses_without_a_base_and_without_a_positive_form() -> None:
    x, statistics = random_updates(2, 3), random_statistics(2, 3)
    with pytest.raises(NumericalError, match="no Fisher information of the base model"):
        gradient_matching(x, setting(x, WEIGHTS[0], statistics))
    small = {"fisher": torch.full((2, 3), 1e-9, dtype=torch.float64)}
    with pytest.raises(NumericalError, match="not positive in all entries"):
        gradient_matching(x, setting(x, [-1.0, -1.0, 0.1], statistics, base_statistics=small))


# --- the rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_name_functions_that_exist_and_give_all_parameters_values(row: Method) -> None:
    import importlib

    for path in (row.mean, row.survey):
        if path:
            module, name = path.split(":")
            assert callable(getattr(importlib.import_module(module), name))
    assert set(row.parameters) == {"rank", "scale"} | set(row.defaults)
    known = {one.name for one in PARAMETERS}
    assert {"floor", "normalize_fisher", "off_diagonal"} == known


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_rows_of_entries_are_merged_apart_with_their_own_statistics(rows: int) -> None:
    x, statistics = random_updates(9, 4), random_statistics(9, 4)
    given = setting(x, WEIGHTS[0], statistics, base_statistics=random_statistics(9, 4, 1, seed=5)[0])
    for mean, look in ((fisher, look_for_fisher), (gradient_matching, look_for_gradient_matching)):
        start = look(lambda: iter([x]), given)
        for _ in range(2):  # each pass starts anew
            merge = start()
            found = torch.cat([merge(run) for run in x.split(rows, dim=1)])
            assert torch.equal(found, mean(x, given))
