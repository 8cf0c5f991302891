"""A loss of one's own: Cauchy's, which forgets what is far away."""

import torch
from torch import Tensor


def cauchy(distance: Tensor) -> Tensor:
    """Return ρ(d) = log(1 + d²), whose slope falls as 2/d. Source: Holland and Welsch 1977."""
    return torch.log1p(distance.square())
