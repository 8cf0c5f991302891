"""Losses of Fréchet means: how distance is punished."""

from riemerge.frechet.loss import LOSSES, Loss, Square

__all__ = ["LOSSES", "Loss", "Square"]
