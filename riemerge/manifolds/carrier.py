"""Tangent spaces along a path, each identified with that at its first point."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from riemerge.manifolds.joint import JointManifold


@final
class Carrier:
    """Carries tangent vectors of a `JointManifold` along the iterates of a solve, however many there are.

    Transport acts on the frames by a rotation of the ambient space and on the cores by a congruence, both
    isometries. Their products along the path are kept; a vector is brought to the first point once, and stays
    there while the path goes on: transporting a memory of vectors costs nothing. Functionals are those at the
    first point.

    Law: `push(pull(v))` is v; pull and push are isometries; after `advance(a, b)` pushing what was pulled
    at a is `transport(a, b, .)`.

    Args:
        manifold: Of points (K, ..., r); meant for frames of few rows, a reduced problem.
        point: The first point.
        dtype: Of the vectors there; the point's by default.
    """

    def __init__(self, manifold: JointManifold, point: Tensor, dtype: torch.dtype | None = None) -> None:
        self.manifold = manifold
        self._first = first = point.to(dtype or point.dtype)
        self._dtype = point.dtype
        total = manifold.total
        self._frames: Sequence[Tensor] = _identities(first, total.m), _identities(first, total.n)
        if total.m == total.n:
            # One batch of both sides.
            self._frames = torch.stack(tuple(self._frames))
        self._core = self._back = _identities(point, total.r)

    def narrow(self, modules: Tensor, manifold: JointManifold) -> None:
        """Goes on with some of the modules, on the manifold that is theirs."""
        modules = modules.to(self._first.device)
        self.manifold = manifold
        self._first = self._first[modules]
        frames = self._frames
        stacked = isinstance(frames, Tensor)
        self._frames = frames[:, modules] if stacked else tuple(side[modules] for side in frames)
        self._core, self._back = self._core[modules], self._back[modules]

    def advance(self, point: Tensor, arrival: Tensor) -> None:
        """Lets the path go on from one point to another."""
        total = self.manifold.total
        (u, b, v), (x, c, y) = (total.split(self.manifold.split(z)[0]) for z in (point, arrival))
        if isinstance(self._frames, Tensor):
            sides = torch.stack((u, v)), torch.stack((x, y))
            self._frames = total.left.transport(*sides, self._frames)
        else:
            self._frames = (
                total.left.transport(u, x, self._frames[0]),
                total.right.transport(v, y, self._frames[1]),
            )
        forth, back = total.core.congruence(b, c)
        self._core, self._back = forth @ self._core, self._back @ back

    def pull(self, vector: Tensor) -> Tensor:
        """Brings a tangent vector at the last point to the first."""
        left, right = self._frames
        return self._moved(vector.to(self._first), left.mT, self._back.to(self._first), right.mT)

    def push(self, vector: Tensor) -> Tensor:
        """Brings a tangent vector at the first point to the last."""
        left, right = self._frames
        return self._moved(vector, left, self._core.to(self._first), right).to(self._dtype)

    def lower(self, vector: Tensor) -> Tensor:
        """Returns <v, .> as a functional, of a vector at the first point."""
        return self.manifold.lower(self._first, vector)

    def _moved(self, vector: Tensor, left: Tensor, core: Tensor, right: Tensor) -> Tensor:
        at_x, turns = self.manifold.split(vector)
        u, b, v = self.manifold.total.split(at_x)
        return self.manifold.join(self.manifold.total.join(left @ u, core @ b @ core.mT, right @ v), turns)


def _identities(point: Tensor, size: int) -> Tensor:
    identity = torch.eye(size, dtype=point.dtype, device=point.device)
    return identity.expand(point.shape[0], size, size)
