"""Rows: means by polar decompositions: of what is shared, in mean subspaces, and of balanced factors."""

from __future__ import annotations

from functools import partial

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter, choice

PARAMETERS: tuple[Parameter, ...] = (
    choice(
        "core_mean",
        "mean of cores: their `average`, or of their polar factors with this mean of the positive parts",
        ("average", "bures_wasserstein", "affine_invariant", "log_euclidean"),
    ),
    choice(
        "frames",
        "mean subspaces: by projections (`chordal`), or by principal angles (`grassmann`)",
        ("chordal", "grassmann"),
    ),
)

_row = partial(Method, domain="cores", geometric=True)

ROWS: tuple[Method, ...] = (
    _row(
        name="shared_private",
        geometry="spd:core={core_mean}",
        solver="lbfgs",
        summary="the average; in what all dWᵢ share, the mean rotation times the mean positive part",
        source="Moakher 2002; Agueh & Carlier 2011; Marchenko & Pastur 1967 (what is not shared)",
        own_parameters={"core_mean": "bures_wasserstein"},
        # Full matrices have no subspaces to compare.
        checkpoints="no",
    ),
    _row(
        name="balanced",
        geometry="bures_wasserstein",
        solver="fixed_point",
        summary="Fréchet mean of balanced factors (U√S, V√S) up to O(R), of any rank R: Bures–Wasserstein",
        source="Bhatia, Jain & Lim 2019; Massart & Absil 2020",
        own_parameters={"tol": 1e-10, "cost_tol": 5e-6, "max_passes": 1000},
        output_rank="that of the mean itself: the largest of the inputs', or --rank (`sum`: of all together)",
    ),
    _row(
        name="subspace",
        geometry="grassmann:frames={frames}:core={core_mean}",
        solver="lbfgs",
        summary="mean of the cores Lᵀ dWᵢ R in the mean column space L and the mean row space R",
        source="Edelman, Arias & Smith 1998; Karcher 1977",
        own_parameters={"frames": "chordal", "core_mean": "average"},
        output_rank="the largest of the inputs', or --rank (`sum`: of all together): that of the subspaces",
    ),
)
