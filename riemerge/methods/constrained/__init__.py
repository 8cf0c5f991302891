"""Rows whose rank is a constraint: the matrix of that rank nearest to all updates, in a form for each."""

from __future__ import annotations

from functools import partial

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter, choice, factor

_HERE = "riemerge.methods.constrained.rank_constrained:"

PARAMETERS: tuple[Parameter, ...] = (
    factor(
        "ridge", "multiple of the identity that is added to each form, relative to its mean diagonal entry"
    ),
    choice("sides", "sides that the updates weigh; the identity on the other", ("both", "inputs", "outputs")),
    choice(
        "target",
        "what is approximated: each update (`mean`), or for all their TSV or TIES merge, of the mean's norm",
        ("mean", "tsv", "ties"),
    ),
)

_row = partial(Method, checkpoints="no", constrained=True, geometric=True)

ROWS: tuple[Method, ...] = (
    _row(
        name="lowrank",
        summary="the matrix of the result's rank that is nearest to all updates: the average, cut",
        source="Eckart & Young 1936",
        domain="cores",
        mean=_HERE + "lowrank",
    ),
    _row(
        name="lowrank_updates",
        summary="the matrix of the result's rank nearest to each update where it is large, on a manifold",
        source="Mishra et al. 2014, Fixed-rank matrix factorizations, arXiv:1209.0430 (the geometry)",
        domain="span",
        mean=_HERE + "lowrank_updates",
        own_parameters={
            "ridge": 1.0,
            "sides": "both",
            "target": "mean",
            "solver": "trust_regions",
            "tol": 1e-9,
            "cost_tol": 1e-12,
            "max_passes": 1000,
        },
    ),
    _row(
        name="lowrank_regmean",
        summary="the linear map of the result's rank nearest in outputs to each model's: a weighted SVD",
        source="Jin et al. 2023, Dataless Knowledge Fusion by Merging Weights, arXiv:2212.09849 (the form)",
        domain="half",
        mean=_HERE + "lowrank_regmean",
        own_parameters={"off_diagonal": 0.9, "ridge": 0.0},
        statistics=("gram",),
    ),
    _row(
        name="lowrank_mats",
        summary="mats among matrices of the result's rank, solved on their manifold",
        source="Tam et al. 2023, Merging by Matching Models in Task Parameter Subspaces, arXiv:2312.04339",
        domain="entries",
        mean=_HERE + "lowrank_mats",
        # A gradient of a thousandth of the right-hand side leaves 1e-4 of the cost of real adapters.
        own_parameters={
            "ridge": 1e-2,
            "solver": "lbfgs",
            "tol": 1e-3,
            "cost_tol": 1e-6,
            "max_passes": 300,
        },
        statistics=("gram", "covariance"),
    ),
)
