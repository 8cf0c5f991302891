"""How squared distances bend along the orbits of O(r): diagonal models, plane by plane."""

from __future__ import annotations

import torch
from torch import Tensor

from riemerge.manifolds.low_rank.factors import FixedRank

# Least second derivative assumed over the group: between orthogonal frames with equal cores d² is flat.
_LEAST_CURVATURE = 0.1


def group_curvature(total: FixedRank, values: Tensor, left: Tensor, right: Tensor, core: Tensor) -> Tensor:
    """Return half of d²'s second derivative over O(r) in each plane (j, k), in the eigenbasis of B.

    It is w_U c_U + w_V c_V + w_B times the core's `bend`, c the `stiffness` of the frames: for the canonical
    metric one half where they are aligned, zero where they are orthogonal. Exact where everything is
    diagonal; bounded below, where the truth is not.

    Args:
        total: The manifold of the points.
        values: Eigenvalues of B, (..., r).
        left: UᵀUᵢ Oᵢ in that basis, (..., r, r).
        right: VᵀVᵢ Oᵢ in that basis.
        core: Diagonal of the other core in that basis, (..., r).
    """
    first, middle, last = total.scales
    frames = first * _frame_curvature(left, total.beta) + last * _frame_curvature(right, total.beta)
    return (frames + middle * total.core.bend(values, core)).clamp_min(_LEAST_CURVATURE)


def stiffness(angle: Tensor, beta: float) -> Tensor:
    """Return βs / (β + (1 - 2β)s), s = x / (1 + x), x = t cot t, of principal angles t: how d² of frames
    bends with the gauge. For β = 1/2 that is s.

    β for equal frames, zero for orthogonal ones.
    """
    x = torch.where(angle > 1e-6, angle / torch.tan(angle.clamp_min(1e-6)), torch.ones_like(angle))
    canonical = x / (1 + x)
    return beta * canonical / (beta + (1 - 2 * beta) * canonical)


def _frame_curvature(product: Tensor, beta: float) -> Tensor:
    c = stiffness(torch.diagonal(product, dim1=-2, dim2=-1).clamp(0, 1).arccos(), beta)
    return (c.unsqueeze(-1) + c.unsqueeze(-2)) / 2
