"""Rows: a merge as the first step of an outer optimizer at the base, from rest."""

from __future__ import annotations

from functools import partial

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter, positive

_HERE = "riemerge.methods.rounds.outer:"

_decay = partial(Parameter, kind="number", low=0, high=1, open_high=True)

PARAMETERS: tuple[Parameter, ...] = (
    positive("outer_lr", "outer learning rate η"),
    _decay("momentum", summary="outer momentum μ"),
    _decay("beta1", summary="decay of the first moment"),
    _decay("beta2", summary="decay of the second moment"),
    positive("tau", "number added to the root of the second moment"),
)

_step = partial(Method, domain="weights", server_step=True)

ROWS: tuple[Method, ...] = (
    _step(
        name="fedavg",
        summary="one round of federated averaging from the base: η Σ wᵢ dWᵢ",
        source="McMahan et al. 2017, Communication-efficient learning, arXiv 1602.05629",
        mean=_HERE + "fedavg",
        own_parameters={"outer_lr": 1.0},
    ),
    _step(
        name="fedavgm",
        summary="one round of server momentum, from rest: η Σ wᵢ dWᵢ (only later rounds differ from fedavg)",
        source="Hsu et al. 2019, Measuring the effects of non-identical data distribution, arXiv 1909.06335",
        mean=_HERE + "fedavgm",
        own_parameters={"outer_lr": 1.0, "momentum": 0.9},
    ),
    _step(
        name="fedadam",
        summary="one round of server Adam: η (1 − β₁) s/(√(β₂ τ² + (1 − β₂) s²) + τ) of s = Σ wᵢ dWᵢ",
        source="Reddi et al. 2021, Adaptive federated optimization, arXiv 2003.00295",
        domain="entries",
        mean=_HERE + "fedadam",
        by_rows=True,
        own_parameters={"outer_lr": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
        idempotent=False,
    ),
    _step(
        name="diloco",
        summary="one round of DiLoCo's Nesterov step, from rest: η (1 + μ) Σ wᵢ dWᵢ",
        source="Douillard et al. 2023, DiLoCo, arXiv 2311.08105",
        mean=_HERE + "diloco",
        own_parameters={"outer_lr": 0.7, "momentum": 0.9},
        idempotent=False,
    ),
)
