"""Rows: means by polar decompositions: of what is shared, in mean subspaces, and of balanced factors."""

from __future__ import annotations

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "core_mean",
        "choice",
        "mean of cores: their `average`, or of their polar factors with this mean of the positive parts",
        choices=("average", "bures_wasserstein", "affine_invariant", "log_euclidean"),
    ),
    Parameter(
        "frames",
        "choice",
        "mean subspaces: by projections (`chordal`), or by principal angles (`grassmann`)",
        choices=("chordal", "grassmann"),
    ),
)

ROWS: tuple[Method, ...] = (
    Method(
        name="shared_private",
        summary="the average; in what all dWᵢ share, the mean rotation times the mean positive part",
        source="Moakher 2002; Agueh & Carlier 2011; Marchenko & Pastur 1967 (what is not shared)",
        domain="span",
        mean="riemerge.methods.polar.shared_private:shared_private",
        parameters=("rank", "scale", "core_mean"),
        defaults={"core_mean": "bures_wasserstein"},
        # Full matrices have no subspaces to compare.
        checkpoints="no",
    ),
    Method(
        name="balanced",
        summary="Fréchet mean of balanced factors (U√S, V√S) up to O(R), of any rank R: Bures–Wasserstein",
        source="Bhatia, Jain & Lim 2019; Massart & Absil 2020",
        domain="span",
        mean="riemerge.methods.polar.balanced:balanced",
        parameters=("rank", "scale", "tol", "cost_tol", "max_passes"),
        defaults={"tol": 1e-10, "cost_tol": 1e-6, "max_passes": 1000},
        output_rank="that of the mean itself: the largest of the inputs', or --rank (`sum`: of all together)",
    ),
    Method(
        name="subspace",
        summary="mean of the cores Lᵀ dWᵢ R in the mean column space L and the mean row space R",
        source="Edelman, Arias & Smith 1998; Karcher 1977",
        domain="span",
        mean="riemerge.methods.polar.subspace:subspace",
        parameters=("rank", "scale", "frames", "core_mean"),
        defaults={"frames": "chordal", "core_mean": "average"},
        output_rank="the largest of the inputs', or --rank (`sum`: of all together): that of the subspaces",
    ),
)
