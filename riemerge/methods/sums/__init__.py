"""Rows: linear combinations of the models, on the flat space and on the sphere of directions."""

from __future__ import annotations

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter

_HERE = "riemerge.methods.sums.combinations:"
_ROBUST = "riemerge.methods.sums.robust:"

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "t",
        "number",
        "share of the second of two models; their weights say it if not given",
        low=0,
        high=1,
        per_module=True,
    ),
    Parameter("decay", "number", "share that the average so far keeps at each checkpoint", low=0, high=1),
    Parameter("last", "integer", "how many of the last checkpoints count", low=1),
    Parameter(
        "delta",
        "number",
        "where Huber's loss turns from square to straight, over the median distance to the median",
        low=0,
        open_low=True,
        per_module=True,
    ),
)

ROWS: tuple[Method, ...] = (
    Method(
        name="average",
        summary="weighted mean Σ wᵢ dWᵢ, the weights divided by their sum (mergekit's `linear`)",
        source="Wortsman et al. 2022, Model soups, arXiv 2203.05482",
        domain="gram",
        mean=_HERE + "weighted_sum",
        checkpoints="weights",
    ),
    Method(
        name="task_arithmetic",
        summary="weighted sum λ Σ wᵢ dWᵢ, the weights as given, below zero allowed",
        source="Ilharco et al. 2023, Editing models with task arithmetic, arXiv 2212.04089",
        domain="gram",
        mean=_HERE + "weighted_sum",
        normalised=False,
        negative_weights=True,
    ),
    Method(
        name="cat",
        summary="weighted sum Σ wᵢ dWᵢ as given, exact: factors side by side, of rank Σ rᵢ (PEFT's `cat`)",
        source="PEFT, add_weighted_adapter, combination_type `cat`",
        domain="gram",
        mean=_HERE + "weighted_sum",
        defaults={"rank": "sum"},
        normalised=False,
        negative_weights=True,
        checkpoints="no",
        output_rank="the sum of the inputs', or --rank",
    ),
    Method(
        name="svd",
        summary="weighted sum Σ wᵢ dWᵢ as given, cut to the largest singular values (PEFT's `svd`)",
        source="PEFT, add_weighted_adapter, combination_type `svd`; Eckart & Young 1936",
        domain="gram",
        mean=_HERE + "weighted_sum",
        normalised=False,
        negative_weights=True,
        checkpoints="no",
    ),
    Method(
        name="slerp",
        summary="two models: the point at t (or as weighted) of the arc between them; of the chord if close",
        source="Shoemake 1985; mergekit's `slerp`",
        domain="gram",
        mean=_HERE + "slerp",
        parameters=("rank", "scale", "t"),
        ordered=True,
        models=(2, 2),
        checkpoints="weights",
        directions=True,
        differs={
            "always": "mergekit's goes between whole weights, for adapters this one goes between updates"
        },
    ),
    Method(
        name="nuslerp",
        summary="two models: the point that the weights say of the arc between them, however close they are",
        source="mergekit's `nuslerp`",
        domain="gram",
        mean=_HERE + "nuslerp",
        models=(2, 2),
        checkpoints="weights",
        directions=True,
    ),
    Method(
        name="nuslerp_rows",
        summary="two models: nuslerp of each row of dW by itself (mergekit's `nuslerp_flatten: false`)",
        source="mergekit's `nuslerp`",
        domain="entries",
        mean=_HERE + "nuslerp_rows",
        models=(2, 2),
        checkpoints="weights",
        directions=True,
    ),
    Method(
        name="multislerp",
        summary="normalised mean of the directions dWᵢ/‖dWᵢ‖, times Σ wᵢ ‖dWᵢ‖",
        source="Goddard 2025, mergekit's `multislerp`",
        domain="gram",
        mean=_HERE + "multislerp",
        checkpoints="weights",
        directions=True,
    ),
    Method(
        name="karcher",
        summary="Fréchet mean, weighted, of the directions dWᵢ/‖dWᵢ‖ on the sphere, times Σ wᵢ ‖dWᵢ‖",
        source="Karcher 1977; Afsari 2011; mergekit's `karcher` has no weights",
        domain="gram",
        mean=_HERE + "karcher",
        parameters=("rank", "scale", "tol", "max_passes"),
        defaults={"tol": 1e-12, "max_passes": 1000},
        checkpoints="weights",
        directions=True,
        differs={
            "always": "mergekit's stops after 10 passes on whole weights, this one converges on updates",
            "weights": "mergekit's karcher ignores weights, here they count: for its result make them equal",
        },
    ),
    Method(
        name="median",
        summary="geometric median: minimises Σ wᵢ ‖dW − dWᵢ‖, and bears outliers of less than half the "
        "weight",
        source="Weiszfeld 1937; Vardi & Zhang 2000, The multivariate L1-median",
        domain="gram",
        mean=_ROBUST + "median",
        parameters=("rank", "scale", "tol", "max_passes"),
        defaults={"tol": 1e-10, "max_passes": 10000},
        checkpoints="weights",
    ),
    Method(
        name="huber",
        summary="Huber's mean: the average of what is near, the pull of what is far bounded by that at δ",
        source="Huber 1964, Robust estimation of a location parameter",
        domain="gram",
        mean=_ROBUST + "huber",
        parameters=("rank", "scale", "delta", "tol", "max_passes"),
        defaults={"delta": 1.0, "tol": 1e-10, "max_passes": 10000},
        checkpoints="weights",
    ),
    Method(
        name="model_stock",
        summary="ρ Σ wᵢ dWᵢ with ρ = T cos θ / (1 + (T − 1) cos θ), cos θ the mean cosine of all pairs",
        source="Jang et al. 2024, Model Stock, arXiv 2403.19522",
        domain="gram",
        mean=_HERE + "model_stock",
        directions=True,
        differs={
            "weights": "mergekit's model_stock ignores weights, here the mean that ρ scales has them: for "
            "its result make them equal"
        },
    ),
    Method(
        name="ema",
        summary="checkpoints of a run in order: moving average θ̄ <- β θ̄ + (1 − β) θᵢ from the first",
        source="Polyak & Juditsky 1992; torch.optim.swa_utils",
        domain="gram",
        mean=_HERE + "ema",
        parameters=("rank", "scale", "decay"),
        defaults={"decay": 0.999},
        ordered=True,
        checkpoints="weights",
    ),
    Method(
        name="swa",
        summary="checkpoints of a run: running mean, all alike",
        source="Izmailov et al. 2018, Averaging weights leads to wider optima, arXiv 1803.05407",
        domain="gram",
        mean=_HERE + "swa",
        ordered=True,
        checkpoints="weights",
    ),
    Method(
        name="lawa",
        summary="checkpoints of a run in order: mean of the last few",
        source="Kaddour 2022, Stop wasting my time!, arXiv 2209.14981",
        domain="gram",
        mean=_HERE + "lawa",
        parameters=("rank", "scale", "last"),
        defaults={"last": 5},
        ordered=True,
        checkpoints="weights",
    ),
)
