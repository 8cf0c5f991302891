"""The Fréchet mean of balanced factors up to a common rotation, at a rank that may grow."""

from __future__ import annotations

import torch
from torch import Tensor

from riemerge.methods.polar.positive import procrustes_mean
from riemerge.methods.setting import Answer, Setting
from riemerge.methods.singular.singular_vectors import FLOOR, leading


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

    Shapes: x (T, p, q) in bases of the joint span, to (p, q). *Cost:* T SVDs (p, q), one (p + q, Σ rₜ), and T
        SVDs (r, R) a pass.

    Raises:
        NumericalError: The singular values of all factors together are equal on both sides of R.

    Source: Bhatia, Jain, Lim 2019, On the Bures–Wasserstein distance; Gower 1975 (the iteration); Massart,
        Absil 2020, Quotient geometry with simple geodesics for the manifold of fixed-rank PSD matrices.
    """
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    largest = sigma[:, 0].amax()
    roots = torch.where(sigma > FLOOR * largest, sigma, 0.0).sqrt()[:, None]
    factors = torch.cat([u * roots, vh.mT * roots], dim=1)
    together = torch.cat(list(setting.weights.to(x).sqrt()[:, None, None] * factors), dim=1)
    directions, lengths, _ = torch.linalg.svd(together, full_matrices=False)
    kept = leading(lengths, _rank(setting, sigma, float(largest)), float(lengths[0]))
    start = directions[:, :kept] * lengths[:kept]
    found = procrustes_mean(
        factors,
        setting.weights,
        start,
        tol=setting.values["tol"],
        cost_tol=setting.values["cost_tol"],
        max_passes=setting.values["max_passes"],
    )
    left, right = found.value.split(list(x.shape[1:]))
    return found._replace(value=left @ right.mT)


def _rank(setting: Setting, sigma: Tensor, largest: float) -> int:
    """The rank of the mean: what is asked for, or the largest of the updates."""
    asked = setting.values.get("rank")
    ranks = (sigma > FLOOR * largest).sum(dim=1)
    return int(ranks.sum() if isinstance(asked, str) else ranks.max() if asked is None else asked)
