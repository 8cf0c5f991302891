"""Tangent spaces along a path, each identified with that at its first point."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from riemerge.frechet.low_rank.search_space import JointManifold


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
        manifold: Manifold of points (K, ..., r); meant for frames of few rows, a reduced problem.
        point: The first point.
        dtype: Dtype of the vectors at the first point [default: the dtype of the point].
    """

    def __init__(self, manifold: JointManifold, point: Tensor, dtype: torch.dtype | None = None) -> None:
        self.manifold = manifold
        self._first = first = point.to(dtype or point.dtype)
        self._dtype = point.dtype
        total = manifold.total
        frames = _identities(first, total.m), _identities(first, total.n)
        # (sides, K, rows, rows): both in one batch where they are equal.
        self._frames = [torch.stack(frames)] if total.m == total.n else [x.unsqueeze(0) for x in frames]
        # B⁻¹, to lower many vectors at one point.
        self._inverse = torch.linalg.inv_ex(total.split(manifold.split(point)[0])[1].double()).inverse.to(
            first
        )
        self._core = self._back = _identities(point, total.r)

    def narrow(self, modules: Tensor, manifold: JointManifold) -> None:
        """Go on with some of the modules, on the manifold that is theirs."""
        modules = modules.to(self._first.device)
        self.manifold = manifold
        self._first, self._inverse = self._first[modules], self._inverse[modules]
        self._frames = [sides[:, modules] for sides in self._frames]
        self._core, self._back = self._core[modules], self._back[modules]

    def advance(self, point: Tensor, arrival: Tensor) -> None:
        """Let the path go on from one point to another."""
        total = self.manifold.total
        (u, b, v), (x, c, y) = (total.split(self.manifold.split(z)[0]) for z in (point, arrival))
        if total.m == total.n:
            sides = [(total.left, torch.stack((u, v)), torch.stack((x, y)))]
        else:
            sides = [
                (total.left, u.unsqueeze(0), x.unsqueeze(0)),
                (total.right, v.unsqueeze(0), y.unsqueeze(0)),
            ]
        self._frames = [
            stiefel.transport(a, b, frames)
            for (stiefel, a, b), frames in zip(sides, self._frames, strict=True)
        ]
        forth, back = total.core.congruence(b, c)
        self._core, self._back = forth @ self._core, self._back @ back

    def pull(self, vector: Tensor) -> Tensor:
        """Bring a tangent vector at the last point to the first."""
        left, right = (side for sides in self._frames for side in sides)
        back = self._back.to(self._first)
        return self._move(vector.to(self._first), left.mT, back, right.mT)

    def push(self, vector: Tensor) -> Tensor:
        """Bring a tangent vector at the first point to the last."""
        left, right = (side for sides in self._frames for side in sides)
        core = self._core.to(self._first)
        return self._move(vector.to(self._first), left, core, right).to(self._dtype)

    def functional(self, vector: Tensor) -> Tensor:
        """Return ⟨v, .⟩ as a functional, of vectors (..., K, ., .) at the first point, in the default metric
        of its factors.
        """
        split = self.manifold.total.split
        (u, _, v), (at_x, turns) = split(self.manifold.split(self._first)[0]), self.manifold.split(vector)
        a, d, c = split(at_x)
        lowered = a - u @ (u.mT @ a / 2), self._inverse @ d @ self._inverse, c - v @ (v.mT @ c / 2)
        return self.manifold.join(self.manifold.total.join(*lowered), self.manifold.lower_turns(turns))

    def _move(self, vector: Tensor, left: Tensor, core: Tensor, right: Tensor) -> Tensor:
        at_x, turns = self.manifold.split(vector)
        u, b, v = self.manifold.total.split(at_x)
        return self.manifold.join(self.manifold.total.join(left @ u, core @ b @ core.mT, right @ v), turns)


def _identities(point: Tensor, size: int) -> Tensor:
    identity = torch.eye(size, dtype=point.dtype, device=point.device)
    return identity.expand(point.shape[0], size, size)
