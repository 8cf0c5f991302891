"""The mean of matrices under quadratic forms, among matrices of one rank: a problem on FixedRank/O(r)."""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.manifolds.base import host


class Glance(NamedTuple):
    """What is known at one point X = U B Vᵀ, with G the gradient of F among all matrices.

    Attributes:
        cost: F.
        lifted: (T, m, r), Lₜ U.
        righted: (T, n, r), Mₜ V.
        small_left: (T, r, r), Uᵀ Lₜ U.
        small_right: (T, r, r), Vᵀ Mₜ V.
        over: (m, r), G V.
        under: (n, r), Gᵀ U.
        slope: ‖the part of G along matrices of rank r‖, the gradient's length in the embedded metric.
    """

    cost: Tensor
    lifted: Tensor
    righted: Tensor
    small_left: Tensor
    small_right: Tensor
    over: Tensor
    under: Tensor
    slope: Tensor


@final
class LowRankQuadratic:
    """F(X) = 1/2 Σₜ tr(Lₜ X Mₜ Xᵀ) − tr(Cᵀ X) + c among the (m, n) matrices X of rank r, as Pymanopt asks.

    Law: cost, gradient and Hessian are of the class of (U, B, V) under O(r). X is never formed: with r
    columns a pass is T products (m, m)(m, r) and (n, n)(n, r).

    The forms should be near the identity in the mean, Σₜ Lₜ ⊗ Mₜ ≈ I (a change of variables does that): the
    preconditioner is the inverse of the Hessian of 1/2 ‖X‖² along the manifold, so that the steps are those
    of matrices, whatever the condition of B.

    Shapes: one module; points (1, m + r + n, r) float64.

    Source: Mishra, Meyer, Bonnabel, Sepulchre 2014 for the factors; Vandereycken 2013 for the embedded
        geometry that the preconditioner stands for.

    Args:
        lefts: (T, m, m) positive semidefinite, the weights in them.
        rights: (T, n, n) positive semidefinite.
        linear: C, (m, n).
        constant: c.
        rank: r.
    """

    def __init__(self, lefts: Tensor, rights: Tensor, linear: Tensor, constant: float, rank: int) -> None:
        self.lefts, self.rights, self.linear, self.constant = lefts, rights, linear, constant
        m, n = linear.shape
        self.total = FixedRank(m, n, rank, retraction="quadratic", device=linear.device)
        self.manifold = QuotientManifold(self.total, Orthogonal(rank))
        self._memo: list[tuple[Tensor, Glance]] = []

    def at(self, point: Tensor) -> Glance:
        """Return what is known at a point: computed once, the last two are remembered."""
        for known, glance in self._memo:
            if known is point:
                return glance
        u, b, v = self._factors(point)
        lifted, righted = self.lefts @ u, self.rights @ v
        small_left, small_right = u.mT @ lifted, v.mT @ righted
        forced_right, forced_left = self.linear @ v, self.linear.mT @ u
        over = (lifted @ b @ small_right).sum(dim=0) - forced_right
        under = (righted @ b @ small_left).sum(dim=0) - forced_left
        square = ((small_left @ b @ small_right) * b).sum()
        cost = square / 2 - ((u.mT @ forced_right) * b).sum() + self.constant
        rest = under - v @ (v.mT @ under)
        slope = (over.square().sum() + rest.square().sum()).sqrt()
        glance = Glance(cost, lifted, righted, small_left, small_right, over, under, slope)
        self._memo = [(point, glance), *self._memo[:1]]
        return glance

    def remembers(self, point: Tensor) -> bool:
        """Tell whether a point costs nothing to look at."""
        return any(known is point for known, _ in self._memo)

    def cost(self, point: Tensor) -> np.float64:
        """Return F."""
        return host(self.at(point).cost)

    def euclidean_gradient(self, point: Tensor) -> Tensor:
        """Return the entrywise gradient: (G V B, sym(Uᵀ G V), Gᵀ U B)."""
        u, b, _ = self._factors(point)
        at = self.at(point)
        return self.total.join(at.over @ b, linalg.sym(u.mT @ at.over), at.under @ b).unsqueeze(0)

    def riemannian_gradient(self, point: Tensor) -> Tensor:
        """Return the gradient on the quotient."""
        return self.manifold.euclidean_to_riemannian_gradient(point, self.euclidean_gradient(point))

    def riemannian_hessian(self, point: Tensor, vector: Tensor) -> Tensor:
        """Return the Hessian on the quotient along a horizontal vector, exact."""
        u, b, v = self._factors(point)
        du, db, dv = self._factors(vector)
        at = self.at(point)
        moved_left = du.mT @ at.lifted
        moved_left = moved_left + moved_left.mT
        moved_right = dv.mT @ at.righted
        moved_right = moved_right + moved_right.mT
        over = (self.lefts @ (du @ b + u @ db) @ at.small_right + at.lifted @ b @ moved_right).sum(
            dim=0
        ) - self.linear @ dv
        under = (self.rights @ (dv @ b + v @ db) @ at.small_left + at.righted @ b @ moved_left).sum(
            dim=0
        ) - self.linear.mT @ du
        core = linalg.sym(du.mT @ at.over + u.mT @ over)
        hessian = self.total.join(over @ b + at.over @ db, core, under @ b + at.under @ db)
        return self.manifold.euclidean_to_riemannian_hessian(
            point, self.euclidean_gradient(point), hessian.unsqueeze(0), vector
        )

    def preconditioner(self, point: Tensor, vector: Tensor) -> Tensor:
        """Return the horizontal y with ⟨dX(y), dX(z)⟩ = ⟨vector, z⟩ for every horizontal z.

        Here dX(z) is the motion of U B Vᵀ along z, and the first inner product is Frobenius's. Law: symmetric
        and positive definite; of a gradient, dX(y) is the gradient in the embedded metric. In the eigenbasis
        of B everything is a division.
        """
        u, b, v = self._factors(point)
        left, core, right = self._factors(self.total.lower(point, vector))
        values, basis = torch.linalg.eigh(b)
        inverse = (basis / values.square()) @ basis.mT
        sums = values[:, None] + values
        turned = basis.mT @ linalg.skew(u.mT @ left - v.mT @ right) @ basis
        turn = basis @ (turned / sums.square()) @ basis.mT
        found = self.total.join(
            (left - u @ (u.mT @ left)) @ inverse + u @ turn,
            linalg.sym(core),
            (right - v @ (v.mT @ right)) @ inverse - v @ turn,
        )
        return self.manifold.horizontal(point, found.unsqueeze(0))

    def _factors(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, b, v = self.total.split(point.squeeze(0))
        return u, b, v
