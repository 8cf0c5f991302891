"""Rows: a merge as the first step of an outer optimizer at the base, from rest."""

from __future__ import annotations

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter

_HERE = "riemerge.methods.rounds.outer:"

PARAMETERS: tuple[Parameter, ...] = (
    Parameter("outer_lr", "number", "outer learning rate η", low=0, open_low=True),
    Parameter("momentum", "number", "outer momentum μ", low=0, high=1, open_high=True),
    Parameter("beta1", "number", "decay of the first moment", low=0, high=1, open_high=True),
    Parameter("beta2", "number", "decay of the second moment", low=0, high=1, open_high=True),
    Parameter("tau", "number", "what is added to the root of the second moment", low=0, open_low=True),
)

ROWS: tuple[Method, ...] = (
    Method(
        name="fedavg",
        summary="one round of federated averaging from the base: η Σ wᵢ dWᵢ",
        source="McMahan et al. 2017, Communication-efficient learning, arXiv 1602.05629",
        domain="gram",
        mean=_HERE + "fedavgm",
        parameters=("rank", "scale", "outer_lr"),
        defaults={"outer_lr": 1.0},
    ),
    Method(
        name="fedavgm",
        summary="one round of server momentum, from rest: η Σ wᵢ dWᵢ (only later rounds differ from fedavg)",
        source="Hsu et al. 2019, Measuring the effects of non-identical data distribution, arXiv 1909.06335",
        domain="gram",
        mean=_HERE + "fedavgm",
        parameters=("rank", "scale", "outer_lr", "momentum"),
        defaults={"outer_lr": 1.0, "momentum": 0.9},
    ),
    Method(
        name="fedadam",
        summary="one round of server Adam: η (1 − β₁) s/(√(β₂ τ² + (1 − β₂) s²) + τ) of s = Σ wᵢ dWᵢ",
        source="Reddi et al. 2021, Adaptive federated optimization, arXiv 2003.00295",
        domain="entries",
        mean=_HERE + "fedadam",
        parameters=("rank", "scale", "outer_lr", "beta1", "beta2", "tau"),
        defaults={"outer_lr": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
        idempotent=False,
    ),
    Method(
        name="diloco",
        summary="one round of DiLoCo's Nesterov step, from rest: η (1 + μ) Σ wᵢ dWᵢ",
        source="Douillard et al. 2023, DiLoCo, arXiv 2311.08105",
        domain="gram",
        mean=_HERE + "diloco",
        parameters=("rank", "scale", "outer_lr", "momentum"),
        defaults={"outer_lr": 0.7, "momentum": 0.9},
        idempotent=False,
    ),
)
