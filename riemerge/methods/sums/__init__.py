"""Rows: linear combinations of the models, on the flat space and on the sphere of directions."""

from __future__ import annotations

from functools import partial

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter, positive, share

_HERE = "riemerge.methods.sums.combinations:"

PARAMETERS: tuple[Parameter, ...] = (
    share("t", "share of the second of two models; their weights say it if not given"),
    Parameter("decay", "number", "share that the average so far keeps at each checkpoint", low=0, high=1),
    Parameter("last", "integer", "number of last checkpoints that count", low=1),
    positive(
        "delta",
        "distance where Huber's loss turns from square to straight, over the median distance to the median",
        per_module=True,
    ),
)

_weighted = partial(Method, domain="weights", checkpoints="weights")
_mean = partial(Method, domain="gram", checkpoints="weights")
_sum = partial(
    Method,
    geometry="flat:normalize=false",
    domain="weights",
    normalised=False,
    negative_weights=True,
)
_direction = partial(_mean, directions=True)
_arc = partial(_direction, models=(2, 2))
_run = partial(_weighted, ordered=True)

ROWS: tuple[Method, ...] = (
    _weighted(
        name="average",
        geometry="flat",
        summary="weighted mean Σ wᵢ dWᵢ, the weights divided by their sum (mergekit's `linear`)",
        source="Wortsman et al. 2022, Model soups, arXiv 2203.05482",
    ),
    _sum(
        name="task_arithmetic",
        summary="weighted sum λ Σ wᵢ dWᵢ, the weights as given, below zero allowed",
        source="Ilharco et al. 2023, Editing models with task arithmetic, arXiv 2212.04089",
    ),
    _sum(
        name="cat",
        summary="weighted sum Σ wᵢ dWᵢ as given, exact: factors side by side, of rank Σ rᵢ (PEFT's `cat`)",
        source="PEFT, add_weighted_adapter, combination_type `cat`",
        own_parameters={"rank": "sum"},
        checkpoints="no",
        output_rank="the sum of the inputs', or --rank",
    ),
    _sum(
        name="svd",
        summary="weighted sum Σ wᵢ dWᵢ as given, cut to the largest singular values (PEFT's `svd`)",
        source="PEFT, add_weighted_adapter, combination_type `svd`; Eckart & Young 1936",
        checkpoints="weights",
    ),
    _arc(
        name="slerp",
        summary="two models: the point at t (or as weighted) of the arc between them; of the chord if close",
        source="Shoemake 1985; mergekit's `slerp`",
        mean=_HERE + "slerp",
        own_parameters={"t": None},
        ordered=True,
        differs={
            "always": "mergekit's goes between whole weights, for adapters this one goes between updates"
        },
    ),
    _arc(
        name="nuslerp",
        summary="two models: the point that the weights say of the arc between them, however close they are",
        source="mergekit's `nuslerp`",
        mean=_HERE + "nuslerp",
    ),
    _arc(
        name="nuslerp_rows",
        summary="two models: nuslerp of each row of dW by itself (mergekit's `nuslerp_flatten: false`)",
        source="mergekit's `nuslerp`",
        domain="entries",
        mean=_HERE + "nuslerp_rows",
        by_rows=True,
    ),
    _direction(
        name="multislerp",
        summary="normalised mean of the directions dWᵢ/‖dWᵢ‖, times Σ wᵢ ‖dWᵢ‖",
        source="Goddard 2025, mergekit's `multislerp`",
        mean=_HERE + "multislerp",
    ),
    _direction(
        name="karcher",
        geometry="sphere",
        solver="fixed_point",
        summary="Fréchet mean, weighted, of the directions dWᵢ/‖dWᵢ‖ on the sphere, times Σ wᵢ ‖dWᵢ‖",
        source="Karcher 1977; Afsari 2011; mergekit's `karcher` has no weights",
        own_parameters={"tol": 1e-12, "max_passes": 1000},
        differs={
            "always": "mergekit's stops after 10 passes on whole weights, this one converges on updates",
            "weights": "mergekit's karcher ignores weights, here they count: for its result make them equal",
        },
    ),
    _mean(
        name="median",
        geometry="flat",
        loss="absolute",
        solver="lbfgs",
        summary="geometric median: minimises Σ wᵢ ‖dW − dWᵢ‖, and bears outliers of less than half the "
        "weight",
        source="Weiszfeld 1937; Vardi & Zhang 2000, The multivariate L1-median",
        own_parameters={"tol": 1e-10, "max_passes": 10000},
    ),
    _mean(
        name="huber",
        geometry="flat",
        loss="huber:delta={delta}",
        solver="lbfgs",
        summary="Huber's mean: the average of what is near, the pull of what is far bounded by that at δ",
        source="Huber 1964, Robust estimation of a location parameter",
        own_parameters={"delta": 1.0, "tol": 1e-10, "max_passes": 10000},
    ),
    _direction(
        name="model_stock",
        summary="ρ Σ wᵢ dWᵢ with ρ = T cos θ / (1 + (T − 1) cos θ), cos θ the mean cosine of all pairs",
        source="Jang et al. 2024, Model Stock, arXiv 2403.19522",
        mean=_HERE + "model_stock",
        checkpoints="updates",
        differs={
            "weights": "mergekit's model_stock ignores weights, here the mean that ρ scales has them: for "
            "its result make them equal"
        },
    ),
    _run(
        name="ema",
        summary="checkpoints of a run in order: moving average θ̄ <- β θ̄ + (1 − β) θᵢ from the first",
        source="Polyak & Juditsky 1992; torch.optim.swa_utils",
        mean=_HERE + "ema",
        own_parameters={"decay": 0.999},
    ),
    _run(
        name="swa",
        summary="checkpoints of a run: running mean, all alike",
        source="Izmailov et al. 2018, Averaging weights leads to wider optima, arXiv 1803.05407",
        mean=_HERE + "swa",
    ),
    _run(
        name="lawa",
        summary="checkpoints of a run in order: mean of the last few",
        source="Kaddour 2022, Stop wasting my time!, arXiv 2209.14981",
        mean=_HERE + "lawa",
        own_parameters={"last": 5},
    ),
)
