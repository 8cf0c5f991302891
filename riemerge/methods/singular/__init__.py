"""Rows: merges by singular vectors, and merges entry by entry in singular coordinates."""

from __future__ import annotations

from functools import partial

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter, share

_SPECTRAL = "riemerge.methods.singular.singular_vectors:"
_KNOTS = "riemerge.methods.singular.knots:"
_CORE = "riemerge.methods.singular.core_space:"
_KNOTS_SOURCE = "Stoica et al. 2025, Model merging with SVD to tie the knots, arXiv 2410.19735"
_CORE_SOURCE = "Panariello et al. 2025, Low-rank model merging in core space, arXiv 2509.17786"
_FLAT = "the mean is over the directions of the joint span, that of the authors over min(m, n): another scale"
_CORE_BASES = "the bases are of balanced factors, those of the authors of the stored ones, without alpha"

PARAMETERS: tuple[Parameter, ...] = (
    share("common_space_fraction", "share of the directions that all models have in common"),
    share(
        "rank_fraction",
        "share of the directions that each model's difference from the mean keeps",
        open_low=True,
    ),
    Parameter(
        "deviation_scale", "number", "factor on the sum of the differences from the mean", per_module=True
    ),
)

_vectors = partial(Method, domain="cores", normalised=False, negative_weights=True, idempotent=False)
_isotropic = partial(
    _vectors,
    source="Marczak et al. 2025, No task left behind, arXiv 2502.04959",
    output_rank="the sum of the inputs' ranks; a cut to --rank of equal singular values is arbitrary",
    differs={"always": _FLAT},
)
_entries = partial(Method, normalised=False)
_TIES = {"density": 1.0, "merge_func": "mean"}
_DARE_TIES = {**_TIES, "seed": None}

ROWS: tuple[Method, ...] = (
    _vectors(
        name="tsv",
        summary="Σ wᵢ Ûᵢ Σᵢ V̂ᵢᵀ: leading singular vectors of each dWᵢ, made orthogonal across models (TSV-M)",
        source="Gargiulo et al. 2025, Task singular vectors, arXiv 2412.00081",
        mean=_SPECTRAL + "tsv",
        together=_SPECTRAL + "task_vectors",
        differs={"always": "the authors' code fills up low ranks with arbitrary singular vectors of zero"},
    ),
    _isotropic(
        name="iso_c",
        summary="Σ wᵢ dWᵢ with all of its singular values replaced by their mean (Iso-C)",
        mean=_SPECTRAL + "iso_c",
        together=_SPECTRAL + "flat_spectra",
        own_parameters={"rank": "sum"},
    ),
    _isotropic(
        name="iso_cts",
        summary="equal singular values on leading directions of Σ wᵢ dWᵢ and others of each model (Iso-CTS)",
        mean=_SPECTRAL + "iso_cts",
        own_parameters={"rank": "sum", "common_space_fraction": 0.8},
    ),
    Method(
        name="cart",
        summary="weighted mean plus λ times the leading singular triples of each model's difference from it",
        source="Choi et al. 2024, Revisiting weight averaging for model merging, arXiv 2412.12153",
        domain="cores",
        mean=_SPECTRAL + "cart",
        own_parameters={"rank_fraction": 0.04, "deviation_scale": 0.1},
    ),
    _entries(
        name="knots_ta",
        summary="task arithmetic in the common axes of KnOTS: exactly task_arithmetic",
        source=_KNOTS_SOURCE,
        geometry="flat:normalize=false",
        domain="weights",
        negative_weights=True,
    ),
    _entries(
        name="knots_ties",
        summary="TIES on principal axes of [dW₁ … dW_T], trimmed over all modules together",
        source=_KNOTS_SOURCE,
        domain="half",
        mean=_KNOTS + "knots_ties",
        survey=_KNOTS + "survey",
        own_parameters=_TIES,
        differs={"always": "the authors' code keeps one entry more, ignores alpha, and all weights but one"},
    ),
    _entries(
        name="knots_dare_ties",
        summary="DARE-TIES on principal axes of [dW₁ … dW_T]: random drop, then election of signs",
        source=_KNOTS_SOURCE,
        domain="half",
        mean=_KNOTS + "knots_dare_ties",
        own_parameters=_DARE_TIES,
        differs={"always": "the authors' code ignores alpha, and all weights but one"},
    ),
    _entries(
        name="core_ties",
        summary="TIES in reference bases of both joint spaces of the dWᵢ, trimmed over all modules together",
        source=_CORE_SOURCE,
        domain="cores",
        mean=_CORE + "core_ties",
        survey=_CORE + "survey",
        own_parameters=_TIES,
        differs={"always": _CORE_BASES},
    ),
    _entries(
        name="core_dare_ties",
        summary="DARE-TIES in reference bases of both joint spaces of the dWᵢ",
        source=_CORE_SOURCE,
        domain="cores",
        mean=_CORE + "core_dare_ties",
        own_parameters=_DARE_TIES,
        differs={"always": _CORE_BASES},
    ),
)
