"""A loss of one's own: Cauchy's, which forgets what is far away."""

from __future__ import annotations

import torch

from riemerge.losses import FunctionLoss, Loss


def cauchy(scale: float = 1.0) -> Loss:
    """Return ρ(d) = log(1 + (d / scale)²); its pull falls as 1/d. Source: Black and Anandan 1996."""
    return FunctionLoss(lambda distance: torch.log1p((distance / scale).square()))
