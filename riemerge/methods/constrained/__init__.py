"""Rows whose rank is a constraint: the matrix of that rank nearest to all updates, in a form for each."""

from __future__ import annotations

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter

_HERE = "riemerge.methods.constrained.rank_constrained:"
_SOLVED = ("solver", "tol", "cost_tol", "max_passes")
_DEFAULTS = {"solver": "trust_regions", "tol": 1e-9, "cost_tol": 1e-12, "max_passes": 1000}

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "ridge",
        "number",
        "multiple of the identity that is added to each form, relative to its mean diagonal entry",
        low=0,
        per_module=True,
    ),
    Parameter(
        "sides",
        "choice",
        "which sides the updates weigh; the identity on the other",
        choices=("both", "inputs", "outputs"),
    ),
    Parameter(
        "target",
        "choice",
        "what is approximated: each update (`mean`), or for all their TSV or TIES merge, of the mean's norm",
        choices=("mean", "tsv", "ties"),
    ),
)

ROWS: tuple[Method, ...] = (
    Method(
        name="lowrank",
        summary="the matrix of the result's rank that is nearest to all updates: the average, cut",
        source="Eckart & Young 1936",
        domain="span",
        mean=_HERE + "lowrank",
        checkpoints="no",
        constrained=True,
    ),
    Method(
        name="lowrank_updates",
        summary="the matrix of the result's rank nearest to each update where it is large, on a manifold",
        source="Mishra et al. 2014, Fixed-rank matrix factorizations, arXiv:1209.0430 (the geometry)",
        domain="span",
        mean=_HERE + "lowrank_updates",
        parameters=("rank", "scale", "ridge", "sides", "target", *_SOLVED),
        defaults={"ridge": 1.0, "sides": "both", "target": "mean", **_DEFAULTS},
        checkpoints="no",
        constrained=True,
    ),
    Method(
        name="lowrank_regmean",
        summary="the linear map of the result's rank nearest in outputs to each model's: a weighted SVD",
        source="Jin et al. 2023, Dataless Knowledge Fusion by Merging Weights, arXiv:2212.09849 (the form)",
        domain="half",
        mean=_HERE + "lowrank_regmean",
        parameters=("rank", "scale", "off_diagonal", "ridge"),
        defaults={"off_diagonal": 0.9, "ridge": 0.0},
        statistics=("gram",),
        checkpoints="no",
        constrained=True,
    ),
    Method(
        name="lowrank_mats",
        summary="mats among matrices of the result's rank, solved on their manifold",
        source="Tam et al. 2023, Merging by Matching Models in Task Parameter Subspaces, arXiv:2312.04339",
        domain="entries",
        mean=_HERE + "lowrank_mats",
        parameters=("rank", "scale", "ridge", *_SOLVED),
        # A gradient of a thousandth of the right-hand side leaves 1e-4 of the cost of real adapters.
        defaults={
            **_DEFAULTS,
            "ridge": 1e-2,
            "solver": "lbfgs",
            "tol": 1e-3,
            "cost_tol": 1e-6,
            "max_passes": 300,
        },
        statistics=("gram", "covariance"),
        checkpoints="no",
        constrained=True,
    ),
)
