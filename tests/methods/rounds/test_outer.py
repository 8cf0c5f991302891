"""Outer steps against torch's SGD and Adam fed the pseudo-gradient, over several rounds; and by laws."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.merging_is_a_gradient_step import jacobian_at_the_diagonal, remainder_slope
from riemerge.methods.rounds import PARAMETERS, ROWS
from riemerge.methods.rounds.outer import FedAdam, Momentum, OuterOptimizer, OuterRule
from riemerge.methods.setting import Setting
from tests.fake_cuda import CUDA, fake_cuda, forbid_numpy
from tests.helpers import seeded

EPS = torch.finfo(torch.float64).eps
ROUNDS = 5
SHAPES = {"wide": (3, 7), "tall": (6, 4), "bias": (5,), "number": ()}
WEIGHTS = [None, [1.0, 5.0, 2.0]]
Weights = Sequence[float] | None
BY_NAME = {row.name: row for row in ROWS}

RULES: dict[str, OuterRule] = {
    "fedavg": Momentum(),
    "fedavgm": Momentum(1.0, 0.9),
    "fedadam": FedAdam(),
    "diloco": Momentum(0.7, 0.9, nesterov=True),
}
OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "fedavg": lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    "fedavgm": lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9),
    "diloco": lambda parameters: torch.optim.SGD(parameters, lr=0.7, momentum=0.9, nesterov=True),
}


def base(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = seeded(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def clients(start: dict[str, Tensor], seed: int, size: float = 0.1) -> list[dict[str, Tensor]]:
    """Three models trained from `start`, as it were."""
    generator = seeded(100 + seed)
    return [
        {
            name: one + size * torch.randn(one.shape, generator=generator).to(one)
            for name, one in start.items()
        }
        for _ in range(3)
    ]


def shares_of(weights: Weights) -> Tensor:
    given = torch.tensor([1.0] * 3 if weights is None else weights, dtype=torch.float64)
    return given / given.sum()


def pseudo_gradient(start: Tensor, models: Sequence[Tensor], weights: Weights) -> Tensor:
    return torch.tensordot(shares_of(weights), start - torch.stack(list(models)), dims=1)


def run(
    outer: OuterOptimizer, theta: dict[str, Tensor], rounds: range, weights: Weights = None
) -> dict[str, Tensor]:
    for turn in rounds:
        theta = outer.step(theta, clients(theta, turn), weights)
    return theta


def setting(weights: Sequence[float], **values: Any) -> Setting:
    return Setting("m", torch.tensor(weights, dtype=torch.float64), values, (0, 0))


def merged(name: str, x: Tensor, weights: Sequence[float], **values: Any) -> Tensor:
    row = BY_NAME[name]
    module, function = row.mean.split(":")
    at = setting(weights, **dict(row.defaults) | values)
    mean = getattr(importlib.import_module(module), function)
    if row.domain == "entries":
        answer: Tensor = mean(x, at)
        return answer
    flat = x.flatten(1)
    return torch.tensordot(mean(flat @ flat.T, at), x, dims=1)


@pytest.mark.oracle
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rounds_of_momentum_are_those_of_torch(name: str, weights: Weights) -> None:
    outer, theta = OuterOptimizer(RULES[name]), base()
    parameters = {key: torch.nn.Parameter(one.clone()) for key, one in theta.items()}
    optimizer = OPTIMIZERS[name](list(parameters.values()))
    for turn in range(ROUNDS):
        models = clients(theta, turn)
        for key, parameter in parameters.items():
            parameter.grad = pseudo_gradient(theta[key], [model[key] for model in models], weights)
        optimizer.step()
        theta = outer.step(theta, models, weights)
        for key, parameter in parameters.items():
            assert torch.allclose(theta[key], parameter.detach(), rtol=0, atol=1e-14)  # of numbers around 1


@pytest.mark.oracle
@pytest.mark.parametrize("weights", WEIGHTS)
def test_rounds_of_fedadam_are_those_of_torch_without_its_corrections(weights: Weights) -> None:
    # Torch divides m by 1 − β₁ᵗ and √v by √(1 − β₂ᵗ): the rate and eps of each round take both out. Its v
    # starts at zero; a step with gradient τ/√(1 − β₂) and rate 0 brings it to τ², and m is put back.
    rule = FedAdam(outer_lr=0.02, beta1=0.9, beta2=0.99, tau=0.05)
    outer, theta = OuterOptimizer(rule), base()
    parameters = {key: torch.nn.Parameter(one.clone()) for key, one in theta.items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=0.0, betas=(rule.beta1, rule.beta2))
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, rule.tau / math.sqrt(1.0 - rule.beta2))
    optimizer.step()
    for parameter in parameters.values():
        optimizer.state[parameter]["exp_avg"].zero_()
    for turn in range(ROUNDS):
        first, second = 1.0 - rule.beta1 ** (turn + 2), math.sqrt(1.0 - rule.beta2 ** (turn + 2))
        optimizer.param_groups[0]["lr"] = rule.outer_lr * first / second
        optimizer.param_groups[0]["eps"] = rule.tau / second
        models = clients(theta, turn)
        for key, parameter in parameters.items():
            parameter.grad = pseudo_gradient(theta[key], [model[key] for model in models], weights)
        optimizer.step()
        theta = outer.step(theta, models, weights)
        for key, parameter in parameters.items():
            assert torch.allclose(theta[key], parameter.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("shape", [(3, 7), (6, 4), (5,)])
def test_a_row_is_the_first_round_from_rest(row: Any, shape: tuple[int, ...]) -> None:
    generator = seeded(1)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = 0.1 * torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    weights = [0.2, 0.3, 0.5]
    after = OuterOptimizer(RULES[row.name]).step({"w": start}, [{"w": start + one} for one in x], weights)
    assert torch.allclose(start + merged(row.name, x, weights), after["w"], rtol=0, atol=1e-14)


def test_fedavg_moves_the_base_to_the_mean_of_the_models() -> None:
    x, weights = torch.randn(3, 4, 5, generator=seeded(2), dtype=torch.float64), [0.2, 0.3, 0.5]
    mean = 0.2 * x[0] + 0.3 * x[1] + 0.5 * x[2]
    assert torch.allclose(merged("fedavg", x, weights), mean, rtol=0, atol=1e-15)
    assert torch.allclose(merged("fedavgm", x, weights), mean, rtol=0, atol=1e-15)
    assert torch.allclose(merged("diloco", x, weights), 0.7 * 1.9 * mean, rtol=0, atol=1e-15)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_copies_merge_to_themselves_where_the_row_claims_it_and_only_there(row: Any) -> None:
    x = torch.randn(4, 5, generator=seeded(3), dtype=torch.float64)
    found = merged(row.name, torch.stack([x, x, x]), [0.2, 0.3, 0.5])
    assert torch.allclose(found, x, rtol=0, atol=1e-15 * 10) == row.idempotent


def test_fedadam_goes_from_a_multiple_to_a_sign() -> None:
    signs = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    for size, step in ((1e-9, 0.01 * 0.1 * 1e-9 / (1e-3 * (1.0 + math.sqrt(0.99)))), (1e9, 0.01 * 0.1 / 0.1)):
        found = merged("fedadam", (size * signs)[None], [1.0])
        assert torch.allclose(found, step * signs, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_stays_on_the_device(row: Any) -> None:
    x = torch.randn(3, 4, 5, generator=seeded(4), dtype=torch.float64)
    expected = merged(row.name, x, [0.2, 0.3, 0.5])
    with fake_cuda(), forbid_numpy():
        found = merged(row.name, x.to("cuda"), [0.2, 0.3, 0.5])
        assert found.device == CUDA
        assert torch.equal(found.cpu(), expected)


def test_every_parameter_of_the_rows_is_known() -> None:
    known = {"rank", "scale"} | {one.name for one in PARAMETERS}
    for row in ROWS:
        assert set(row.parameters) <= known
        assert set(row.defaults) <= set(row.parameters)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_rounds_continue_bit_for_bit_from_a_file(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    whole = run(OuterOptimizer(RULES[name]), base(dtype), range(ROUNDS), WEIGHTS[1])
    first = OuterOptimizer(RULES[name])
    theta = run(first, base(dtype), range(2), WEIGHTS[1])
    assert {one.dtype for one in theta.values()} == {dtype}
    assert {one.dtype for one in first.state_dict().values()} == {torch.promote_types(dtype, torch.float32)}
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    second = OuterOptimizer(RULES[name])
    second.load_state_dict(load_file(tmp_path / "state.safetensors"))
    theta = run(second, theta, range(2, ROUNDS), WEIGHTS[1])
    assert all(torch.equal(theta[key], whole[key]) for key in whole)


def test_a_round_changes_nothing_that_was_given() -> None:
    outer, theta = OuterOptimizer(RULES["diloco"]), base()
    models = clients(theta, 0)
    before = [{name: one.clone() for name, one in some.items()} for some in (theta, *models)]
    outer.step(theta, models)
    state = outer.state_dict()
    held = {name: one.clone() for name, one in state.items()}
    outer.step(theta, models)
    for now, then in zip((theta, *models, state), (*before, held), strict=True):
        assert all(torch.equal(now[name], then[name]) for name in then)


def test_modules_do_not_know_each_other() -> None:
    theta = base()
    whole = run(OuterOptimizer(RULES["fedadam"]), theta, range(1))
    for name in theta:
        models = [{name: model[name]} for model in clients(theta, 0)]
        alone = OuterOptimizer(RULES["fedadam"]).step({name: theta[name]}, models)
        assert torch.equal(alone[name], whole[name])


@pytest.mark.parametrize(
    ("models", "weights", "reason"),
    [
        ([], None, "0 models"),
        ([{"w": torch.ones(2)}], [1.0, 2.0], "1 models and 2 weights"),
        ([{"w": torch.ones(2)}], [0.0], "above 0"),
        ([{"w": torch.ones(2)}], [math.nan], "finite"),
        ([{"v": torch.ones(2)}], None, "v is not both"),
        ([{"w": torch.ones(3)}], None, r"w is \(3,\): expected \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(models: list[dict[str, Tensor]], weights: Weights, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        OuterOptimizer(Momentum()).step({"w": torch.ones(2)}, models, weights)


def test_a_base_of_integers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a float dtype"):
        OuterOptimizer(Momentum()).step({"w": torch.ones(2).int()}, [{"w": torch.ones(2).int()}])


def test_a_state_of_another_base_or_rule_is_refused() -> None:
    outer = OuterOptimizer(Momentum())
    outer.step({"w": torch.ones(2)}, [{"w": torch.zeros(2)}])
    with pytest.raises(ValueError, match="not both in the state and in the base"):
        outer.step({"v": torch.ones(2)}, [{"v": torch.zeros(2)}])
    with pytest.raises(ValueError, match=r"w: the state holds .*\(2,\).*expected .*\(3,\)"):
        outer.step({"w": torch.ones(3)}, [{"w": torch.zeros(3)}])
    other = OuterOptimizer(FedAdam())
    other.load_state_dict(outer.state_dict())
    with pytest.raises(ValueError, match="for this rule"):
        other.step({"w": torch.ones(2)}, [{"w": torch.zeros(2)}])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Momentum(outer_lr=0.0),
        lambda: Momentum(momentum=1.0),
        lambda: FedAdam(tau=0.0),
        lambda: FedAdam(beta1=-0.1),
        lambda: FedAdam(beta2=1.0),
        lambda: FedAdam(outer_lr=math.inf),
    ],
)
def test_numbers_out_of_their_bounds_are_refused(make: Callable[[], OuterRule]) -> None:
    with pytest.raises(ValueError, match="expected a"):
        make()


SUBSTITUTED: dict[str, tuple[OuterRule, float]] = {
    "fedavg": (Momentum(), 1.0),
    "fedavgm": (Momentum(0.5, 0.9), 0.5),
    "diloco": (Momentum(0.7, 0.9, nesterov=True), 0.7 * 1.9),
    "fedadam": (FedAdam(outer_lr=2.0, tau=0.5), 2.0 * 0.1 / (0.5 * (1.0 + math.sqrt(0.99)))),
}


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("name", SUBSTITUTED)
def test_substitution_recovers_gradient_descent(name: str, share: float) -> None:
    rule, factor = SUBSTITUTED[name]

    def merge(first: Tensor, second: Tensor) -> Tensor:
        models, weights = ([first, second], [1.0 - share, share]) if share < 1.0 else ([second], [1.0])
        return OuterOptimizer(rule).step({"w": first}, [{"w": one} for one in models], weights)["w"]

    point, direction = torch.randn(2, 2, 3, generator=seeded(5), dtype=torch.float64)
    jacobian = jacobian_at_the_diagonal(merge, point)
    assert torch.allclose(jacobian, share * factor * torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-9)
    slope = remainder_slope(merge, point, direction / torch.linalg.vector_norm(direction), jacobian)
    assert slope >= 1.9
    assert (slope == math.inf) == (name != "fedadam")
