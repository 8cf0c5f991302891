"""The running sums of one module's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from riemerge.errors import AdapterError
from riemerge.formats.files.text import show
from riemerge.statistics.folder import shapes_of


@final
class Sums:
    """The running sums of one module: examples in, statistics out.

    Args:
        name: The name of the module.
        layer: The module.
        kinds: The kinds of statistics to sum up.
        dtype: The dtype of the sums.

    Attributes:
        name: The name of the module.
        calls: For each call of the module since the last `add` its input, and a zero added to its output.
    """

    def __init__(self, name: str, layer: nn.Linear, kinds: Sequence[str], dtype: torch.dtype) -> None:
        self.name, self._layer = name, layer
        self.calls: list[tuple[Tensor, Tensor]] = []
        shapes = shapes_of((layer.out_features, layer.in_features), kinds)
        self._sums = {kind: torch.zeros(shape, dtype=dtype) for kind, shape in shapes.items()}
        self._tokens, self._examples, self._loss = 0, 0, torch.zeros((), dtype=torch.float64)
        self._reached = not self.need_gradients

    @property
    def need_gradients(self) -> bool:
        """Whether the kinds need gradients beside inputs."""
        return {*self._sums} != {"gram"}

    def watch(self) -> RemovableHandle:
        """Note each call of the module in `calls`, until the handle is removed.

        The gradient of the zero that is added to an output is the gradient of the output: so gradients reach
        every module, whether its weights or the weights before it are frozen or not.
        """

        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            probe = torch.zeros_like(output, requires_grad=self.need_gradients)
            self.calls.append((inputs[0].detach(), probe))
            return output + probe

        return self._layer.register_forward_hook(note)

    def add(self, losses: Tensor, gradients: Sequence[Tensor | None], mask: Tensor | None, take: int) -> None:
        """Take in the first examples of a batch, all calls of the module side by side as tokens.

        Args:
            losses: The loss of each example (b,), whether the example uses the module or not.
            gradients: The gradient of each call's output; None where the loss does not depend on it.
            mask: Whether a token counts (b, s), where the module is called with these tokens; None if all do.
            take: The number of examples to take.

        Raises:
            AdapterError: An input does not have examples as its first axis.
        """
        self._examples += take
        self._loss += losses[:take].sum().to(self._loss)
        calls, self.calls = self.calls, []
        if not calls:
            return
        if wrong := [tuple(x.shape) for x, _ in calls if x.ndim < 2 or len(x) != len(losses)]:
            raise AdapterError(
                f"{show(self.name)}: an input is {wrong[0]} in a batch of {len(losses)} examples: expected "
                "examples as the first axis; leave it out of modules"
            )
        inputs = _as_tokens([x for x, _ in calls])[:take]
        keep = None
        if mask is not None and all(x.shape[:-1] == mask.shape for x, _ in calls):
            keep = torch.cat([mask] * len(calls), dim=1)[:take].to(inputs.device)
        self._sums = {kind: total.to(inputs.device) for kind, total in self._sums.items()}
        dtype = next(iter(self._sums.values())).dtype
        inputs = inputs.to(dtype)
        self._tokens += int(keep.sum()) if keep is not None else inputs.shape[0] * inputs.shape[1]
        if "gram" in self._sums:
            self._sums["gram"] += _outer(inputs, keep)
        if all(gradient is None for gradient in gradients):
            return
        self._reached = True
        slopes = [
            probe if slope is None else slope for slope, (_, probe) in zip(gradients, calls, strict=True)
        ]
        outputs = _as_tokens(slopes)[:take].detach().to(dtype)
        if "covariance" in self._sums:
            self._sums["covariance"] += _outer(outputs, keep)
        if "fisher" in self._sums:
            for gradient, x in zip(outputs, inputs, strict=True):
                self._sums["fisher"] += (gradient.mT @ x).square_()

    def result(self) -> dict[str, Tensor]:
        """Return the statistics as they are stored.

        Raises:
            AdapterError: The module was never used, or never mattered, or a sum is not finite.
        """
        module = show(self.name)
        if not self._tokens:
            raise AdapterError(f"{module}: no example uses it: expected inputs; leave it out of modules")
        if not self._reached:
            raise AdapterError(
                f"{module}: the loss does not depend on it: expected gradients; leave it out of modules, ask "
                "for gram alone, or see that the loss is not detached"
            )
        tensors = {**self._sums, "loss": self._loss / self._examples}
        if "fisher" in tensors:
            tensors["fisher"] = tensors["fisher"] / self._examples
        for kind, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise AdapterError(
                    f"{module}: {kind} holds NaN or Inf: expected finite inputs and gradients; run "
                    "the model in a wider dtype, or look at its loss"
                )
        return {**tensors, "tokens": torch.tensor(self._tokens), "examples": torch.tensor(self._examples)}


def _as_tokens(calls: Sequence[Tensor]) -> Tensor:
    """Return tensors (b, ..., n) as one of shape (b, s, n)."""
    return torch.cat([call.reshape(len(call), -1, call.shape[-1]) for call in calls], dim=1)


def _outer(rows: Tensor, keep: Tensor | None) -> Tensor:
    """Return Σ r rᵀ over all rows that count, symmetric to the bit."""
    flat = rows.flatten(0, 1) if keep is None else rows[keep]
    product = flat.mT @ flat
    return (product + product.mT) / 2
