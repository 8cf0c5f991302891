"""Rows: merges by singular vectors, and merges entry by entry in singular coordinates."""

from __future__ import annotations

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter

_SPECTRAL = "riemerge.methods.singular.singular_vectors:"
_KNOTS = "riemerge.methods.singular.knots:"
_CORE = "riemerge.methods.singular.core_space:"
_KNOTS_SOURCE = "Stoica et al. 2025, Model merging with SVD to tie the knots, arXiv 2410.19735"
_CORE_SOURCE = "Panariello et al. 2025, Low-rank model merging in core space, arXiv 2509.17786"
_ISO_SOURCE = "Marczak et al. 2025, No task left behind, arXiv 2502.04959"
_FLAT = "the mean is over the directions of the joint span, that of the authors over min(m, n): another scale"
_CORE_BASES = "the bases are of balanced factors, those of the authors of the stored ones, without alpha"
_WHOLE = "the sum of the inputs' ranks; a cut to --rank of equal singular values is arbitrary"

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "common_space_fraction",
        "number",
        "share of the directions that all models have in common",
        low=0,
        high=1,
        per_module=True,
    ),
    Parameter(
        "rank_fraction",
        "number",
        "share of the directions that each model's difference from the mean keeps",
        low=0,
        open_low=True,
        high=1,
        per_module=True,
    ),
    Parameter(
        "deviation_scale", "number", "factor on the sum of the differences from the mean", per_module=True
    ),
)

ROWS: tuple[Method, ...] = (
    Method(
        name="tsv",
        summary="Σ wᵢ Ûᵢ Σᵢ V̂ᵢᵀ: leading singular vectors of each dWᵢ, made orthogonal across models (TSV-M)",
        source="Gargiulo et al. 2025, Task singular vectors, arXiv 2412.00081",
        domain="span",
        mean=_SPECTRAL + "tsv",
        normalised=False,
        negative_weights=True,
        idempotent=False,
        differs={"always": "the authors' code fills up low ranks with arbitrary singular vectors of zero"},
    ),
    Method(
        name="iso_c",
        summary="Σ wᵢ dWᵢ with all of its singular values replaced by their mean (Iso-C)",
        source=_ISO_SOURCE,
        domain="span",
        mean=_SPECTRAL + "iso_c",
        defaults={"rank": "sum"},
        normalised=False,
        negative_weights=True,
        idempotent=False,
        output_rank=_WHOLE,
        differs={"always": _FLAT},
    ),
    Method(
        name="iso_cts",
        summary="equal singular values on leading directions of Σ wᵢ dWᵢ and others of each model (Iso-CTS)",
        source=_ISO_SOURCE,
        domain="span",
        mean=_SPECTRAL + "iso_cts",
        parameters=("rank", "scale", "common_space_fraction"),
        defaults={"rank": "sum", "common_space_fraction": 0.8},
        normalised=False,
        negative_weights=True,
        idempotent=False,
        output_rank=_WHOLE,
        differs={"always": _FLAT},
    ),
    Method(
        name="cart",
        summary="weighted mean plus λ times the leading singular triples of each model's difference from it",
        source="Choi et al. 2024, Revisiting weight averaging for model merging, arXiv 2412.12153",
        domain="span",
        mean=_SPECTRAL + "cart",
        parameters=("rank", "scale", "rank_fraction", "deviation_scale"),
        defaults={"rank_fraction": 0.04, "deviation_scale": 0.1},
    ),
    Method(
        name="knots_ta",
        summary="task arithmetic in the common axes of KnOTS: exactly task_arithmetic",
        source=_KNOTS_SOURCE,
        domain="gram",
        mean="riemerge.methods.sums.combinations:weighted_sum",
        normalised=False,
        negative_weights=True,
    ),
    Method(
        name="knots_ties",
        summary="TIES on principal axes of [dW₁ … dW_T], trimmed over all modules together",
        source=_KNOTS_SOURCE,
        domain="half",
        mean=_KNOTS + "knots_ties",
        survey=_KNOTS + "survey",
        parameters=("rank", "scale", "density", "merge_func"),
        defaults={"density": 1.0, "merge_func": "mean"},
        normalised=False,
        differs={"always": "the authors' code keeps one entry more, ignores alpha, and all weights but one"},
    ),
    Method(
        name="knots_dare_ties",
        summary="DARE-TIES on principal axes of [dW₁ … dW_T]: random drop, then election of signs",
        source=_KNOTS_SOURCE,
        domain="half",
        mean=_KNOTS + "knots_dare_ties",
        parameters=("rank", "scale", "density", "merge_func", "seed"),
        defaults={"density": 1.0, "merge_func": "mean"},
        normalised=False,
        differs={"always": "the authors' code ignores alpha, and all weights but one"},
    ),
    Method(
        name="core_ties",
        summary="TIES in reference bases of both joint spaces of the dWᵢ, trimmed over all modules together",
        source=_CORE_SOURCE,
        domain="span",
        mean=_CORE + "core_ties",
        survey=_CORE + "survey",
        parameters=("rank", "scale", "density", "merge_func"),
        defaults={"density": 1.0, "merge_func": "mean"},
        normalised=False,
        differs={"always": _CORE_BASES},
    ),
    Method(
        name="core_dare_ties",
        summary="DARE-TIES in reference bases of both joint spaces of the dWᵢ",
        source=_CORE_SOURCE,
        domain="span",
        mean=_CORE + "core_dare_ties",
        parameters=("rank", "scale", "density", "merge_func", "seed"),
        defaults={"density": 1.0, "merge_func": "mean"},
        normalised=False,
        differs={"always": _CORE_BASES},
    ),
)
