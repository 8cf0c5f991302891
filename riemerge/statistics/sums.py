"""The running sums of one module's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.files.text import shown


@final
class Sums:
    """The running sums of one module: examples in, statistics out.

    Args:
        kinds: What to sum up.
        shape: (m, n) of the weight.
        dtype: Of the sums.
    """

    def __init__(self, kinds: Sequence[str], shape: tuple[int, int], dtype: torch.dtype) -> None:
        m, n = shape
        sizes = {"fisher": (m, n), "gram": (n, n), "covariance": (m, m)}
        self._sums = {kind: torch.zeros(sizes[kind], dtype=dtype) for kind in kinds}
        self._tokens, self._examples, self._loss = 0, 0, torch.zeros((), dtype=torch.float64)
        self._reached = not self.need_gradients

    @property
    def need_gradients(self) -> bool:
        """Whether inputs alone do not suffice."""
        return {*self._sums} != {"gram"}

    def count(self, losses: Tensor) -> None:
        """Take in the losses of k examples, whether they use the module or not."""
        self._examples += len(losses)
        self._loss += losses.sum().to(self._loss)

    def add(self, x: Tensor, gradient: Tensor | None, keep: Tensor | None) -> None:
        """Take in k examples: inputs (k, s, n), output gradients (k, s, m), which tokens count (k, s)."""
        self._sums = {kind: one.to(x.device) for kind, one in self._sums.items()}
        dtype = next(iter(self._sums.values())).dtype
        x = x.to(dtype)
        self._tokens += int(keep.sum()) if keep is not None else x.shape[0] * x.shape[1]
        if "gram" in self._sums:
            self._sums["gram"] += _outer(x, keep)
        if gradient is None:
            return
        gradient, self._reached = gradient.to(dtype), True
        if "covariance" in self._sums:
            self._sums["covariance"] += _outer(gradient, keep)
        if "fisher" in self._sums:
            for one, other in zip(gradient, x, strict=True):
                self._sums["fisher"] += (one.mT @ other).square_()

    def result(self, module: str) -> dict[str, Tensor]:
        """Return the statistics as they are stored.

        Raises:
            AdapterError: The module was never used, or never mattered, or a sum is not finite.
        """
        if not self._tokens:
            raise AdapterError(
                f"{shown(module)}: no example uses it: expected inputs; leave it out of modules"
            )
        if not self._reached:
            raise AdapterError(
                f"{shown(module)}: the loss does not depend on it: expected gradients; leave it out of "
                "modules, ask for gram alone, or see that the loss is not detached"
            )
        tensors = {**self._sums, "loss": self._loss / self._examples}
        if "fisher" in tensors:
            tensors["fisher"] = tensors["fisher"] / self._examples
        for kind, one in tensors.items():
            if not bool(torch.isfinite(one).all()):
                raise AdapterError(
                    f"{shown(module)}: {kind} holds NaN or Inf: expected finite inputs and gradients; run "
                    "the model in a wider dtype, or look at its loss"
                )
        return {**tensors, "tokens": torch.tensor(self._tokens), "examples": torch.tensor(self._examples)}


def _outer(rows: Tensor, keep: Tensor | None) -> Tensor:
    """Σ r rᵀ over all rows that count, symmetric to the bit."""
    flat = rows.flatten(0, 1) if keep is None else rows[keep]
    product = flat.mT @ flat
    return (product + product.mT) / 2
