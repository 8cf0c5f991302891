"""Anderson acceleration of many small fixed-point iterations at once."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

# Earlier steps that are combined. Logarithms of far frames (β = 1) take 90 turns without, 35 with four and 29
# with eight.
_MEMORY = 8
# Share of the largest eigenvalue that is added to the least-squares problem's matrix: what it cannot resolve.
_ROUND_OFF = 1e-13


@final
class Mixing:
    """Remembers, pair by pair, how steps f(x) changed with x, and combines them to a step towards f = 0.

    Law: for an affine f it is GMRES, so a few dozen steps of an iteration that converges linearly become a
    handful. Source: Anderson 1965; Walker, Ni 2011.

    Args:
        pairs: Number P of iterations.
        size: Number of entries of a step.
        like: Tensor of the dtype and device of the steps.
    """

    def __init__(self, pairs: int, size: int, like: Tensor) -> None:
        self._moves = like.new_zeros((pairs, _MEMORY, size))
        self._changes = torch.zeros_like(self._moves)
        self._step = like.new_zeros((pairs, size))

    def combine(self, pairs: Tensor, step: Tensor) -> Tensor:
        """Return the steps to take.

        Args:
            pairs: Indices of the iterations that go on, (a,).
            step: f at their points, (a, ...).
        """
        flat = step.flatten(1)
        self._changes[pairs, 0] = (flat - self._step[pairs]) * (self._moves[pairs, 0] != 0).any(
            -1, keepdim=True
        )
        self._step[pairs] = flat
        changes, moves = self._changes[pairs], self._moves[pairs]
        gram = changes @ changes.mT
        trace = torch.diagonal(gram, dim1=-2, dim2=-1).sum(dim=-1)
        shift = _ROUND_OFF * trace + torch.finfo(gram.dtype).tiny
        gram = gram + shift[:, None, None] * torch.eye(_MEMORY, dtype=gram.dtype, device=gram.device)
        shares = torch.linalg.solve(gram, changes @ flat.unsqueeze(-1))
        return (flat - ((moves + changes).mT @ shares).squeeze(-1)).reshape(step.shape)

    def note(self, pairs: Tensor, move: Tensor, taken: Tensor) -> None:
        """Remember the steps that were taken; forget what is known of pairs whose step was not.

        Args:
            pairs: Indices of the iterations that went on, (a,).
            move: The steps, (a, ...).
            taken: Whether each was taken, boolean (a,).
        """
        last, keep = move.flatten(1).unsqueeze(1), taken[:, None, None]
        for memory, first in ((self._moves, last), (self._changes, torch.zeros_like(last))):
            later = torch.cat((first, memory[pairs, :-1]), dim=1)
            memory[pairs] = torch.where(keep, later, 0.0)
