"""Means on manifolds of updates."""

from __future__ import annotations

from riemerge.methods.method import Method

ROWS: tuple[Method, ...] = (
    Method(
        name="geomerge",
        summary="weighted Fréchet mean of the updates U B Vᵀ on (Stiefel × SPD × Stiefel)/O(r)",
        source="GeoMerge, arXiv 2604.27155",
        geometry="polar",
        solver="lbfgs",
        domain="factors",
        # Real adapters overlap in part: their cost settles long before the gradient is below tol, and the
        # passes in between move the update by less than another start would.
        own_parameters={
            "solver": "lbfgs",
            "form": None,
            "tol": 1e-8,
            "cost_tol": 5e-4,
            "max_passes": 500,
            "max_seconds": None,
            "starts": None,
            "seed": None,
        },
        checkpoints="no",
        truncates_inputs=True,
        may_be_undetermined=True,
        geometric=True,
        output_rank="the inputs' common rank, or --rank",
    ),
)
