"""Rows that weigh each model by what its data say: one quadratic form per model, and the Gaussians behind."""

from __future__ import annotations

from functools import partial

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter, share

_HERE = "riemerge.methods.data.quadratic:"

PARAMETERS: tuple[Parameter, ...] = (
    Parameter("floor", "number", "added to every entry of the Fisher information", low=0),
    Parameter(
        "normalize_fisher", "flag", "divide each model's Fisher information by its norm over all modules"
    ),
    share("off_diagonal", "factor on the off-diagonal entries of the Gram matrices"),
)

_fisher = partial(Method, domain="entries", statistics=("fisher",))
_gram = partial(Method, domain="half", statistics=("gram",), checkpoints="weights")

ROWS: tuple[Method, ...] = (
    _fisher(
        name="fisher",
        geometry="flat:metric=diagonal",
        summary="average of entries weighted by diagonal Fisher information: Σ w F x / Σ w F",
        source="Matena, Raffel 2022, Merging Models with Fisher-Weighted Averaging, arXiv:2111.09832",
        mean=_HERE + "fisher",
        look=_HERE + "look_for_fisher",
        survey=_HERE + "fisher_norms",
        own_parameters={"floor": 1e-6, "normalize_fisher": True},
        checkpoints="weights",
    ),
    _fisher(
        name="gradient_matching",
        geometry="flat:metric=diagonal",
        summary="fisher with the base's curvature: Σ w (H + H0) x / (H0 + Σ w H), for weights of any sum",
        source="Daheim et al. 2023, Model Merging by Uncertainty-Based Gradient Matching, arXiv:2310.12808",
        mean=_HERE + "gradient_matching",
        look=_HERE + "look_for_gradient_matching",
        own_parameters={"floor": 1e-12},
        normalised=False,
        negative_weights=True,
        base_statistics=True,
    ),
    _gram(
        name="regmean",
        geometry="flat:metric=gram",
        summary="the linear map nearest in outputs to each model's on its own inputs: (Σ w x G)(Σ w G)⁻¹",
        source="Jin et al. 2023, Dataless Knowledge Fusion by Merging Weights, arXiv:2212.09849",
        mean=_HERE + "regmean",
        own_parameters={"off_diagonal": 0.9},
    ),
    _gram(
        name="mats",
        geometry="flat:metric=kronecker",
        summary="Kronecker-factored Fisher: solves Σ w L x R = Σ w L xᵢ R by conjugate gradients",
        source="Tam et al. 2023, Merging by Matching Models in Task Parameter Subspaces, arXiv:2312.04339",
        domain="entries",
        mean=_HERE + "mats",
        own_parameters={"tol": 1e-8, "max_passes": 100},
        statistics=("gram", "covariance"),
    ),
    _gram(
        name="mats_forward",
        geometry="flat:metric=gram",
        summary="mats with the inputs' Gram matrices alone: RegMean unshrunk, by conjugate gradients",
        source="Tam et al. 2023, Merging by Matching Models in Task Parameter Subspaces, arXiv:2312.04339",
        mean=_HERE + "mats_forward",
        own_parameters={"tol": 1e-8, "max_passes": 100},
    ),
    _fisher(
        name="fisher_rao",
        geometry="gaussians",
        summary="Fréchet mean of Gaussians N(x, 1/F) per entry in the Fisher-Rao distance; near: fisher",
        source="Atkinson, Mitchell 1981, Rao's Distance Measure; da Silva et al. 2026, arXiv:2604.27155",
        own_parameters={"floor": 1e-6, "tol": 1e-9, "max_passes": 100},
        checkpoints="weights",
    ),
)
