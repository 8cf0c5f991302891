"""Losses of Fréchet means: how distance is punished."""

from riemerge.frechet.loss import LOSSES, Absolute, FunctionLoss, Huber, Loss, Square, Trimmed

__all__ = ["LOSSES", "Absolute", "FunctionLoss", "Huber", "Loss", "Square", "Trimmed"]
