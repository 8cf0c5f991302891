"""Rows: means that work on the spectrum, whitened frames and powers of singular values."""

from __future__ import annotations

from functools import partial

from riemerge.methods.method import Method
from riemerge.methods.parameters import MATCHED, Parameter, positive, share

_HERE = "riemerge.methods.spectrum.whitened:"

PARAMETERS: tuple[Parameter, ...] = (
    share(
        "whitening",
        "how far singular frames are made orthogonal across models: 0 not at all, 1 wholly (as `tsv`)",
    ),
    share("power", "exponent of the singular values: 1 leaves them alone, 0 reaches the end of the way"),
    Parameter("adapt", "flag", "go only that share of the way on which the models disagree"),
    positive("order", "order s of a power mean", high=8, per_module=True),
)

_row = partial(Method, domain="cores", geometric=True)

ROWS: tuple[Method, ...] = (
    _row(
        name="spectrum",
        summary="whitened mean X₁ of the singular frames, its singular values σ^γ at the norm of X₁: on the "
        "geodesic from it to a flat spectrum",
        source="between the average, TSV-M (arXiv 2412.00081) and Iso-C (arXiv 2502.04959)",
        mean=_HERE + "spectrum",
        together=_HERE + "spectra",
        own_parameters={"scale": MATCHED, "whitening": 0.5, "power": 0.25, "adapt": True},
    ),
    _row(
        name="spectrum_matched",
        summary="whitened mean X₁, its singular values σₖ^γ tₖ^(1 − γ): on the geodesic to the mean spectrum "
        "t of the dWᵢ (the spectrum is matched, whatever --scale)",
        source="von Neumann 1937, the nearest matrix of a given spectrum",
        mean=_HERE + "spectrum_matched",
        together=_HERE + "spectra_matched",
        own_parameters={"scale": MATCHED, "whitening": 0.5, "power": 0.5},
    ),
    _row(
        name="power_mean",
        summary="power mean of order s: singular values of each dWᵢ raised to s, whitened mean, then to 1/s",
        source="Bhagwat & Subramanian 1978, Inequalities between means of positive operators",
        mean=_HERE + "power_mean",
        together=_HERE + "power_means",
        own_parameters={"scale": MATCHED, "whitening": 0.5, "order": 2.0},
    ),
)
