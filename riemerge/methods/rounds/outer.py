"""Merging as an outer optimizer step: models trained from one base are a gradient at that base.

With shares pᵢ of sum 1 and models θᵢ the pseudo-gradient is g = Σ pᵢ (θ − θᵢ) = −Σ pᵢ dWᵢ. A rule turns
gradients, round after round, into displacements of θ. `OuterOptimizer` applies a rule to whole models; the
rows of the table are its first round, from rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from riemerge.methods.setting import Setting


class OuterRule(Protocol):
    """How pseudo-gradients of one module become displacements of it."""

    def rest(self, like: Tensor) -> dict[str, Tensor]:
        """Return the state before the first round, tensors of that shape, dtype and device, by name."""
        ...

    def step(self, gradient: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what to add to the module, and the state for the next round."""
        ...


@final
@dataclass(frozen=True)
class Momentum:
    """Gradient descent with momentum: FedAvg, FedAvgM and DiLoCo by its numbers.

    Law: b <- μ b + g from b = 0, and the displacement is −η b, or −η (g + μ b) with `nesterov`: what
    `torch.optim.SGD` does with g. It is linear in all gradients so far; with η = 1 and μ = 0 the base moves
    to the mean of the models.

    Args:
        outer_lr: The outer learning rate η, above 0.
        momentum: μ, in [0, 1).
        nesterov: Whether the gradient looks ahead.

    Raises:
        ValueError: A number out of its bounds.

    Source: McMahan et al. 2017 (FedAvg); Hsu et al. 2019 (FedAvgM); Douillard et al. 2023 (DiLoCo: Nesterov,
        η 0.7 and μ 0.9).
    """

    outer_lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_positive("outer_lr", self.outer_lr)
        _check_share("momentum", self.momentum)

    def rest(self, like: Tensor) -> dict[str, Tensor]:
        """Return a buffer of zeros."""
        return {"momentum": torch.zeros_like(like)}

    def step(self, gradient: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the displacement and the buffer after this gradient."""
        buffer = self.momentum * state["momentum"] + gradient
        direction = gradient + self.momentum * buffer if self.nesterov else buffer
        return -self.outer_lr * direction, {"momentum": buffer}


@final
@dataclass(frozen=True)
class FedAdam:
    """Adam on the server, entry by entry, as in federated optimisation.

    Law: m <- β₁ m + (1 − β₁) g from 0 and v <- β₂ v + (1 − β₂) g² from τ², and the displacement is
    −η m/(√v + τ), without correction of bias. It is smooth in g also at g = 0, as v stays above zero: in the
    first round small gradients are multiplied by η (1 − β₁)/(τ (1 + √β₂)), and no entry moves by more than
    η (1 − β₁)/√(1 − β₂).

    Args:
        outer_lr: The outer learning rate η, above 0, in the units of the weights.
        beta1: β₁, in [0, 1).
        beta2: β₂, in [0, 1).
        tau: Degree of adaptivity τ, above 0, in the units of the weights.

    Raises:
        ValueError: A number out of its bounds.

    Source: Reddi et al. 2021 (Adaptive federated optimization), algorithm 2 with v₋₁ = τ².
    """

    outer_lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_positive("outer_lr", self.outer_lr)
        _check_share("beta1", self.beta1)
        _check_share("beta2", self.beta2)
        _check_positive("tau", self.tau)

    def rest(self, like: Tensor) -> dict[str, Tensor]:
        """Return a first moment of zeros and a second of τ²."""
        return {"first": torch.zeros_like(like), "second": torch.full_like(like, self.tau**2)}

    def step(self, gradient: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the displacement and both moments after this gradient."""
        first = self.beta1 * state["first"] + (1.0 - self.beta1) * gradient
        second = self.beta2 * state["second"] + (1.0 - self.beta2) * gradient.square()
        return -self.outer_lr * first / (second.sqrt() + self.tau), {"first": first, "second": second}


@final
class OuterOptimizer:
    """Merges models into their common base, round after round, as an optimizer does.

    Law: with a rule R a round is θ <- θ + R(Σ pᵢ (θ − θᵢ)); modules do not know each other. The state is a
    dict of tensors (`safetensors.torch.save_file` takes it): rounds after `load_state_dict(state_dict())` are
    those that would have followed, bit for bit. Arithmetic is in float64; the result has the dtype of the
    base, and the state is kept in float32 at least.

    Example:
        >>> outer = OuterOptimizer(Momentum(outer_lr=0.7, momentum=0.9, nesterov=True))
        >>> base = {"w": torch.zeros(2)}
        >>> outer.step(base, [{"w": torch.ones(2)}, {"w": torch.ones(2)}])
        {'w': tensor([1.3300, 1.3300])}

    Args:
        rule: `Momentum` or `FedAdam`, or a rule of your own.
    """

    def __init__(self, rule: OuterRule) -> None:
        self._rule = rule
        self._state: dict[str, dict[str, Tensor]] = {}

    def step(
        self,
        base: Mapping[str, Tensor],
        models: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float] | None = None,
    ) -> dict[str, Tensor]:
        """Return the base after this round; nothing that was given is changed.

        Args:
            base: θ, tensors of a float dtype by name: what all models of this round started from.
            models: At least one, of the names and shapes of the base.
            weights: One number above zero for each, as its number of examples; all alike if not given. They
                are divided by their sum.

        Raises:
            ValueError: Names, shapes or dtypes that do not fit, a bad weight, or a state of other modules.
        """
        shares = _shares(len(models), weights)
        _check_models(base, models)
        self._check_state(base)
        state = self._state or {name: self._rest(origin) for name, origin in base.items()}
        merged: dict[str, Tensor] = {}
        after: dict[str, dict[str, Tensor]] = {}
        for name, origin in base.items():
            start = origin.to(torch.float64)
            gradient = torch.zeros_like(start)
            for model, share in zip(models, shares, strict=True):
                gradient += share * (start - model[name].to(start))
            before = {kind: value.to(start) for kind, value in state[name].items()}
            displacement, moved = self._rule.step(gradient, before)
            merged[name] = (start + displacement).to(origin.dtype)
            after[name] = {kind: value.to(_state_dtype(origin)) for kind, value in moved.items()}
        self._state = after
        return merged

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, `kind/module` to tensor; empty before the first round."""
        return {
            f"{kind}/{name}": value for name, state in self._state.items() for kind, value in state.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state that `state_dict` returned; the rule must be the same."""
        self._state = {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            self._state.setdefault(name, {})[kind] = value

    def _rest(self, origin: Tensor) -> dict[str, Tensor]:
        return self._rule.rest(torch.empty_like(origin, dtype=_state_dtype(origin)))

    def _check_state(self, base: Mapping[str, Tensor]) -> None:
        if self._state and self._state.keys() != base.keys():
            differ = sorted(self._state.keys() ^ base.keys())
            raise ValueError(f"{differ[0]} is not both in the state and in the base: expected the same names")
        for name, state in self._state.items():
            shapes = {kind: tuple(value.shape) for kind, value in state.items()}
            expected = dict.fromkeys(self._rule.rest(base[name].new_empty(0)), tuple(base[name].shape))
            if shapes != expected:
                raise ValueError(
                    f"{name}: the state holds {shapes}: expected {expected} for this rule and base"
                )


def fedavg(gram: Tensor, setting: Setting, /) -> Tensor:
    """Return the only round of FedAvg, which has no memory: c = η w.

    Source: McMahan et al. 2017, algorithm 1.
    """
    return _first_round(setting.weights.to(gram), Momentum(setting.values["outer_lr"]))


def fedavgm(gram: Tensor, setting: Setting, /) -> Tensor:
    """Return the first round of momentum from rest, c = η w.

    Source: Hsu et al. 2019, section 4.1.
    """
    return _first_round(
        setting.weights.to(gram), Momentum(setting.values["outer_lr"], setting.values["momentum"])
    )


def diloco(gram: Tensor, setting: Setting, /) -> Tensor:
    """Return the first round of Nesterov momentum from rest, c = η (1 + μ) w.

    Source: Douillard et al. 2023, algorithm 1.
    """
    rule = Momentum(setting.values["outer_lr"], setting.values["momentum"], nesterov=True)
    return _first_round(setting.weights.to(gram), rule)


def fedadam(x: Tensor, setting: Setting, /) -> Tensor:
    """Return the first round of FedAdam from rest (see `FedAdam`).

    Law: entry by entry η (1 − β₁) s/(√(β₂ τ² + (1 − β₂) s²) + τ) of s = Σ pᵢ dWᵢ: near a multiple of its sign
    where s is far above τ, of s where it is far below.

    Source: Reddi et al. 2021, algorithm 2.

    Cost: entrywise, it needs the dense dW: a few passes over T m n numbers.
    """
    total = torch.tensordot(setting.weights.to(x), x, dims=1)
    values = setting.values
    rule = FedAdam(values["outer_lr"], values["beta1"], values["beta2"], values["tau"])
    return _first_round(total, rule)


def _first_round(total: Tensor, rule: OuterRule) -> Tensor:
    """Return the displacement at rest, where the models lie at `total` = Σ pᵢ dWᵢ from the base.

    A linear rule works on the coefficients of Σ cᵢ dWᵢ as well as on the entries of the sum.
    """
    displacement, _ = rule.step(-total, rule.rest(total))
    return displacement


def _state_dtype(origin: Tensor) -> torch.dtype:
    """Return the dtype of the state of a module."""
    return torch.promote_types(origin.dtype, torch.float32)


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    if weights is None:
        weights = [1.0] * count
    given = [float(weight) for weight in weights]
    if not count or len(given) != count:
        raise ValueError(f"{count} models and {len(given)} weights: expected as many, at least one")
    if not all(math.isfinite(weight) and weight > 0.0 for weight in given):
        raise ValueError(f"weights {given}: expected finite numbers above 0")
    total = math.fsum(given)
    return [weight / total for weight in given]


def _check_models(base: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]]) -> None:
    for name, origin in base.items():
        if not origin.dtype.is_floating_point:
            raise ValueError(f"{name}: the base is {origin.dtype}: expected a float dtype")
    for index, model in enumerate(models):
        if model.keys() != base.keys():
            differ = sorted(model.keys() ^ base.keys())
            raise ValueError(
                f"model {index}: {differ[0]} is not both in it and in the base: expected the same"
            )
        for name, origin in base.items():
            if model[name].shape != origin.shape:
                shape, expected = tuple(model[name].shape), tuple(origin.shape)
                raise ValueError(f"model {index}: {name} is {shape}: expected {expected} as in the base")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{name} is {value}: expected a finite number above 0")


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is {value}: expected a number in [0, 1)")
