"""Torch functions as Pymanopt cost functions, without leaving torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import torch
from pymanopt.autodiff import backend_decorator_factory
from pymanopt.autodiff.backends._backend import Backend
from torch import Tensor

from riemerge.manifolds.base import host


@final
class TorchBackend(Backend):  # type: ignore[misc]
    """Pymanopt's own torch backend turns points into numpy arrays; this one leaves tensors on their device.

    Costs return `np.float64`; gradients and Hessian-vector products come from torch's autograd on detached
    copies.
    """

    def __init__(self) -> None:
        super().__init__("Torch")

    @staticmethod
    def is_available() -> bool:
        """Torch is a core dependency."""
        return True

    def prepare_function(self, function: Callable[..., Tensor]) -> Callable[..., np.float64]:
        """Return the function without gradient tape, its 0-d result on the host."""

        def cost(*point: Tensor) -> np.float64:
            with torch.no_grad():
                return host(function(*point))

        return cost

    def generate_gradient_operator(
        self, function: Callable[..., Tensor], num_arguments: int
    ) -> Callable[..., object]:
        """Return the entrywise gradient."""

        def gradient(*point: Tensor) -> object:
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in point]
                return _unpack(torch.autograd.grad(function(*leaves), leaves, materialize_grads=True))

        return gradient

    def generate_hessian_operator(
        self, function: Callable[..., Tensor], num_arguments: int
    ) -> Callable[..., object]:
        """Return the entrywise Hessian-vector product; refuse functions that torch can differentiate only
        once.
        """

        def hessian(*arguments: Tensor) -> object:
            point, vector = arguments[:num_arguments], arguments[num_arguments:]
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in point]
                value = function(*leaves)
                gradients = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
                slope = torch.stack([(g * v).sum() for g, v in zip(gradients, vector, strict=True)]).sum()
                if not slope.requires_grad:
                    return _unpack([torch.zeros_like(x) for x in leaves])
                return _unpack(torch.autograd.grad(slope, leaves, materialize_grads=True))

        return hessian


def _unpack(gradients: Sequence[Tensor]) -> object:
    """Return the gradient of a function of one argument by itself."""
    if len(gradients) == 1:
        return gradients[0]
    return list(gradients)


torch_function = backend_decorator_factory(TorchBackend)
"""Decorator `@torch_function(manifold)`: makes a torch function of a point a Pymanopt cost."""
