"""The mean of matrices under quadratic forms, among matrices of one rank: a problem on FixedRank/O(r)."""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from riemerge import linalg
from riemerge.frechet.formulation import Memory
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.manifolds.base import host


class QuadraticEvaluation(NamedTuple):
    """What is known at one point X = U B Vᵀ, with G the gradient of F among all matrices.

    Attributes:
        cost: F.
        left_images: (T, m, r), Lₜ U.
        right_images: (T, n, r), Mₜ V.
        left_forms: (T, r, r), Uᵀ Lₜ U.
        right_forms: (T, r, r), Vᵀ Mₜ V.
        left_gradient: (m, r), G V.
        right_gradient: (n, r), Gᵀ U.
        slope: ‖the part of G along matrices of rank r‖, the gradient's length in the embedded metric.
    """

    cost: Tensor
    left_images: Tensor
    right_images: Tensor
    left_forms: Tensor
    right_forms: Tensor
    left_gradient: Tensor
    right_gradient: Tensor
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
        self._memory: Memory[QuadraticEvaluation] = Memory()

    def evaluate(self, point: Tensor) -> QuadraticEvaluation:
        """Return what is known at a point: computed once, the last two are remembered."""
        known = self._memory.recall(point)
        if known is not None:
            return known
        u, b, v = self._factors(point)
        images = left_images, right_images = self.lefts @ u, self.rights @ v
        forms = left_forms, right_forms = u.mT @ left_images, v.mT @ right_images
        forced_left, forced_right = self.linear @ v, self.linear.mT @ u
        left = (left_images @ b @ right_forms).sum(dim=0) - forced_left
        right = (right_images @ b @ left_forms).sum(dim=0) - forced_right
        square = ((left_forms @ b @ right_forms) * b).sum()
        cost = square / 2 - ((u.mT @ forced_left) * b).sum() + self.constant
        rest = right - v @ (v.mT @ right)
        slope = (left.square().sum() + rest.square().sum()).sqrt()
        return self._memory.keep(point, QuadraticEvaluation(cost, *images, *forms, left, right, slope))

    def remembers(self, point: Tensor) -> bool:
        """Tell whether evaluating a point is free."""
        return point in self._memory

    def cost(self, point: Tensor) -> np.float64:
        """Return F."""
        return host(self.evaluate(point).cost)

    def euclidean_gradient(self, point: Tensor) -> Tensor:
        """Return the entrywise gradient: (G V B, sym(Uᵀ G V), Gᵀ U B)."""
        u, b, _ = self._factors(point)
        known = self.evaluate(point)
        left, right = known.left_gradient, known.right_gradient
        return self.total.join(left @ b, linalg.sym(u.mT @ left), right @ b).unsqueeze(0)

    def riemannian_gradient(self, point: Tensor) -> Tensor:
        """Return the gradient on the quotient."""
        return self.manifold.euclidean_to_riemannian_gradient(point, self.euclidean_gradient(point))

    def riemannian_hessian(self, point: Tensor, vector: Tensor) -> Tensor:
        """Return the Hessian on the quotient along a horizontal vector, exact."""
        u, b, v = self._factors(point)
        du, db, dv = self._factors(vector)
        known = self.evaluate(point)
        moved_left = 2 * linalg.sym(du.mT @ known.left_images)
        moved_right = 2 * linalg.sym(dv.mT @ known.right_images)
        left = self.lefts @ (du @ b + u @ db) @ known.right_forms + known.left_images @ b @ moved_right
        left = left.sum(dim=0) - self.linear @ dv
        right = self.rights @ (dv @ b + v @ db) @ known.left_forms + known.right_images @ b @ moved_left
        right = right.sum(dim=0) - self.linear.mT @ du
        core = linalg.sym(du.mT @ known.left_gradient + u.mT @ left)
        hessian = self.total.join(
            left @ b + known.left_gradient @ db, core, right @ b + known.right_gradient @ db
        )
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
        left, core, right = self._factors(self.total.riemannian_to_euclidean_gradient(point, vector))
        values, basis = torch.linalg.eigh(b)
        inverse = (basis / values.square()) @ basis.mT
        sums = values[:, None] + values
        turned = basis.mT @ linalg.skew(u.mT @ left - v.mT @ right) @ basis
        turn = basis @ (turned / sums.square()) @ basis.mT
        divided = self.total.join(
            (left - u @ (u.mT @ left)) @ inverse + u @ turn,
            linalg.sym(core),
            (right - v @ (v.mT @ right)) @ inverse - v @ turn,
        )
        return self.manifold.horizontal(point, divided.unsqueeze(0))

    def _factors(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, b, v = self.total.split(point.squeeze(0))
        return u, b, v
