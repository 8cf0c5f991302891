"""Rows of the table on one module's updates, given in the row's domain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riemerge.methods import METHODS
from riemerge.methods.engine import Row
from riemerge.methods.setting import Answer, Setting


def answer_of(name: str, x: Tensor, weights: list[float], **values: Any) -> Answer:
    """What a row answers for one module, at its defaults where no value is given."""
    row = METHODS[name]
    shape = tuple(x.shape[1:])
    at = Setting("layer", torch.tensor(weights, dtype=torch.float64), {**row.defaults, **values}, shape)
    return Row.of(row)(x, at)
