"""Rows: means that work on the spectrum, whitened frames and powers of singular values."""

from __future__ import annotations

from riemerge.methods.method import Method
from riemerge.methods.parameters import MATCHED, Parameter

_HERE = "riemerge.methods.spectrum.whitened:"

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "whitening",
        "number",
        "how far singular frames are made orthogonal across models: 0 not at all, 1 wholly (as `tsv`)",
        low=0,
        high=1,
        per_module=True,
    ),
    Parameter(
        "power",
        "number",
        "to which singular values are raised: 1 leaves them alone, 0 reaches the end of the way",
        low=0,
        high=1,
        per_module=True,
    ),
    Parameter("adapt", "flag", "go only that share of the way on which the models disagree"),
    Parameter("order", "number", "order s of a power mean", low=0, open_low=True, high=8, per_module=True),
)

ROWS: tuple[Method, ...] = (
    Method(
        name="spectrum",
        summary="whitened mean X₁ of the singular frames, its singular values σ^γ at the norm of X₁: on the "
        "geodesic from it to a flat spectrum",
        source="between the average, TSV-M (arXiv 2412.00081) and Iso-C (arXiv 2502.04959)",
        domain="span",
        mean=_HERE + "spectrum",
        parameters=("rank", "scale", "whitening", "power", "adapt"),
        defaults={"scale": MATCHED, "whitening": 0.5, "power": 0.25, "adapt": True},
    ),
    Method(
        name="spectrum_matched",
        summary="whitened mean X₁, its singular values σₖ^γ tₖ^(1 − γ): on the geodesic to the mean spectrum "
        "t of the dWᵢ (the spectrum is matched, whatever --scale)",
        source="von Neumann 1937, the nearest matrix of a given spectrum",
        domain="span",
        mean=_HERE + "spectrum_matched",
        parameters=("rank", "scale", "whitening", "power"),
        defaults={"scale": MATCHED, "whitening": 0.5, "power": 0.5},
    ),
    Method(
        name="power_mean",
        summary="power mean of order s: singular values of each dWᵢ raised to s, whitened mean, then to 1/s",
        source="Bhagwat & Subramanian 1978, Inequalities between means of positive operators",
        domain="span",
        mean=_HERE + "power_mean",
        parameters=("rank", "scale", "whitening", "order"),
        defaults={"scale": MATCHED, "whitening": 0.5, "order": 2.0},
    ),
)
