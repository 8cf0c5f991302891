"""A loss of one's own: Cauchy's, which forgets what is far away."""

from __future__ import annotations

import torch

from riemerge.losses import FunctionLoss, Loss


def cauchy(scale: float = 1.0) -> Loss:
    """Return ρ(d) = log(1 + (d / scale)²), whose pull falls as 2/d. Source: Holland and Welsch 1977."""
    return FunctionLoss(lambda distance: torch.log1p((distance / scale).square()))
