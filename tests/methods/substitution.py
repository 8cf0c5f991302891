"""Local-model substitution: what a merge of θ and θ − ηv does as η goes to zero.

A smooth merge M with M(θ, θ) = θ recovers preconditioned gradient descent, M(θ, θ − ηv) = θ − η J v + O(η²),
with the Jacobian J = ∂₂M(θ, θ) as preconditioner (lemma 1 of "Merging and the geometry of optimization").
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from riemerge.methods.setting import Answer, Mean, Setting

Merge = Callable[[Tensor, Tensor], Tensor]


def merge_of(mean: Mean, setting: Setting, domain: str) -> Merge:
    """A row's mean as a merge of two tensors, the setting's weights being theirs."""

    def merge(first: Tensor, second: Tensor) -> Tensor:
        x = torch.stack([first, second])
        if domain != "gram":
            return _value(mean(x, setting))
        flat = x.flatten(1)
        return torch.tensordot(_value(mean(flat @ flat.T, setting)), x, dims=1)

    return merge


def jacobian_at_the_diagonal(merge: Merge, point: Tensor, step: float = 1e-3) -> Tensor:
    """J = ∂₂M(θ, θ) as a matrix (d, d) on the flattened θ, measured.

    Two central differences and their extrapolation: the error is of the order of step⁴ and of eps/step, so of
    1e-12 for a merge that is smooth on the scale 1.
    """
    columns = []
    for basis in torch.eye(point.numel(), dtype=point.dtype):
        along = basis.reshape(point.shape)
        wide, narrow = (
            (merge(point, point + h * along) - merge(point, point - h * along)) / (2.0 * h)
            for h in (step, step / 2.0)
        )
        columns.append(((4.0 * narrow - wide) / 3.0).flatten())
    return torch.stack(columns, dim=1)


def remainder_slope(merge: Merge, point: Tensor, direction: Tensor, jacobian: Tensor) -> float:
    """Order in η of ‖M(θ, θ − ηv) − (θ − η J v)‖, by least squares; infinite where it is round-off alone."""
    etas = [2.0**-k for k in range(3, 10)]
    linear = (jacobian @ direction.flatten()).reshape(point.shape)
    left = [
        float(torch.linalg.vector_norm(merge(point, point - eta * direction) - (point - eta * linear)))
        for eta in etas
    ]
    if max(left) <= 1e-11 * float(torch.linalg.vector_norm(point)):  # the error of the measured Jacobian
        return math.inf
    x = torch.tensor([math.log(eta) for eta in etas], dtype=torch.float64)
    y = torch.tensor([math.log(max(one, 1e-300)) for one in left], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))


def _value(answer: Tensor | Answer) -> Tensor:
    return answer.value if isinstance(answer, Answer) else answer
