"""Rows as merges of two tensors, for the substitution of examples/merging_is_a_gradient_step.py."""

from __future__ import annotations

import torch
from torch import Tensor

from examples.merging_is_a_gradient_step import Merge
from riemerge.linalg import SVD
from riemerge.methods.method import SUMS
from riemerge.methods.setting import Answer, Mean, Setting


def merge_of(mean: Mean, setting: Setting, domain: str) -> Merge:
    """A row's mean as a merge of two tensors, the setting's weights being theirs."""

    def merge(first: Tensor, second: Tensor) -> Tensor:
        x = torch.stack([first, second])
        if domain not in SUMS:
            return _value(mean(x, setting))
        flat = x.flatten(1)
        return torch.tensordot(_value(mean(flat @ flat.T, setting)), x, dims=1)

    return merge


def _value(answer: Tensor | SVD | Answer) -> Tensor:
    value = answer.value if isinstance(answer, Answer) else answer
    return value.matrix() if isinstance(value, SVD) else value
