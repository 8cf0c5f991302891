"""The Fréchet mean of balanced factors up to a common rotation, at a rank that may grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from riemerge.linalg import numerical_rank, thin_svd
from riemerge.methods.geometries.geometry import Geometry
from riemerge.methods.polar.positive import procrustes_mean
from riemerge.methods.setting import Answer, Setting
from riemerge.methods.singular.singular_vectors import FLOOR, leading, mean_rank


def balanced(x: Tensor, setting: Setting) -> Answer:
    """Return the mean of the updates as balanced factors (U √S, V √S), which O(R) turns together.

    A point is Z = [G; H] with dW = G Hᵀ, up to Z -> Z O: the positive semidefinite Z Zᵀ, whose blocks are
    |dWᵀ|, dW and |dW|. The distance is ‖Z − Zₜ Oₜ‖ at the best Oₜ, that of Bures and Wasserstein, for which
    directions of zero are nothing special: so an update of rank r is a point of every rank R >= r without any
    completion, and the mean may have the rank `rank` says, up to Σ rₜ (`sum`). It starts from the leading R
    directions of Σ wₜ Zₜ Zₜᵀ and is iterated by `procrustes_mean`.

    Law: f(L x Rᵀ) = L f(x) Rᵀ and f(c x) = c f(x), c of any sign; copies give themselves. Updates of mutually
    orthogonal rows and columns, at R = Σ rₜ, give Σ wₜ² xₜ: each side is averaged, and there are no cross
    terms. Near that the mean is hardly determined: cross terms come at a rate of the small overlaps, and
    `cost_tol` says how long to wait for them. The start is the average, if R = Σ rₜ; where the updates
    overlap at all, the mean itself is that of their own rank whatever R, and more columns only make the way
    to it longer.

    Args:
        x: Updates (T, p, q), in bases of the joint span, in float64.
        setting: Weights and the values `rank`, `tol`, `cost_tol` and `max_passes`.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: The singular values of all factors together are equal on both sides of R.

    Source: Bhatia, Jain, Lim 2019, On the Bures–Wasserstein distance; Gower 1975 (the iteration); Massart,
        Absil 2020, Quotient geometry with simple geodesics for the manifold of fixed-rank PSD matrices.

    Cost: T SVDs (p, q), one (p + q, Σ rₜ), and T SVDs (r, R) a pass.
    """
    svd = thin_svd(x)
    largest = svd.values[:, 0].amax()
    roots = torch.where(svd.values > FLOOR * largest, svd.values, 0.0).sqrt()[:, None]
    factors = torch.cat([svd.left * roots, svd.right * roots], dim=1)
    together = thin_svd(torch.cat(list(setting.weights.to(x).sqrt()[:, None, None] * factors), dim=1))
    rank = mean_rank(setting, numerical_rank(svd.values, FLOOR, largest).tolist())
    kept = leading(together.values, rank, float(together.values[0]))
    start = together.left[:, :kept] * together.values[:kept]
    mean = procrustes_mean(
        factors,
        setting.weights,
        start,
        tol=setting.values["tol"],
        cost_tol=setting.values["cost_tol"],
        max_passes=setting.values["max_passes"],
    )
    left, right = mean.value.split(list(x.shape[1:]))
    return mean._replace(value=left @ right.mT)


@final
@dataclass(frozen=True)
class BuresWasserstein(Geometry):
    """Balanced factors up to a common rotation."""

    def closed_mean(self, x: Tensor, setting: Setting) -> Answer:
        """Return the mean under the square loss."""
        return balanced(x, setting)
