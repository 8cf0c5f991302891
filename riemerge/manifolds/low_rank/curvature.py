"""How squared distances bend along the orbits of O(r): diagonal models, plane by plane."""

from __future__ import annotations

import torch
from torch import Tensor

# Least second derivative assumed over the group: between orthogonal frames with equal cores d² is flat.
_LEAST_CURVATURE = 0.1


def group_curvature(values: Tensor, left: Tensor, right: Tensor, core: Tensor) -> Tensor:
    """Return half of d²'s second derivative over O(r) in each plane (j, k), in the eigenbasis of B.

    It is c_U + c_V + 4 (b / sinh b) sinh(g / 2) sinh(l / 2): l and g are the log ratios of the two cores'
    diagonals, b = (g - l) / 2, and c = x / (1 + x), x = t cot t, is one half for aligned frames (t = 0) and
    zero for orthogonal ones. Exact where everything is diagonal; bounded below, where the truth is not.

    Args:
        values: Eigenvalues of B, (..., r).
        left: UᵀUᵢ Oᵢ in that basis, (..., r, r).
        right: VᵀVᵢ Oᵢ in that basis.
        core: Diagonal of the other core in that basis, (..., r).
    """
    ratio, other = _log_ratio(values), _log_ratio(core)
    half = (other - ratio).abs() / 2
    bent = torch.where(half > 1e-6, half / torch.sinh(half.clamp_min(1e-6)), torch.ones_like(half))
    cores = (4 * bent * torch.sinh(other / 2) * torch.sinh(ratio / 2)).clamp_min(0)
    return (_frame_curvature(left) + _frame_curvature(right) + cores).clamp_min(_LEAST_CURVATURE)


def stiffness(angle: Tensor) -> Tensor:
    """Return x / (1 + x), x = t cot t, of principal angles t: how d² of frames bends with the gauge.

    One half for equal frames, zero for orthogonal ones.
    """
    x = torch.where(angle > 1e-6, angle / torch.tan(angle.clamp_min(1e-6)), torch.ones_like(angle))
    return x / (1 + x)


def _frame_curvature(product: Tensor) -> Tensor:
    c = stiffness(torch.diagonal(product, dim1=-2, dim2=-1).clamp(0, 1).arccos())
    return (c.unsqueeze(-1) + c.unsqueeze(-2)) / 2


def _log_ratio(values: Tensor) -> Tensor:
    logs = values.log()
    return logs.unsqueeze(-1) - logs.unsqueeze(-2)
